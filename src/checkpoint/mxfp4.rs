//! MXFP4 weights: blocks of 32 four-bit floats with a power of two each (Open Compute Project, "OCP Microscaling Formats
//! (MX) Specification" 1.0, sections 5.3 and 6.3), as GPT-OSS checkpoints have their experts.
//!
//! A tensor `x` of shape `[experts, outputs, inputs]` is stored as `x_blocks` `[experts, outputs, inputs / 32, 16]`, two
//! values a byte, the first in the lower half, and `x_scales` `[experts, outputs, inputs / 32]`, exponents plus 127.

use anyhow::{ensure, Result};
use half::bf16;

use super::reader::Checkpoint;
use super::tensor::TensorData;

/// Values of a block.
const BLOCK: usize = 32;
/// What four bits without their sign mean.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

fn parts_of(name: &str) -> [String; 2] {
    [format!("{name}_blocks"), format!("{name}_scales")]
}

impl Checkpoint {
    /// Whether a tensor is stored in MXFP4, as `{name}_blocks` and `{name}_scales`.
    pub fn is_mxfp4(&self, name: &str) -> bool {
        parts_of(name).iter().all(|part| self.info(part).is_some())
    }

    /// Makes sure that a tensor is there in MXFP4, of `shape` `[experts, outputs, inputs]`.
    ///
    /// # Errors
    /// Names the file, the tensor, what was found and what was expected.
    pub fn expect_mxfp4(&self, name: &str, shape: [usize; 3]) -> Result<()> {
        let [experts, outputs, inputs] = shape;
        let [blocks, scales] = parts_of(name);
        ensure!(
            inputs.is_multiple_of(BLOCK),
            "{}: tensor `{name}` is stored in blocks of {BLOCK}, but config.json calls for rows of {inputs}; weights and \
             config.json are not of one model: download both again",
            self.file_of(&blocks).display()
        );
        self.expect_bytes(&blocks, &[experts, outputs, inputs / BLOCK, BLOCK / 2])?;
        self.expect_bytes(&scales, &[experts, outputs, inputs / BLOCK])
    }

    /// Reads one expert's part of a tensor that [`expect_mxfp4`](Self::expect_mxfp4) has passed, `[outputs, inputs]`: the
    /// values stored, which bfloat16 holds exactly. No other expert's bytes are read.
    ///
    /// # Errors
    /// If it isn't there or can't be read, or if a value is not finite (its scale is 255, or too large for it).
    pub fn read_mxfp4_part(&self, name: &str, index: usize) -> Result<TensorData> {
        let [blocks, scales] = parts_of(name);
        let values = decode(&self.read_bytes(&blocks, index)?, &self.read_bytes(&scales, index)?);
        let finite = values.iter().fold(true, |all, value| all & value.is_finite());
        ensure!(
            finite,
            "{}: part {index} of tensor `{name}` holds a value that is no finite number (element {}): the checkpoint is \
             damaged; download it again",
            self.file_of(&scales).display(),
            values.iter().position(|value| !value.is_finite()).unwrap_or(0)
        );
        Ok(TensorData::Bf16(values))
    }
}

/// Values of blocks of 16 bytes with a scale each.
fn decode(blocks: &[u8], scales: &[u8]) -> Vec<bf16> {
    let tables: Vec<[bf16; 16]> = (0..=u8::MAX).map(table).collect();
    let mut values = Vec::with_capacity(2 * blocks.len());
    for (block, &scale) in blocks.chunks_exact(BLOCK / 2).zip(scales) {
        let table = &tables[scale as usize];
        let pair = |byte: &u8| [table[(byte & 15) as usize], table[(byte >> 4) as usize]];
        values.extend(block.iter().flat_map(pair));
    }
    values
}

/// What all fours of bits mean under a scale.
fn table(scale: u8) -> [bf16; 16] {
    let factor = match scale {
        u8::MAX => f64::NAN,
        _ => f64::from(i32::from(scale) - 127).exp2(),
    };
    std::array::from_fn(|bits| {
        let sign = if bits & 8 == 0 { 1.0 } else { -1.0 };
        bf16::from_f64(sign * f64::from(MAGNITUDES[bits & 7]) * factor)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// E2M1 and E8M0 by the specification's formulas.
    fn slowly(bits: u8, scale: u8) -> f64 {
        let (sign, exponent, mantissa) = (bits >> 3, i32::from(bits >> 1 & 3), f64::from(bits & 1));
        let magnitude = match exponent {
            0 => mantissa / 2.0,
            _ => 2f64.powi(exponent - 1) * (1.0 + mantissa / 2.0),
        };
        (-1f64).powi(i32::from(sign)) * magnitude * 2f64.powi(i32::from(scale) - 127)
    }

    #[test]
    fn every_value_under_every_scale_is_exact() {
        for scale in 0..=252 {
            let mut block = [0; 16];
            for (i, byte) in (0..).zip(&mut block) {
                // Each byte has one of the values first and another one second.
                *byte = i | (15 - i) << 4;
            }
            let values = decode(&block, &[scale]);
            assert_eq!(values.len(), BLOCK);
            for (i, pair) in (0..).zip(values.chunks(2)) {
                for (value, bits) in pair.iter().zip([i, 15 - i]) {
                    assert_eq!(value.to_f64(), slowly(bits, scale), "{bits} under {scale}");
                }
            }
        }
    }

    #[test]
    fn each_block_has_its_own_scale() {
        let blocks: Vec<u8> = (0..3).flat_map(|b| [0x21 + b; 16]).collect();
        let values: Vec<f32> = decode(&blocks, &[127, 128, 120]).iter().map(|v| v.to_f32()).collect();
        let expected = [[0.5, 1.0], [2.0, 2.0], [1.5 / 128.0, 1.0 / 128.0]];
        for (block, expected) in values.chunks(BLOCK).zip(expected) {
            assert!(block.chunks(2).all(|pair| pair == expected), "{block:?}");
        }
    }

    #[test]
    fn scales_without_a_meaning_give_no_number() {
        assert!(decode(&[0; 16], &[255]).iter().all(|v| v.is_nan()));
        assert!(decode(&[0x77; 16], &[254]).iter().all(|v| v.is_infinite()));
        assert!(decode(&[0; 16], &[254]).iter().all(|v| *v == bf16::ZERO));
    }
}
