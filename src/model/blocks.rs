//! Blocks that transformer families share: norms, attention weights, dense feed-forward layers, positions.

use crate::checkpoint::{Checkpoint, TensorData};
use crate::device::{Cpu, Dtype, Epilogue, Linear, Part, Source};
use anyhow::Result;

/// Layer normalisation with weight and bias, or root-mean-square normalisation with a weight alone.
pub struct Norm {
    /// `[d_model]`
    pub weight: Vec<f32>,
    /// `[d_model]`
    pub bias: Option<Vec<f32>>,
    /// Added to the variance.
    pub eps: f32,
}

impl Norm {
    /// Normalises each row of `x` `[rows, d_model]`.
    pub fn apply(&self, device: &Cpu, x: &[f32], out: &mut [f32]) {
        match &self.bias {
            Some(bias) => device.layer_norm(x, &self.weight, bias, self.eps, out),
            None => device.rms_norm(x, &self.weight, self.eps, out),
        }
    }
}

/// A dense feed-forward layer, `x + down(relu(up(norm(x))))` without the norm.
pub struct Dense {
    /// `[d_ff, d_model]`
    pub up: Linear,
    /// `[d_model, d_ff]`
    pub down: Linear,
}

impl Dense {
    /// Adds the layer's output for `normed` `[rows, d_model]` to `x`; `hidden` is scratch.
    pub fn apply(&self, device: &Cpu, normed: &[f32], hidden: &mut Vec<f32>, x: &mut [f32]) {
        let rows = x.len() / self.down.outputs();
        let hidden = crate::moe::layer::sized(hidden, rows * self.up.outputs());
        device.linear(normed, &self.up, Epilogue::Relu, hidden);
        device.linear(hidden, &self.down, Epilogue::Add, x);
    }
}

/// What is read is packed into these: the folder, and the precision that the job wants.
pub struct Loader<'a> {
    /// The folder.
    pub checkpoint: &'a Checkpoint,
    /// What weights are held in; norms, biases and routers stay float32.
    pub dtype: Dtype,
    /// Threads that pack them.
    pub threads: usize,
}

impl Loader<'_> {
    /// Packs the modules `names` (each with `.weight` and perhaps `.bias`), stacked along their outputs.
    ///
    /// # Errors
    /// When a tensor is missing, cannot be read, or holds a NaN.
    pub fn linear(&self, names: &[&str]) -> Result<Linear> {
        self.packed(names, self.dtype)
    }

    /// As [`linear`](Self::linear), in float32 whatever the job's precision.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn linear_f32(&self, name: &str) -> Result<Linear> {
        self.packed(&[name], Dtype::F32)
    }

    fn packed(&self, names: &[&str], dtype: Dtype) -> Result<Linear> {
        let mut read = Vec::new();
        for name in names {
            let weights = self.checkpoint.read(&format!("{name}.weight"))?;
            let bias = format!("{name}.bias");
            let bias = self
                .checkpoint
                .info(&bias)
                .map(|_| self.checkpoint.read_f32(&bias))
                .transpose()?;
            read.push((weights, bias));
        }
        let parts: Vec<Part> = read
            .iter()
            .map(|(w, b)| Part {
                weights: source(w),
                bias: b.as_deref(),
            })
            .collect();
        let shape = self
            .checkpoint
            .info(&format!("{}.weight", names[0]))
            .map(|t| t.shape.clone())
            .unwrap_or_default();
        Linear::pack_with(self.threads, shape.last().copied().unwrap_or(0), &parts, dtype)
    }

    /// Reads a layer norm.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn norm(&self, name: &str, eps: f32) -> Result<Norm> {
        let bias = self.checkpoint.read_f32(&format!("{name}.bias"))?;
        Ok(Norm {
            bias: Some(bias),
            ..self.rms_norm(name, eps)?
        })
    }

    /// Reads a root-mean-square norm.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn rms_norm(&self, name: &str, eps: f32) -> Result<Norm> {
        Ok(Norm {
            weight: self.checkpoint.read_f32(&format!("{name}.weight"))?,
            bias: None,
            eps,
        })
    }
}

fn source(data: &TensorData) -> Source<'_> {
    match data {
        TensorData::F32(v) => Source::F32(v),
        TensorData::Bf16(v) => Source::Bf16(v),
        TensorData::F16(v) => Source::F16(v),
    }
}

/// Sinusoidal positions as fairseq has them: sines of all frequencies, then cosines, `[d_model]` for each position.
pub struct Sinusoids {
    d_model: usize,
    table: Vec<f32>,
}

impl Sinusoids {
    /// A table that grows as positions are asked for.
    pub fn new(d_model: usize) -> Sinusoids {
        Sinusoids {
            d_model,
            table: Vec::new(),
        }
    }

    /// The row of a position, which counts from 0 in fairseq's numbering (its first token stands at 2).
    pub fn row(&mut self, position: usize) -> &[f32] {
        let (d, half) = (self.d_model, self.d_model / 2);
        while self.table.len() <= position * d {
            let p = (self.table.len() / d) as f32;
            let step = 10000f32.ln() / (half as f32 - 1.0).max(1.0);
            let angles: Vec<f32> = (0..half).map(|k| p * (k as f32 * -step).exp()).collect();
            self.table.extend(angles.iter().map(|a| a.sin()));
            self.table.extend(angles.iter().map(|a| a.cos()));
            self.table.resize((p as usize + 1) * d, 0.0);
        }
        &self.table[position * d..][..d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinusoids_follow_the_formula() {
        let mut table = Sinusoids::new(8);
        let row = table.row(5).to_vec();
        for k in 0..4 {
            let angle = 5.0 * (-(k as f64) * 10000f64.ln() / 3.0).exp();
            assert!((f64::from(row[k]) - angle.sin()).abs() < 1e-6);
            assert!((f64::from(row[4 + k]) - angle.cos()).abs() < 1e-6);
        }
        assert_eq!(&table.row(0)[..4], [0.0; 4]);
        assert_eq!(table.row(5), row);
    }
}
