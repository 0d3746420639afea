//! The CPU device: packed kernels with one order of sums, on a pool of threads.
mod attention;
mod exp;
mod gemm;
mod grouped;
mod head;
mod isa;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod lanes_x86;
mod linear;
mod memory;
mod norm;
mod pool;
mod quantised;

pub use attention::{Attend, Bias, Element, KeyRows};
pub use exp::{exp, exp_slice, log_sum_exp};
pub use grouped::Group;
pub use head::{top_k, NotANumber, Tops};
pub use isa::Isa;
pub use linear::{Dtype, Linear, Part, Source};
pub use quantised::{dequantise, quantise};

use std::sync::{Mutex, PoisonError};

use anyhow::{ensure, Result};

/// What a product does with its sums and with what `out` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// `out = x W^T + b`
    Store,
    /// `out = max(x W^T + b, 0)`
    Relu,
    /// `out += x W^T + b`
    Add,
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

    /// See [`pool::Pool::for_each`].
    fn for_each(&self, tasks: usize, nanoseconds: f64, each: impl Fn(usize) + Sync) {
        self.pool.for_each(tasks, nanoseconds, each);
    }

    fn take_quantised(&self) -> quantised::QuantisedRows {
        std::mem::take(&mut self.quantised.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn keep_quantised(&self, rows: quantised::QuantisedRows) {
        *self.quantised.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }
}
