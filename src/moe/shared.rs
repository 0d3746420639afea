//! The expert that every token has beside the routed ones (Qwen2-MoE; DeepSeekMoE, section 3.2).

use super::combine::{block, ELEMENT};
use super::layer::{sized, Expert, MoeBuffers};
use crate::device::{exp_slice, Cpu, Epilogue, Linear};

/// A shared expert. Every rank holds it whole and runs it on its own tokens, so that nothing of it travels.
pub struct SharedExpert {
    /// Its width may differ from that of the routed ones.
    pub expert: Expert,
    /// `[1, d_model]`: the sigmoid of its product is a factor on the output (Qwen2-MoE). The output must have no bias then.
    pub gate: Option<Linear>,
}

impl SharedExpert {
    /// Adds the expert's output for `normed` to `x`, both `[tokens, d_model]`.
    pub(super) fn add(&self, device: &Cpu, epilogue: Epilogue, b: &mut MoeBuffers, normed: &[f32], x: &mut [f32]) {
        let (tokens, width) = (x.len() / self.expert.down.outputs(), self.expert.up.outputs());
        let hidden = sized(&mut b.hidden, tokens * width);
        device.linear(normed, &self.expert.up, epilogue, hidden);
        if let Some(gate) = &self.gate {
            let factors = sized(&mut b.logits, tokens);
            device.linear(normed, gate, Epilogue::Store, factors);
            factors.iter_mut().for_each(|f| *f = -*f);
            exp_slice(factors);
            factors.iter_mut().for_each(|f| *f = 1.0 / (1.0 + *f));
            scale(device, hidden, width, factors);
        }
        // The factor is taken to the inputs of a product without bias, which then adds to `x` by itself.
        device.linear(hidden, &self.expert.down, Epilogue::Add, x);
    }
}

/// Multiplies each row of `x` `[rows, d]` by its factor.
fn scale(device: &Cpu, x: &mut [f32], d: usize, factors: &[f32]) {
    let (block, nanoseconds) = (block(1, d), x.len() as f64 * ELEMENT);
    let mut blocks: Vec<&mut [f32]> = x.chunks_mut(block * d).collect();
    device.for_each_of(&mut blocks, nanoseconds, |i, rows| {
        for (row, factor) in rows.chunks_exact_mut(d).zip(&factors[i * block..]) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    });
}
