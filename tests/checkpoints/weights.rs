//! Sound files: what is read from them, and weights that are not the model's.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::Dtype;
use serde_json::json;
use sluicegate::checkpoint::{read_json, Checkpoint, StoredDtype, TensorData};
use sluicegate::model::inventory::Owner;
use sluicegate::model::nllb_moe::inventory::inventory;
use sluicegate::model::nllb_moe::names;

use crate::small_model::{bytes_of, inspect, parsed, refused, says, shard_name, Model, EXPERT, INDEX, SINGLE, VICTIM};

#[test]
fn a_sound_folder_gives_back_what_was_written() {
    let mut model = Model::new();
    model.set(
        "unrelated.bf16",
        Dtype::BF16,
        &[3],
        [1.5f32, -2.0, 0.0].map(bf16::from_f32).map(bf16::to_le_bytes).concat(),
    );
    model.set(
        "unrelated.f16",
        Dtype::F16,
        &[],
        f16::from_f32(0.25).to_le_bytes().to_vec(),
    );
    model.set("unrelated.none", Dtype::F32, &[0, 4], vec![]);
    model.set("unrelated.i64", Dtype::I64, &[2], vec![0; 16]);
    for dir in [model.save(), model.save_sharded()] {
        let checkpoint = inspect(dir.path()).unwrap();
        assert_eq!(checkpoint.dir(), dir.path());
        assert_eq!(
            checkpoint.names().collect::<Vec<_>>(),
            model.tensors.keys().collect::<Vec<_>>()
        );
        assert_eq!(checkpoint.stored_dtype(), StoredDtype::F32);
        let mut bytes = 0;
        for (name, (dtype, shape, stored)) in &model.tensors {
            assert_eq!(&checkpoint.info(name).unwrap().shape, shape);
            bytes += stored.len() as u64;
            if *dtype == Dtype::F32 {
                let read = checkpoint.read(name).unwrap();
                assert_eq!(read.len(), shape.iter().product::<usize>());
                assert_eq!(&bytes_of(&read.to_f32()), stored, "{name}");
            }
        }
        assert_eq!(checkpoint.total_bytes(), bytes);
        let bf16s = checkpoint.read("unrelated.bf16").unwrap();
        assert_eq!(
            bf16s,
            TensorData::Bf16([1.5f32, -2.0, 0.0].map(bf16::from_f32).to_vec())
        );
        assert_eq!(checkpoint.read_f32("unrelated.bf16").unwrap(), [1.5, -2.0, 0.0]);
        assert_eq!(checkpoint.read_f32("unrelated.f16").unwrap(), [0.25]);
        assert!(checkpoint.read("unrelated.none").unwrap().is_empty());
        says(
            &checkpoint.read("unrelated.i64").unwrap_err(),
            &["unrelated.i64", "I64", ".safetensors"],
        );
        says(
            &checkpoint.read("no.such").unwrap_err(),
            &["no.such", "missing", "model.safetensors"],
        );
        says(
            &checkpoint.expect(VICTIM, &[12]).unwrap_err(),
            &[VICTIM, "[12, 8]", "[12]", ".safetensors"],
        );
    }
}

#[test]
fn a_tensor_larger_than_a_block_is_read_whole() {
    let mut model = Model::new();
    let values: Vec<f32> = (0..(9 << 18) + 5).map(|i| i as f32).collect();
    model.set("large", Dtype::F32, &[values.len()], bytes_of(&values));
    let mut torn = values.clone();
    torn[(8 << 18) + 1] = f32::NAN;
    model.set("large.nan", Dtype::F32, &[torn.len()], bytes_of(&torn));
    let dir = model.save();
    let checkpoint = inspect(dir.path()).unwrap();
    assert_eq!(checkpoint.read_f32("large").unwrap(), values);
    says(
        &checkpoint.read("large.nan").unwrap_err(),
        &["large.nan", "element 2097153"],
    );
}

#[test]
fn a_rank_reads_only_the_bytes_it_asks_for() {
    let dir = Model::new().save_sharded();
    let checkpoint = inspect(dir.path()).unwrap();
    assert_eq!(checkpoint.bytes_read(), 0);
    let mut bytes = 0;
    for tensor in inventory(&parsed(&read_json(dir.path(), "config.json").unwrap())) {
        if matches!(tensor.owner, Owner::Expert { expert: 1, .. }) {
            checkpoint.read(&tensor.name).unwrap();
            bytes += 4 * tensor.elements() as u64;
        }
    }
    assert_eq!(bytes, 4 * (12 * 8 + 12 + 8 * 12 + 8) + 4 * (10 * 8 + 10 + 8 * 10 + 8));
    assert_eq!(checkpoint.bytes_read(), bytes);
}

#[test]
fn a_file_that_shrinks_after_it_was_opened() {
    let dir = Model::new().save();
    let checkpoint = inspect(dir.path()).unwrap();
    fs::File::options()
        .write(true)
        .open(dir.path().join(SINGLE))
        .unwrap()
        .set_len(5000)
        .unwrap();
    let name = checkpoint
        .names()
        .find(|name| checkpoint.read(name).is_err())
        .expect("some are gone");
    says(&checkpoint.read(name).unwrap_err(), &[SINGLE, name]);
}

#[test]
fn a_wrong_dtype_or_shape() {
    let mut model = Model::new();
    model.set(VICTIM, Dtype::I8, &[12, 8], vec![0; 96]);
    refused(
        model.save().path(),
        &[SINGLE, VICTIM, "I8", "float32, bfloat16 or float16"],
    );
    model.set(VICTIM, Dtype::F32, &[8, 12], vec![0; 384]);
    refused(model.save().path(), &[SINGLE, VICTIM, "[8, 12]", "[12, 8]"]);
    model.set(VICTIM, Dtype::F32, &[0, 8], vec![]);
    refused(
        model.save_sharded().path(),
        &[&shard_name(1), VICTIM, "[0, 8]", "[12, 8]"],
    );
}

#[test]
fn missing_and_extra_experts() {
    let mut model = Model::new();
    model.tensors.retain(|name, _| !name.starts_with(EXPERT));
    refused(model.save().path(), &[SINGLE, VICTIM, "4 of"]);
    model.tensors.retain(|name, _| !name.contains("experts"));
    refused(
        model.save_sharded().path(),
        &[INDEX, "expert_0.fc1.weight", "32 of", "and 28 more"],
    );

    for (name, why) in [
        (
            "model.encoder.layers.1.ffn.experts.expert_4.fc1.weight",
            "`num_experts` is 4",
        ),
        (
            "model.encoder.layers.0.ffn.experts.expert_0.fc1.weight",
            "layer 0 is dense",
        ),
        (
            "model.decoder.layers.0.ffn.router.classifier.weight",
            "`decoder_sparse_step` 2",
        ),
        (
            "model.decoder.layers.1.ffn.router.classifier.bias",
            "`router_bias` is false",
        ),
        (
            "model.encoder.layers.2.ffn.experts.expert_0.fc1.weight",
            "`encoder_layers` is 2",
        ),
        ("model.decoder.layers.1.ffn.fc1.weight", "no such part"),
    ] {
        let mut model = Model::new();
        model.copy(VICTIM, name);
        refused(model.save().path(), &[SINGLE, name, why]);
    }
}

#[test]
fn top_k_above_the_number_of_experts() {
    let mut model = Model::new();
    model.config["num_experts"] = json!(1);
    refused(
        model.save().path(),
        &["config.json", "`num_experts` is 1", "at least 2"],
    );
}

#[test]
fn what_lies_outside_the_layers_is_passed_over() {
    let mut model = Model::new();
    for copy in [
        "lm_head.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
    ] {
        model.copy(names::EMBEDDING, copy);
    }
    model.set(
        "model.encoder.embed_positions.weights",
        Dtype::F32,
        &[1, 8],
        vec![0; 32],
    );
    model.set("something.else", Dtype::U8, &[3], vec![1; 3]);
    inspect(model.save().path()).unwrap();
}

#[test]
fn nan_is_found_as_the_expert_is_read() {
    for (dtype, bytes, element) in [
        (Dtype::F32, bytes_of(&[f32::NAN]), 95),
        (Dtype::BF16, bf16::NAN.to_le_bytes().to_vec(), 0),
        (Dtype::F16, f16::NAN.to_le_bytes().to_vec(), 37),
    ] {
        let mut model = Model::new();
        let mut spoilt = vec![0; 96 * bytes.len()];
        spoilt[element * bytes.len()..(element + 1) * bytes.len()].copy_from_slice(&bytes);
        model.set(VICTIM, dtype, &[12, 8], spoilt);
        let dir = model.save_sharded();
        let checkpoint = inspect(dir.path()).unwrap();
        let element = format!("at element {element} ");
        says(
            &checkpoint.read(VICTIM).unwrap_err(),
            &["NaN", VICTIM, &shard_name(1), &element],
        );
        says(
            &checkpoint.read_f32(VICTIM).unwrap_err(),
            &["NaN", VICTIM, &shard_name(1), &element],
        );
        assert!(checkpoint.read(&names::weight(&format!("{EXPERT}.fc2"))).is_ok());
    }
}

#[test]
fn the_fingerprint_follows_what_shapes_results() {
    let model = Model::new();
    let fingerprint = |dir: &Path| Checkpoint::open(dir).unwrap().sha256().unwrap();
    let dir = model.save();
    let first = fingerprint(dir.path());
    assert_eq!(first.len(), 64);
    assert_eq!(first, fingerprint(dir.path()));
    assert_eq!(
        first,
        fingerprint(model.save().path()),
        "the folder's own name must not count"
    );
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(dir.path().join(SINGLE))
        .unwrap();
    let last = file.metadata().unwrap().len() - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, last).unwrap();
    file.write_all_at(&[byte[0] ^ 1], last).unwrap();
    assert_ne!(first, fingerprint(dir.path()));
    file.write_all_at(&byte, last).unwrap();
    assert_eq!(first, fingerprint(dir.path()));
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    let with_tokenizer = fingerprint(dir.path());
    fs::write(dir.path().join("config.json"), "{}").unwrap();
    let with_config = fingerprint(dir.path());
    assert!(first != with_tokenizer && with_tokenizer != with_config);
}
