//! Which instruction set the kernels use.
use std::sync::OnceLock;

use anyhow::{bail, Result};

use super::lanes::{Lanes, Plain};
#[cfg(target_arch = "x86_64")]
use super::lanes_x86::{Avx2, Avx512};

/// Work written over [`Lanes`], to be run with one of them.
pub(super) trait Kernel {
    /// What it gives back.
    type Out;
    /// Does the work. Everything it calls that takes an `L` must be `#[inline(always)]`, closures included, so that it is
    /// compiled with the CPU features of its caller.
    ///
    /// # Safety
    /// The CPU has the features of `L`, and what the implementing type asks for holds.
    unsafe fn run<L: Lanes>(self) -> Self::Out;
}

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 (F, BW, DQ, VL), with all its dot products or with none.
    Avx512 {
        /// Whether `vdpbf16ps` and `vpdpbusd` are there; CPUs that have the first have the second.
        bf16: bool,
    },
    /// AVX-512 with the dot product of bytes (`vpdpbusd`) only.
    Avx512Vnni,
    /// AVX2 with FMA.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Isa {
    /// The best instruction set of this machine, or the one that the environment variable `SLUICE_ISA` names (see
    /// [`Isa::name`]).
    ///
    /// # Errors
    /// If `SLUICE_ISA` names none, or one that this machine lacks.
    pub fn detect() -> Result<Isa> {
        choose(std::env::var("SLUICE_ISA").ok().as_deref(), &Isa::available())
    }

    /// All instruction sets that this machine can run, the best first.
    pub fn available() -> Vec<Isa> {
        let mut found = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let fma = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = fma
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
            if vnni && is_x86_feature_detected!("avx512bf16") {
                found.push(Isa::Avx512 { bf16: true });
            }
            if vnni {
                found.push(Isa::Avx512Vnni);
            }
            if avx512 {
                found.push(Isa::Avx512 { bf16: false });
            }
            if fma {
                found.push(Isa::Avx2);
            }
        }
        found.push(Isa::Portable);
        found
    }

    /// `avx512+bf16`, `avx512+vnni`, `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 { bf16: true } => "avx512+bf16",
            Isa::Avx512Vnni => "avx512+vnni",
            Isa::Avx512 { bf16: false } => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    /// The instruction set of the functions that take no device: the detected one.
    pub(super) fn standard() -> Isa {
        static STANDARD: OnceLock<Isa> = OnceLock::new();
        // A wrong SLUICE_ISA is reported by `Cpu::new`; bits don't depend on the choice here.
        *STANDARD.get_or_init(|| Isa::detect().unwrap_or(Isa::available()[0]))
    }

    /// Runs `kernel` on this instruction set.
    ///
    /// # Safety
    /// This machine has it (it is one of [`Isa::available`]), and what the kernel asks for holds.
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Out {
        #[cfg(target_arch = "x86_64")]
        match self {
            // SAFETY: the caller vouches for the CPU and for the kernel.
            Isa::Avx512 { bf16: true } => return unsafe { on_avx512_bf16(kernel) },
            // SAFETY: as above.
            Isa::Avx512Vnni => return unsafe { on_avx512_vnni(kernel) },
            // SAFETY: as above.
            Isa::Avx512 { bf16: false } => return unsafe { on_avx512(kernel) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { on_avx2(kernel) },
            Isa::Portable => {}
        }
        // SAFETY: plain Rust runs anywhere; the caller vouches for the kernel.
        unsafe { kernel.run::<Plain>() }
    }
}

/// The one of `available` that has the wanted name, or the first (there is always one).
fn choose(wanted: Option<&str>, available: &[Isa]) -> Result<Isa> {
    let fits = |isa: &&Isa| wanted.is_none_or(|w| w.is_empty() || w == isa.name());
    match (available.iter().find(fits), wanted.unwrap_or_default()) {
        (Some(isa), _) => Ok(*isa),
        (None, known @ ("avx512" | "avx2" | "avx512+vnni" | "avx512+bf16")) => {
            bail!(
                "SLUICE_ISA={known}: this machine has only {}; unset it",
                names(available)
            )
        }
        (None, other) => bail!(
            "SLUICE_ISA={other}: expected avx512+bf16, avx512+vnni, avx512, avx2 or portable; correct or unset it"
        ),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma")]
unsafe fn on_avx512_bf16<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the features are enabled here; the caller vouches for the kernel.
    unsafe { kernel.run::<Avx512<true, true>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
unsafe fn on_avx512_vnni<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx512<true, false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn on_avx512<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx512<false, false>>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn on_avx2<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2>() }
}

pub(super) fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_chosen_unless_another_is_named() {
        let all = [
            Isa::Avx512 { bf16: true },
            Isa::Avx512Vnni,
            Isa::Avx512 { bf16: false },
            Isa::Avx2,
            Isa::Portable,
        ];
        for (wanted, found) in [
            (None, 0),
            (Some(""), 0),
            (Some("avx512+vnni"), 1),
            (Some("avx512"), 2),
            (Some("avx2"), 3),
            (Some("portable"), 4),
        ] {
            assert_eq!(choose(wanted, &all).unwrap(), all[found], "{wanted:?}");
        }
        let refusal = |wanted| choose(Some(wanted), &all[3..]).unwrap_err().to_string();
        assert!(refusal("avx512").contains("has only avx2, portable"));
        assert!(refusal("sse2").contains("avx512, avx2 or portable"));
    }
}
