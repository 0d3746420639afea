//! Experts in one tensor, FP8 and MXFP4.

use half::bf16;
use safetensors::tensor::Dtype;
use sluicegate::checkpoint::{Checkpoint, TensorData};
use tempfile::TempDir;

use crate::small_model::{bytes_of, says, Model, SINGLE};

const FUSED: &str = "model.layers.0.mlp.experts.gate_up_proj";

/// A checkpoint of the small model and some tensors more.
fn with(tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) -> (TempDir, Checkpoint) {
    let mut model = Model::new();
    for (name, dtype, shape, bytes) in tensors {
        model.set(name, *dtype, shape, bytes.clone());
    }
    let dir = model.save();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn of_fused_experts_only_the_part_asked_for_is_read() {
    let values: Vec<f32> = (0..4 * 6 * 5).map(|i| i as f32 - 60.0).collect();
    let halves: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let (_dir, checkpoint) = with(&[
        (FUSED, Dtype::F32, &[4, 6, 5], bytes_of(&values)),
        ("halves", Dtype::BF16, &[4, 6, 5], halves),
    ]);
    for expert in 0..4 {
        let expected = &values[expert * 30..][..30];
        let before = checkpoint.bytes_read();
        assert_eq!(
            checkpoint.read_part(FUSED, expert).unwrap(),
            TensorData::F32(expected.to_vec())
        );
        assert_eq!(checkpoint.bytes_read() - before, 4 * 30);
        assert_eq!(checkpoint.read_part("halves", expert).unwrap().to_f32(), expected);
        assert_eq!(checkpoint.read_part_f32("halves", expert).unwrap(), expected);
        assert_eq!(checkpoint.bytes_read() - before, 4 * 30 + 2 * 2 * 30);
    }
    let beyond = checkpoint.read_part(FUSED, 4).unwrap_err();
    says(&beyond, &[FUSED, "[4, 6, 5]", "no part 4", SINGLE]);
    says(
        &checkpoint.read_part("no.such", 0).unwrap_err(),
        &["no.such", "missing"],
    );
}

#[test]
fn a_part_with_a_nan_is_refused_and_the_others_are_not() {
    let mut values = vec![1.0; 3 * 4];
    values[4 + 2] = f32::NAN;
    let (_dir, checkpoint) = with(&[
        (FUSED, Dtype::F32, &[3, 4], bytes_of(&values)),
        ("scalar", Dtype::F32, &[], bytes_of(&[1.0])),
        ("none", Dtype::F32, &[0, 4], vec![]),
    ]);
    assert!(checkpoint.read_part(FUSED, 0).is_ok() && checkpoint.read_part(FUSED, 2).is_ok());
    for error in [
        checkpoint.read_part(FUSED, 1).unwrap_err(),
        checkpoint.read_part_f32(FUSED, 1).unwrap_err(),
    ] {
        says(&error, &["NaN", "part 1", FUSED, "element 2", SINGLE]);
    }
    says(
        &checkpoint.read_part("scalar", 0).unwrap_err(),
        &["scalar", "no part 0"],
    );
    says(&checkpoint.read_part("none", 0).unwrap_err(), &["none", "no part 0"]);
}

/// E4M3: 0x38 is 1, 0x3c 1.5, 0xc0 -2, 0x7e 448.
const SOME: [(u8, f32); 4] = [(0x38, 1.0), (0x3c, 1.5), (0xc0, -2.0), (0x7e, 448.0)];

#[test]
fn fp8_is_read_as_the_numbers_it_stands_for() {
    let (rows, columns) = (130, 257);
    let pick = |i: usize| SOME[(i * 7919) % 4];
    let bytes: Vec<u8> = (0..rows * columns).map(|i| pick(i).0).collect();
    let scales = [0.5, 0.1, 3.0, 1e-3, 7.0, 0.25];
    let name = "model.layers.3.mlp.experts.0.up_proj.weight";
    let (_dir, checkpoint) = with(&[
        (name, Dtype::F8_E4M3, &[rows, columns], bytes),
        (&format!("{name}_scale_inv"), Dtype::F32, &[2, 3], bytes_of(&scales)),
    ]);
    checkpoint.expect(name, &[rows, columns]).unwrap();
    says(
        &checkpoint.expect(name, &[columns, rows]).unwrap_err(),
        &[name, "[130, 257]"],
    );
    let expected: Vec<f32> = (0..rows * columns)
        .map(|i| pick(i).1 * scales[i / columns / 128 * 3 + i % columns / 128])
        .collect();
    assert_eq!(checkpoint.read_f32(name).unwrap(), expected);
    assert_eq!(checkpoint.bytes_read(), (rows * columns + 4 * 6) as u64);
    assert_eq!(checkpoint.read(name).unwrap(), TensorData::F32(expected));
    says(&checkpoint.read_part(name, 0).unwrap_err(), &[name, "F8_E4M3"]);
}

#[test]
fn fp8_without_its_scales_or_with_others_is_refused() {
    let matrix = |byte| ("w", Dtype::F8_E4M3, &[2usize, 3][..], vec![byte; 6]);
    let scales = |dtype, shape: &'static [usize], bytes| ("w_scale_inv", dtype, shape, bytes);
    let refused = |tensors: &[(&str, Dtype, &[usize], Vec<u8>)], words: &[&str]| {
        let (_dir, checkpoint) = with(tensors);
        says(&checkpoint.read("w").unwrap_err(), words);
        says(&checkpoint.read_f32("w").unwrap_err(), words);
    };
    refused(&[matrix(0x38)], &["w_scale_inv", "missing", SINGLE]);
    let two = scales(Dtype::F32, &[1, 2], bytes_of(&[1.0, 1.0]));
    refused(&[matrix(0x38), two], &["w_scale_inv", "[1, 2]", "[2, 3]", "128"]);
    let coarse = scales(Dtype::BF16, &[1, 1], vec![0; 2]);
    refused(&[matrix(0x38), coarse], &["w_scale_inv", "bfloat16", "float32"]);
    let nan = || scales(Dtype::F32, &[1, 1], bytes_of(&[f32::NAN]));
    refused(&[matrix(0x38), nan()], &["NaN", "w_scale_inv"]);
    let one = || scales(Dtype::F32, &[1, 1], bytes_of(&[1.0]));
    refused(&[matrix(0x7f), one()], &["NaN", "`w`", "element 0"]);
    refused(&[matrix(0xff), one()], &["NaN", "`w`"]);
    let vector = ("w", Dtype::F8_E4M3, &[3][..], vec![0x38; 3]);
    refused(&[vector, one()], &["[3]", "matrix"]);
    let e5m2 = ("w", Dtype::F8_E5M2, &[1, 1][..], vec![0x38]);
    refused(&[e5m2, one()], &["F8_E5M2", "F8_E4M3"]);
}

/// MXFP4 of three experts, two outputs and 64 inputs: blocks and scales.
fn mxfp4() -> (Vec<u8>, Vec<u8>) {
    let blocks = (0..3 * 2 * 2 * 16).map(|i| (i * 37 % 256) as u8).collect();
    let scales = (0..3 * 2 * 2).map(|i| 120 + i as u8).collect();
    (blocks, scales)
}

#[test]
fn mxfp4_is_read_expert_by_expert() {
    let (blocks, scales) = mxfp4();
    let (_dir, checkpoint) = with(&[
        ("experts.gate_up_proj_blocks", Dtype::U8, &[3, 2, 2, 16], blocks.clone()),
        ("experts.gate_up_proj_scales", Dtype::U8, &[3, 2, 2], scales.clone()),
    ]);
    let name = "experts.gate_up_proj";
    assert!(checkpoint.is_mxfp4(name) && !checkpoint.is_mxfp4("experts.down_proj"));
    checkpoint.expect_mxfp4(name, [3, 2, 64]).unwrap();
    let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for expert in 0..3 {
        let before = checkpoint.bytes_read();
        let values = checkpoint.read_mxfp4_part(name, expert).unwrap().to_f32();
        assert_eq!(checkpoint.bytes_read() - before, 2 * 2 * 17);
        assert_eq!(values.len(), 2 * 64);
        for (i, value) in values.into_iter().enumerate() {
            let block = expert * 4 + i / 32;
            let byte = blocks[block * 16 + i % 32 / 2];
            let bits = if i % 2 == 0 { byte & 15 } else { byte >> 4 };
            let sign = if bits < 8 { 1.0 } else { -1.0 };
            let expected = sign * magnitudes[bits as usize % 8] * 2f32.powi(i32::from(scales[block]) - 127);
            assert_eq!(value, expected, "expert {expert}, element {i}");
        }
    }
    says(&checkpoint.read_mxfp4_part(name, 3).unwrap_err(), &[name, "no part 3"]);
}

#[test]
fn mxfp4_of_another_shape_type_or_without_numbers_is_refused() {
    let (blocks, mut scales) = mxfp4();
    scales[5] = 255;
    let parts = |dtype| {
        [
            ("w_blocks", dtype, &[3, 2, 2, 16][..], blocks.clone()),
            ("w_scales", Dtype::U8, &[3, 2, 2][..], scales.clone()),
        ]
    };
    let (_dir, checkpoint) = with(&parts(Dtype::U8));
    for (shape, words) in [
        ([3, 2, 96], ["w_blocks", "[3, 2, 2, 16]", "[3, 2, 3, 16]"]),
        ([4, 2, 64], ["w_blocks", "[3, 2, 2, 16]", "[4, 2, 2, 16]"]),
        ([3, 2, 65], ["`w`", "blocks of 32", "rows of 65"]),
    ] {
        says(&checkpoint.expect_mxfp4("w", shape).unwrap_err(), &words);
    }
    assert!(checkpoint.read_mxfp4_part("w", 0).is_ok());
    let error = checkpoint.read_mxfp4_part("w", 1).unwrap_err();
    says(&error, &["part 1", "`w`", "element 32", SINGLE]);
    let (_dir, checkpoint) = with(&parts(Dtype::I8));
    let error = checkpoint.expect_mxfp4("w", [3, 2, 64]).unwrap_err();
    says(&error, &["w_blocks", "I8", "U8"]);
    let (_dir, checkpoint) = with(&parts(Dtype::U8)[..1]);
    assert!(!checkpoint.is_mxfp4("w"));
    says(
        &checkpoint.expect_mxfp4("w", [3, 2, 64]).unwrap_err(),
        &["w_scales", "missing"],
    );
}
