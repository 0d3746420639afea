//! Weighted sums of the experts' outputs, in the order of the gate's choices.

use super::dispatch::Output;
use super::layer::{MoeBuffers, MoeLayer};
use crate::device::Cpu;

/// Elements that a thread copies or sums at a time.
const BLOCK: usize = 1 << 14;

/// Nanoseconds that an element takes, roughly: its way from memory.
pub(super) const ELEMENT: f64 = 0.4;

/// Tokens that make a block of work, `rows` rows of `d` elements each.
pub(super) fn block(rows: usize, d: usize) -> usize {
    (BLOCK / (rows * d).max(1)).max(1)
}

impl MoeLayer {
    /// `x += scale * sum over choices of weight * output`, in the gate's order, on the device's threads.
    pub(super) fn combine(&self, device: &Cpu, b: &MoeBuffers, x: &mut [f32], d: usize) {
        let k = b.routes.top_k;
        let (block, nanoseconds) = (block(k, d), (x.len() * k) as f64 * ELEMENT);
        let mut blocks: Vec<&mut [f32]> = x.chunks_mut(block * d).collect();
        device.for_each_of(&mut blocks, nanoseconds, |i, rows| {
            for (t, row) in (i * block..).zip(rows.chunks_exact_mut(d)) {
                self.combine_token(b, t, row);
            }
        });
    }

    fn combine_token(&self, b: &MoeBuffers, t: usize, x: &mut [f32]) {
        let (k, d) = (b.routes.top_k, x.len());
        let add = |x: &mut [f32], sum: &[f32]| x.iter_mut().zip(sum).for_each(|(x, y)| *x += self.scale * y);
        let output = |j: usize| match b.send.outputs[t * k + j] {
            Output::Here(a) => &b.outputs[b.work.place[a as usize] as usize * d..][..d],
            Output::Back(r) | Output::Summed(r) => &b.returned[r as usize * d..][..d],
        };
        match b.send.outputs[t * k] {
            Output::Summed(_) => add(x, output(0)),
            _ => weighted_sum(k, |j| (b.routes.weights[t * k + j], output(j)), add, x),
        }
    }
}

/// Hands `put` the sum of `weight * row` over `terms` terms, piece by piece, with the pieces of `out` they belong to.
///
/// One order for every caller (first term stored, later ones added): a sum made on another rank has the same bits.
pub(super) fn weighted_sum<'a>(
    terms: usize,
    term: impl Fn(usize) -> (f32, &'a [f32]),
    put: impl Fn(&mut [f32], &[f32]),
    out: &mut [f32],
) {
    const PIECE: usize = 64;
    let mut sum = [0f32; PIECE];
    for (i, piece) in out.chunks_mut(PIECE).enumerate() {
        let sum = &mut sum[..piece.len()];
        for j in 0..terms {
            let (weight, row) = term(j);
            let row = &row[i * PIECE..][..sum.len()];
            match j {
                0 => sum.iter_mut().zip(row).for_each(|(s, v)| *s = weight * v),
                _ => sum.iter_mut().zip(row).for_each(|(s, v)| *s += weight * v),
            }
        }
        put(piece, sum);
    }
}
