//! How likely given outputs are.
use std::sync::atomic::{AtomicU32, Ordering};

use super::gemm::Product;
use super::head::Tops;
use super::isa::Kernel;
use super::lanes::Lanes;
use super::linear::PANEL;
use super::pool::Shared;
use super::{Cpu, Epilogue, Group, Linear};

/// What [`Cpu::score`] should find besides log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Want {
    /// Ranks of the targets.
    pub ranks: bool,
    /// How many of the best outputs.
    pub top: usize,
}

/// What [`Cpu::score`] found; the buffers keep their memory from call to call.
#[derive(Debug, Default)]
pub struct Scored {
    tops: Tops,
    /// `[rows]`: the bits of the targets' logits.
    logits: Vec<AtomicU32>,
    /// `[rows]`: outputs ahead of the target; nothing where ranks were not wanted.
    ahead: Vec<AtomicU32>,
}

impl Scored {
    /// Log-probability of a row's target, in nats: its logit minus [`log_sum_exp`](super::log_sum_exp) of all logits. NaN if
    /// they hold one.
    pub fn log_probability(&self, row: usize) -> f32 {
        f32::from_bits(self.logits[row].load(Ordering::Relaxed)) - self.tops.log_sum(row)
    }

    /// Rank of a row's target among all outputs, the likeliest 1, of equal logits the lower output first; nothing where
    /// ranks were not wanted, or the logits hold a NaN.
    pub fn rank(&self, row: usize) -> Option<u32> {
        let ahead = self.ahead.get(row)?.load(Ordering::Relaxed);
        (!self.tops.log_sum(row).is_nan()).then_some(ahead + 1)
    }

    /// As [`Tops::best`]; a logit minus [`Scored::log_sum`] is the log-probability.
    pub fn best(&self, row: usize) -> &[(f32, u32)] {
        self.tops.best(row)
    }

    /// As [`Tops::log_sum`].
    pub fn log_sum(&self, row: usize) -> f32 {
        self.tops.log_sum(row)
    }
}

impl Cpu {
    /// Scores each row of `x` `[rows, d]` against `w` `[vocabulary, d]` for its target in `targets` `[rows]`. As in
    /// [`Cpu::head`] logits are used chunk by chunk, and all bits are those that whole rows of logits would give: the
    /// target's log-probability is the one that a search finds for the same output.
    ///
    /// For ranks the targets' logits are computed beforehand, each with the 31 outputs beside it: about 1 % more work.
    ///
    /// # Panics
    /// If `x` has not as many rows as there are targets, or a target is no output of `w`.
    pub fn score(&self, x: &[f32], w: &Linear, targets: &[u32], want: Want, found: &mut Scored) {
        assert_eq!(x.len(), targets.len() * w.inputs(), "score: a row of x for each target");
        if let Some(target) = targets.iter().find(|t| **t as usize >= w.outputs()) {
            panic!("score: target {target} of {} outputs", w.outputs());
        }
        let Scored { tops, logits, ahead } = found;
        logits.resize_with(targets.len(), AtomicU32::default);
        ahead.clear();
        if want.ranks {
            ahead.resize_with(targets.len(), AtomicU32::default);
            self.target_logits(x, w, targets, logits);
        }
        self.look(
            x,
            w,
            want.top,
            |row, first, chunk| {
                let (target, logit) = (targets[row] as usize, &logits[row]);
                if want.ranks {
                    let lower = target.saturating_sub(first).min(chunk.len());
                    let logit = f32::from_bits(logit.load(Ordering::Relaxed));
                    // SAFETY: a device's instruction set is available.
                    let count = unsafe { self.isa().run(Ahead { chunk, lower, logit }) };
                    ahead[row].fetch_add(count, Ordering::Relaxed);
                } else if let Some(found) = target.checked_sub(first).and_then(|i| chunk.get(i)) {
                    logit.store(found.to_bits(), Ordering::Relaxed);
                }
            },
            tops,
        );
    }

    /// The targets' logits, by the kernel that computes all.
    fn target_logits(&self, x: &[f32], w: &Linear, targets: &[u32], logits: &[AtomicU32]) {
        let group = Group {
            weights: w,
            rows: 0..targets.len(),
        };
        let quantised = self.quantise_groups(x, None, &[group]);
        let each = (w.inputs() * PANEL) as f64 * 0.3;
        let block = ((8_192.0 / each) as usize).max(1);
        self.for_each(targets.len().div_ceil(block), each * targets.len() as f64, |task| {
            for row in task * block..targets.len().min((task + 1) * block) {
                let target = targets[row] as usize;
                let (panel, mut out) = (target / PANEL, [0.0; PANEL]);
                let product = Product {
                    x,
                    source: None,
                    quantised: &quantised,
                    weights: w,
                    rows: row..row + 1,
                    panels: panel..panel + 1,
                    epilogue: Epilogue::Store,
                    out: Shared(out.as_mut_ptr()),
                    stride: PANEL,
                    origin: (row, panel * PANEL),
                };
                // SAFETY: a device's instruction set is available; row and panel are there; the buffer is this task's.
                unsafe { product.compute(self.isa()) };
                logits[row].store(out[target % PANEL].to_bits(), Ordering::Relaxed);
            }
        });
        self.keep_quantised(quantised);
    }
}

/// How many of a chunk of logits come before `logit`: larger ones, and equal ones among the first `lower`.
struct Ahead<'a> {
    chunk: &'a [f32],
    lower: usize,
    logit: f32,
}

impl Kernel for Ahead<'_> {
    type Out = u32;

    /// Plain loops, which the compiler vectorises.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> u32 {
        let (lower, higher) = self.chunk.split_at(self.lower);
        let lower: u32 = lower.iter().map(|x| u32::from(*x >= self.logit)).sum();
        lower + higher.iter().map(|x| u32::from(*x > self.logit)).sum::<u32>()
    }
}
