//! The CPU device: packed kernels with one order of sums, on a pool of threads.
mod activation;
mod attention;
mod clamp;
mod exp;
mod gemm;
mod grouped;
mod head;
mod isa;
mod join;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod layout;
mod linear;
mod logits;
mod memory;
mod norm;
mod pool;
mod quantised;
mod rotary;
mod score;
mod source;

pub use activation::Activation;
pub use attention::{Attend, Bias, Element, KeyRows};
pub use exp::{exp, exp_slice, log_sum_exp};
pub use grouped::Group;
pub use head::{top_k, NotANumber, Tops};
pub use isa::Isa;
pub use layout::{Dtype, Layout};
pub use linear::Linear;
pub use quantised::{dequantise, quantise};
pub use rotary::Rotary;
pub use score::{Scored, Want};
pub use source::{Part, Source, Strided};

use std::sync::{Mutex, PoisonError};

use anyhow::{ensure, Result};

/// What a product does with its sums and with what `out` holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Epilogue {
    /// `out = x W^T + b`
    Store,
    /// `out = max(x W^T + b, 0)`
    Relu,
    /// `out += x W^T + b`
    Add,
    /// `out = act(x G^T + b) * (x U^T + b')` (see [`Activation`]): for weights of [`Linear::pack_gated`], and the only one
    /// for those.
    Gated(Activation),
}

/// The CPU with its threads.
pub struct Cpu {
    isa: Isa,
    pool: pool::Pool,
    /// The rows of the int8 product in hand.
    quantised: Mutex<quantised::QuantisedRows>,
}

impl Cpu {
    /// A device of `threads` threads (the calling thread included, so at least one) with the detected instruction set.
    ///
    /// # Errors
    /// If `SLUICE_ISA` is wrong, `threads` is 0, or threads cannot be started.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with_isa(threads, Isa::detect()?)
    }

    /// As [`Cpu::new`], with an instruction set of the caller's choice.
    ///
    /// # Errors
    /// As [`Cpu::new`]; and if this machine lacks the instruction set.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu> {
        ensure!(
            Isa::available().contains(&isa),
            "instruction set {} is not on this machine, expected one of {}; let it be detected",
            isa.name(),
            isa::names(&Isa::available())
        );
        Ok(Cpu {
            isa,
            pool: pool::Pool::start(threads)?,
            quantised: Mutex::default(),
        })
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Calls `each(row, elements)` for the rows of `x` `[rows, stride]`, of which each takes about `nanoseconds`.
    fn for_rows(&self, x: &mut [f32], stride: usize, nanoseconds: f64, each: impl Fn(usize, &mut [f32]) + Sync) {
        let rows = x.len().checked_div(stride).unwrap_or(0);
        let block = ((8_192.0 / nanoseconds) as usize).max(1);
        let x = pool::Shared(x.as_mut_ptr());
        self.for_each(rows.div_ceil(block), rows as f64 * nanoseconds, |i| {
            for row in i * block..rows.min((i + 1) * block) {
                // SAFETY: rows are disjoint and inside `x`, which is borrowed until all are done.
                each(row, unsafe {
                    std::slice::from_raw_parts_mut(x.at(row * stride), stride)
                });
            }
        });
    }

    /// See [`pool::Pool::for_each`].
    fn for_each(&self, tasks: usize, nanoseconds: f64, each: impl Fn(usize) + Sync) {
        self.pool.for_each(tasks, nanoseconds, each);
    }

    /// Calls `each` with every item and its number, on all threads where `nanoseconds` of work (on one thread) are worth
    /// it. Threads take the next item as they get free.
    pub fn for_each_of<T: Send>(&self, items: &mut [T], nanoseconds: f64, each: impl Fn(usize, &mut T) + Sync) {
        let (count, items) = (items.len(), pool::Shared(items.as_mut_ptr()));
        self.for_each(count, nanoseconds, |i| {
            // SAFETY: items are borrowed until all are done, and each number comes once.
            each(i, unsafe { &mut *items.at(i) });
        });
    }

    fn take_quantised(&self) -> quantised::QuantisedRows {
        std::mem::take(&mut self.quantised.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep_quantised(&self, rows: quantised::QuantisedRows) {
        *self.quantised.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }
}
