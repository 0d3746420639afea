//! Blocks that transformer families share: norms, attention weights, dense feed-forward layers, positions.

use crate::checkpoint::{Checkpoint, TensorData};
use crate::device::{Activation, Cpu, Dtype, Epilogue, Layout, Linear, Part, Source};
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

    /// Multiplies what it gives by a factor.
    pub fn scale(&mut self, factor: f32) {
        let bias = self.bias.iter_mut().flatten();
        self.weight.iter_mut().chain(bias).for_each(|w| *w *= factor);
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

/// A gated feed-forward layer, `x + down(act(gate(norm(x))) * up(norm(x)))` without the norm.
pub struct Gated {
    /// Gates and up projections, `[d_ff, d_model]`.
    pub up: Linear,
    /// `[d_model, d_ff]`
    pub down: Linear,
    /// What gates do.
    pub activation: Activation,
}

impl Gated {
    /// Adds the layer's output for `normed` `[rows, d_model]` to `x`; `hidden` is scratch.
    pub fn apply(&self, device: &Cpu, normed: &[f32], hidden: &mut Vec<f32>, x: &mut [f32]) {
        let rows = x.len() / self.down.outputs();
        let hidden = crate::moe::layer::sized(hidden, rows * self.up.outputs());
        device.linear(normed, &self.up, Epilogue::Gated(self.activation), hidden);
        device.linear(hidden, &self.down, Epilogue::Add, x);
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.up.bytes() + self.down.bytes()
    }
}

/// An embedding that is no output projection as well, so that its rows need not be packed.
pub struct Table {
    rows: TensorData,
    width: usize,
}

impl Table {
    /// Row `row`, `[width]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        let range = row * self.width..(row + 1) * self.width;
        match &self.rows {
            TensorData::F32(rows) => out.copy_from_slice(&rows[range]),
            TensorData::Bf16(rows) => out.iter_mut().zip(&rows[range]).for_each(|(o, w)| *o = w.to_f32()),
            TensorData::F16(rows) => out.iter_mut().zip(&rows[range]).for_each(|(o, w)| *o = w.to_f32()),
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.rows.len() * self.rows.dtype().bytes()
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
        let read = names.iter().map(|name| self.read(name)).collect::<Result<Vec<_>>>()?;
        let parts: Vec<Part> = read.iter().map(Module::part).collect();
        Linear::pack_with(self.threads, self.inputs(names[0]), &parts, dtype)
    }

    /// Packs a module into memory that has its layout. Bytes that were read.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn repack(&self, name: &str, into: &mut Linear) -> Result<u64> {
        let read = self.read(name)?;
        into.repack(self.threads, &[read.part()], &[])?;
        Ok(read.bytes())
    }

    /// As [`repack`](Self::repack), of gates and up projections.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn repack_gated(&self, [gate, up]: [&str; 2], into: &mut Linear) -> Result<u64> {
        let (gates, ups) = (self.read(gate)?, self.read(up)?);
        into.repack(self.threads, &[gates.part()], &[ups.part()])?;
        Ok(gates.bytes() + ups.bytes())
    }

    fn read(&self, name: &str) -> Result<Module> {
        let bias = format!("{name}.bias");
        let there = self.checkpoint.info(&bias).is_some();
        Ok(Module {
            weights: self.checkpoint.read(&format!("{name}.weight"))?,
            bias: there.then(|| self.checkpoint.read_f32(&bias)).transpose()?,
        })
    }

    /// Length of a module's input rows.
    fn inputs(&self, name: &str) -> usize {
        let shape = self.checkpoint.info(&format!("{name}.weight")).map(|t| &t.shape);
        shape.and_then(|shape| shape.last()).copied().unwrap_or(0)
    }

    /// Reads a layer norm.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn norm(&self, name: &str, eps: f32) -> Result<Norm> {
        Ok(Norm {
            bias: Some(self.checkpoint.read_f32(&format!("{name}.bias"))?),
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

    /// Reads an embedding, as fine as it is stored or in bfloat16 where weights are no finer.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn table(&self, name: &str) -> Result<Table> {
        let rows = self.checkpoint.read(name)?;
        let shape = self.checkpoint.info(name).map(|t| t.shape.clone());
        Ok(Table {
            rows: match self.dtype {
                Dtype::F32 => rows,
                Dtype::Bf16 | Dtype::Int8 => TensorData::Bf16(rows.to_bf16()),
            },
            width: shape.unwrap_or_default().last().copied().unwrap_or(0),
        })
    }

    /// Packs the weights of a gated feed-forward layer: the modules of gates, up and down projections.
    ///
    /// # Errors
    /// As [`linear`](Self::linear).
    pub fn gated(&self, [gate, up, down]: [&str; 3], activation: Activation) -> Result<Gated> {
        let (gates, ups) = (self.read(gate)?, self.read(up)?);
        Ok(Gated {
            up: Linear::pack_gated(
                self.threads,
                self.inputs(gate),
                &[gates.part()],
                &[ups.part()],
                self.dtype,
            )?,
            down: self.linear(&[down])?,
            activation,
        })
    }
}

/// Bytes of memory that reading and packing an expert of these layouts takes besides it; `probe` is one of its tensors.
pub fn staging(checkpoint: &Checkpoint, probe: &str, layouts: [Layout; 2]) -> u64 {
    let weights = |l: Layout| l.inputs * l.outputs * if l.gated { 2 } else { 1 };
    let elements: usize = layouts.into_iter().map(weights).sum();
    let bytes = elements * checkpoint.bytes_an_element(probe);
    (bytes + crate::checkpoint::READ_BLOCK.min(bytes)) as u64
}

/// A module as it was read.
struct Module {
    weights: TensorData,
    bias: Option<Vec<f32>>,
}

impl Module {
    fn bytes(&self) -> u64 {
        let bias = self.bias.as_ref().map_or(0, |bias| bias.len() * size_of::<f32>());
        (self.weights.len() * self.weights.dtype().bytes() + bias) as u64
    }

    fn part(&self) -> Part<'_> {
        Part {
            weights: source(&self.weights),
            bias: self.bias.as_deref(),
        }
    }
}

/// What was read, to be packed.
pub fn source(data: &TensorData) -> Source<'_> {
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
