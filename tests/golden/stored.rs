//! Other forms of storage: the same model from the same numbers, to the bit.

use crate::decoder::hidden;
use crate::{device, load, Golden};
use safetensors::tensor::{Dtype as Stored, TensorView};
use sluicegate::checkpoint::Checkpoint;
use sluicegate::device::{Dtype, Epilogue};
use sluicegate::model;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Tensors of a checkpoint that a test changes, by name: type, shape and bytes.
type Tensors = BTreeMap<String, (Stored, Vec<usize>, Vec<u8>)>;

fn float(shape: &[usize], values: &[f32]) -> (Stored, Vec<usize>, Vec<u8>) {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (Stored::F32, shape.to_vec(), bytes)
}

fn read(golden: &Golden) -> Tensors {
    let checkpoint = Checkpoint::open(&golden.dir).expect("a sound checkpoint");
    let tensor = |name: &str| {
        let shape = checkpoint.info(name).expect("listed").shape.clone();
        let values = checkpoint.read_f32(name).expect("weights");
        (name.to_string(), float(&shape, &values))
    };
    checkpoint.names().map(tensor).collect()
}

fn write(golden: &Golden, tensors: &Tensors, change: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        let view = TensorView::new(*dtype, shape.clone(), bytes).expect("a sound tensor");
        (name.clone(), view)
    });
    let file = safetensors::serialize(views, None).expect("a sound file");
    fs::write(dir.path().join("model.safetensors"), file).expect("written");
    let mut config = fs::read_to_string(golden.dir.join("config.json")).expect("config.json");
    for (from, to) in change {
        assert!(config.contains(from), "{config}");
        config = config.replace(from, to);
    }
    fs::write(dir.path().join("config.json"), config).expect("written");
    dir
}

/// Bytes without an order.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    let byte = |i: usize| ((i + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8;
    (0..len).map(byte).collect()
}

#[test]
fn gpt_oss_in_mxfp4() {
    const MEANINGS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let Some(golden) = Golden::open("gpt_oss-s1") else {
        return;
    };
    let mut plain = read(&golden);
    let mut packed = plain.clone();
    let (experts, d, width) = (8, 64, 64);
    for layer in 0..3 {
        for (part, rows, columns) in [("gate_up_proj", 2 * width, d), ("down_proj", d, width)] {
            let name = format!("model.layers.{layer}.mlp.experts.{part}");
            let blocks = noise(layer, experts * rows * columns / 2);
            let scales: Vec<u8> = noise(7 + layer, experts * rows * columns / 32)
                .iter()
                .map(|b| 120 + b % 4)
                .collect();
            let mut values = vec![0.0; experts * rows * columns];
            for (i, byte) in blocks.iter().enumerate() {
                for (half, bits) in [byte & 15, byte >> 4].into_iter().enumerate() {
                    let (at, sign) = (2 * i + half, if bits & 8 == 0 { 1.0 } else { -1.0 });
                    let value = sign * MEANINGS[usize::from(bits & 7)] * 2f32.powi(i32::from(scales[at / 32]) - 127);
                    let (expert, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
                    // The other form is transposed.
                    values[(expert * columns + column) * rows + row] = value;
                }
            }
            plain.insert(name.clone(), float(&[experts, columns, rows], &values));
            packed.remove(&name);
            let shape = vec![experts, rows, columns / 32];
            packed.insert(format!("{name}_scales"), (Stored::U8, shape.clone(), scales));
            packed.insert(
                format!("{name}_blocks"),
                (Stored::U8, [shape, vec![16]].concat(), blocks),
            );
        }
    }
    let dirs = [plain, packed].map(|tensors| write(&golden, &tensors, &[]));
    let [plain, packed] = dirs.each_ref().map(|dir| hidden(dir.path(), &[1, 5, 9, 200, 31, 6]));
    assert_eq!(plain, packed);
}

#[test]
fn deepseek_v3_in_fp8() {
    // 0x38 is 1, 0x30 0.5, 0x28 0.25, 0xb0 -0.5.
    const SOME: [(u8, f32); 4] = [(0x38, 1.0), (0x30, 0.5), (0x28, 0.25), (0xb0, -0.5)];
    let Some(golden) = Golden::open("deepseek_v3-s1") else {
        return;
    };
    let mut plain = read(&golden);
    let mut packed = plain.clone();
    for (i, part) in [
        "self_attn.kv_b_proj",
        "self_attn.q_a_proj",
        "mlp.experts.3.up_proj",
        "mlp.shared_experts.down_proj",
    ]
    .iter()
    .enumerate()
    {
        let name = format!("model.layers.1.{part}.weight");
        let shape = plain[&name].1.clone();
        let chosen = noise(i, shape.iter().product());
        let chosen = chosen.iter().map(|b| SOME[usize::from(b % 4)]);
        let (bytes, values): (Vec<u8>, Vec<f32>) = chosen.map(|(byte, value)| (byte, value * 0.125)).unzip();
        plain.insert(name.clone(), float(&shape, &values));
        packed.insert(name.clone(), (Stored::F8_E4M3, shape, bytes));
        packed.insert(format!("{name}_scale_inv"), float(&[1, 1], &[0.125]));
    }
    let dirs = [plain, packed].map(|tensors| write(&golden, &tensors, &[]));
    let [plain, packed] = dirs.each_ref().map(|dir| hidden(dir.path(), &[1, 5, 9, 200, 31, 6]));
    assert_eq!(plain, packed);
}

/// DeepSeek's first family against Qwen2-MoE with the parts that they share: a shared expert whose gate is always open
/// counts by half, and rows without biases.
#[test]
fn deepseek_is_qwen2_moe_without_biases_and_with_an_open_gate() {
    let Some(golden) = Golden::open("qwen2_moe-s1") else {
        return;
    };
    let mut qwen = read(&golden);
    for (name, (_, shape, bytes)) in &mut qwen {
        if name.ends_with("_proj.bias") || name.ends_with("shared_expert_gate.weight") {
            *bytes = float(shape, &vec![0.0; shape.iter().product()]).2;
        }
    }
    let mut deepseek = Tensors::new();
    for (name, tensor) in &qwen {
        if name.ends_with("_proj.bias") || name.ends_with("shared_expert_gate.weight") {
            continue;
        }
        let mut tensor = tensor.clone();
        if name.contains("shared_expert.down_proj") {
            let (words, _) = tensor.2.as_chunks::<4>();
            let halved: Vec<f32> = words.iter().map(|b| f32::from_le_bytes(*b) * 0.5).collect();
            tensor = float(&tensor.1, &halved);
        }
        deepseek.insert(name.replace("shared_expert.", "shared_experts."), tensor);
    }
    let config = [
        ("\"qwen2_moe\"", "\"deepseek\""),
        (
            "\"num_experts\"",
            "\"n_shared_experts\": 2, \"first_k_dense_replace\": 1, \"n_routed_experts\"",
        ),
    ];
    let dirs = [write(&golden, &qwen, &[]), write(&golden, &deepseek, &config)];
    let [qwen, deepseek] = dirs.each_ref().map(|dir| hidden(dir.path(), &[1, 5, 9, 200, 31, 6]));
    assert_eq!(qwen, deepseek);
}

/// Hidden states of a text, logits of made-up ones, and the bytes held.
fn ends(dir: &Path, dtype: Dtype) -> (Vec<u32>, Vec<u32>, u64) {
    let model = load(dir, dtype, 0, 1);
    let rows: Vec<f32> = (0..3 * model.shape().d_model)
        .map(|i| (i as f32 * 0.37).sin())
        .collect();
    let mut logits = vec![0.0; 3 * model.head().outputs()];
    device(1).linear(&rows, model.head(), Epilogue::Store, &mut logits);
    let logits = logits.iter().map(|x| x.to_bits()).collect();
    (hidden(dir, &[1, 5, 9, 200, 31, 6]), logits, model.bytes())
}

/// The reference ties a stored head to the embedding only where both are the same.
#[test]
fn a_stored_head_counts_though_it_is_said_to_be_the_embedding() {
    let Some(golden) = Golden::open("qwen2_moe-s2-step2-tied") else {
        return;
    };
    let untied = ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    let tied = read(&golden);
    let (_, shape, bytes) = tied["model.embed_tokens.weight"].clone();
    let with_head = |bytes: Vec<u8>| {
        let mut tensors = tied.clone();
        tensors.insert("lm_head.weight".to_string(), (Stored::F32, shape.clone(), bytes));
        tensors
    };
    let reversed = bytes.as_chunks::<4>().0.iter().rev().copied().flatten().collect();
    let (copied, other) = (with_head(bytes), with_head(reversed));
    let [plain, copied, said_tied, said_apart] = [
        write(&golden, &tied, &[]),
        write(&golden, &copied, &[]),
        write(&golden, &other, &[]),
        write(&golden, &other, &[untied]),
    ];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        let of = |dir: &TempDir| ends(dir.path(), dtype);
        let (plain, apart) = (of(&plain), of(&said_apart));
        assert_eq!(of(&copied), plain, "{dtype:?}");
        assert_eq!(of(&said_tied), apart, "{dtype:?}");
        assert_ne!(plain.1, apart.1, "{dtype:?}");
    }
    let mut narrow = tied.clone();
    narrow.insert("lm_head.weight".to_string(), float(&[1, 2], &[1.0, 2.0]));
    let dir = write(&golden, &narrow, &[]);
    let error = format!("{:#}", model::open(dir.path()).map(|_| ()).expect_err("another shape"));
    assert!(error.contains("lm_head.weight"), "{error}");
}

#[test]
fn a_tensor_too_many_is_refused_and_further_layers_are_not() {
    let Some(golden) = Golden::open("deepseek_v3-s1") else {
        return;
    };
    let mut tensors = read(&golden);
    let one = tensors["model.norm.weight"].clone();
    let open = |tensors: &Tensors, change: &[(&str, &str)]| {
        let dir = write(&golden, tensors, change);
        model::open(dir.path()).map(|_| ())
    };
    tensors.insert("model.layers.1.self_attn.rotary_emb.inv_freq".to_string(), one.clone());
    tensors.insert("model.layers.3.enorm.weight".to_string(), one.clone());
    let predicting = ("\"num_nextn_predict_layers\": 0", "\"num_nextn_predict_layers\": 1");
    open(&tensors, &[predicting]).expect("passed over");
    let refused = |tensors: &Tensors, change: &[(&str, &str)], reason: &str| {
        let error = format!("{:#}", open(tensors, change).expect_err(reason));
        assert!(error.contains(reason), "{error}");
    };
    refused(&tensors, &[], "`num_hidden_layers` is 3");
    tensors.insert("model.layers.1.mlp.gate.bias".to_string(), one);
    refused(&tensors, &[predicting], "model.layers.1.mlp.gate.bias");
}
