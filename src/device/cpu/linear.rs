//! Weights packed for the product kernels.
use anyhow::{ensure, Result};
use half::{bf16, f16};

use super::Epilogue;

/// The type that packed weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16; activations are rounded to it before a product, sums are 32-bit.
    Bf16,
}

/// Weights as a checkpoint stores them, row-major.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// 32-bit float.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
}

impl Source<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Source::F32(s) => s.len(),
            Source::Bf16(s) => s.len(),
            Source::F16(s) => s.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn at(&self, i: usize) -> f32 {
        match self {
            Source::F32(s) => s[i],
            Source::Bf16(s) => s[i].to_f32(),
            Source::F16(s) => s[i].to_f32(),
        }
    }
}

/// One matrix of a [`Linear`]; several are stacked along the outputs (query, key and value as one product).
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `[outputs, inputs]`, row-major.
    pub weights: Source<'a>,
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
}

/// A linear layer `y = x W^T + b`, packed for the kernels.
pub struct Linear {
    /// Length of an input row (k).
    pub inputs: usize,
    /// Length of an output row (n).
    pub outputs: usize,
    /// What the weights are held in.
    pub dtype: Dtype,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Linear {
    /// Packs `parts`, each `[outputs_i, inputs]`, stacked along the outputs; a part without bias among others with one
    /// counts as bias zero.
    ///
    /// # Errors
    /// If a part is no whole number of rows of `inputs`, or its bias has another length than its rows.
    pub fn pack(inputs: usize, parts: &[Part<'_>], dtype: Dtype) -> Result<Linear> {
        ensure!(inputs > 0, "weights to pack: rows of 0 inputs, expected at least 1");
        let mut weights = Vec::new();
        let mut bias = parts.iter().any(|p| p.bias.is_some()).then(Vec::new);
        for (i, part) in parts.iter().enumerate() {
            let (len, rows) = (part.weights.len(), part.weights.len() / inputs);
            ensure!(
                len == rows * inputs,
                "weights to pack, part {i}: found {len} elements, expected a multiple of {inputs}; is its shape right?"
            );
            if let Some(b) = part.bias {
                ensure!(
                    b.len() == rows,
                    "bias to pack, part {i}: found {} elements, expected {rows}",
                    b.len()
                );
            }
            weights.extend((0..len).map(|j| match dtype {
                Dtype::F32 => part.weights.at(j),
                Dtype::Bf16 => bf16::from_f32(part.weights.at(j)).to_f32(),
            }));
            match (&mut bias, part.bias) {
                (Some(bias), Some(b)) => bias.extend_from_slice(b),
                (Some(bias), None) => bias.resize(bias.len() + rows, 0.0),
                (None, _) => {}
            }
        }
        Ok(Linear {
            inputs,
            outputs: weights.len() / inputs,
            dtype,
            weights,
            bias,
        })
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.weights.len() * 4
    }

    /// Row `row` of the original `[outputs, inputs]` matrix as f32, so that an embedding tied to it needs no copy.
    pub fn embedding(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.weights[row * self.inputs..][..self.inputs]);
    }

    pub(super) fn row_naive(&self, x: &[f32], epi: Epilogue, out: &mut [f32]) {
        for (j, y) in out.iter_mut().enumerate() {
            let w = &self.weights[j * self.inputs..][..self.inputs];
            let mut acc = w.iter().zip(x).fold(0.0, |acc: f32, (w, x)| x.mul_add(*w, acc));
            if let Some(b) = &self.bias {
                acc += b[j];
            }
            *y = match epi {
                Epilogue::Store => acc,
                Epilogue::Relu => acc.max(0.0),
                Epilogue::Add => *y + acc,
            };
        }
    }
}
