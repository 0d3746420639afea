//! What keys and values are held in.
use half::bf16;

use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::linear::round_to_bf16;

mod sealed {
    use super::super::{Attend, Cpu};

    /// Only the types of this file are read by the kernels.
    pub trait Sealed: Sized {
        /// Attention over rows of it. No generic function, so that kernels are compiled in this crate alone.
        fn attend(cpu: &Cpu, a: Attend<'_, Self>);
    }

    impl Sealed for f32 {
        fn attend(cpu: &Cpu, a: Attend<'_, f32>) {
            cpu.attend_all(a);
        }
    }

    impl Sealed for half::bf16 {
        fn attend(cpu: &Cpu, a: Attend<'_, half::bf16>) {
            cpu.attend_all(a);
        }
    }
}

/// The type of keys and values: `f32`, or [`bf16`], which is widened as it is read.
pub trait Element: Copy + Send + Sync + sealed::Sealed {
    /// Whether it is [`bf16`].
    const BF16: bool;
    /// The nearest value to `x`, ties to even.
    fn round(x: f32) -> Self;
}

impl Element for f32 {
    const BF16: bool = false;

    #[inline(always)]
    fn round(x: f32) -> f32 {
        x
    }
}

impl Element for bf16 {
    const BF16: bool = true;

    #[inline(always)]
    fn round(x: f32) -> bf16 {
        bf16::from_bits((round_to_bf16(x) >> 16) as u16)
    }
}

/// 16 elements from `p` on.
///
/// # Safety
/// As for all of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn load<L: Lanes, T: Element>(p: *const T) -> L {
    match T::BF16 {
        true => L::load_bf16(p.cast()),
        false => L::load(p.cast()),
    }
}

/// The first `n < 16` elements from `p` on; zero in the other lanes.
///
/// # Safety
/// As for all of [`Lanes`].
#[inline(always)]
pub(super) unsafe fn load_part<L: Lanes, T: Element>(p: *const T, n: usize) -> L {
    if !T::BF16 {
        return L::load_part(p.cast(), n, 0.0);
    }
    let mut lanes = [0; 16];
    std::ptr::copy_nonoverlapping(p.cast::<u16>(), lanes.as_mut_ptr(), n);
    L::load_bf16(lanes.as_ptr())
}
