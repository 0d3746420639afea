//! The softmax of a query whose keys come in blocks.
use super::KEYS;
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
