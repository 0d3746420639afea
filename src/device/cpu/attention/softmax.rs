//! The softmax of a query whose keys come in blocks.
use std::ops::Range;

use super::{Attend, KEYS};
use crate::device::cpu::exp::{exp_and_sum, exp_lanes, finite_or_zero, max_of};
use crate::device::cpu::lanes::Lanes;

/// What is known of a query's softmax after some blocks of keys.
#[derive(Clone, Copy)]
pub(super) struct Running {
    /// The largest score so far.
    max: f32,
    /// Sum of `exp(score - max)` so far.
    sum: f32,
}

impl Running {
    /// Before the first block.
    pub(super) const START: Running = Running {
        max: f32::NEG_INFINITY,
        sum: 0.0,
    };

    /// After one score whose value counts for nothing.
    #[inline(always)]
    pub(super) fn after(score: f32) -> Running {
        Running { max: score, sum: 1.0 }
    }

    /// Takes a block of scores in, a multiple of 16 of them with `-inf` for keys not seen; they become
    /// `exp(score - max)`. Returns the factor that corrects what was summed before.
    #[inline(always)]
    pub(super) unsafe fn take<L: Lanes>(&mut self, scores: &mut [f32]) -> f32 {
        debug_assert!(scores.len() <= KEYS && scores.len().is_multiple_of(16));
        let largest = max_of::<L>(scores);
        let max = if largest > self.max { largest } else { self.max };
        // All -inf: subtract 0, since -inf - -inf is NaN.
        let shift = finite_or_zero(max);
        let factor = match self.max == f32::NEG_INFINITY {
            true => 0.0,
            false => exp_lanes(L::splat(self.max - shift)).to_array()[0],
        };
        let at = scores.as_mut_ptr();
        let sum = exp_and_sum::<L>(at, scores.len(), shift, at);
        *self = Running {
            max,
            sum: self.sum * factor + sum,
        };
        factor
    }

    /// What the weighted sum of values is multiplied by in the end; 0 where all scores were `-inf`.
    #[inline(always)]
    pub(super) fn inverse(&self) -> f32 {
        match self.sum == 0.0 {
            true => 0.0,
            false => 1.0 / self.sum,
        }
    }
}

/// A head of a query, a block of keys, and those that the query sees of it, at least one, by their places in the block.
pub(super) struct Weigh {
    pub query: usize,
    pub head: usize,
    /// First key of the block among those of the query.
    pub start: usize,
    pub keys: Range<usize>,
}

impl Weigh {
    /// Makes `exp(score - max)` of the block's scaled products `scores`, each at its place, and takes them into `softmax`.
    /// Returns the factor that corrects what was summed before.
    #[inline(always)]
    pub(super) unsafe fn run<L: Lanes, T>(self, a: &Attend<'_, T>, scores: &mut [f32], softmax: &mut Running) -> f32 {
        let Range { start: first, end } = self.keys;
        let whole = first / 16 * 16..end.next_multiple_of(16);
        let scores = &mut scores[whole.clone()];
        if let Some(bias) = &a.bias {
            let distances = bias.of(self.head, self.query);
            for (i, scores) in scores.chunks_exact_mut(16).enumerate() {
                let bias = distances.sixteen::<L>(self.start + whole.start + i * 16);
                L::load(scores.as_ptr()).add(bias).store(scores.as_mut_ptr());
            }
        }
        scores[..first - whole.start].fill(f32::NEG_INFINITY);
        if end < whole.end {
            let last = scores.as_mut_ptr().add(scores.len() - 16);
            L::load_part(last, end % 16, f32::NEG_INFINITY).store(last);
        }
        softmax.take::<L>(scores)
    }
}
