//! Which instruction set the kernels use.
use anyhow::{bail, Result};

/// An instruction set that the kernels are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 (F, BW, DQ, VL), with or without its bfloat16 dot product.
    Avx512 {
        /// Whether `vdpbf16ps` is there.
        bf16: bool,
    },
    /// AVX2 with FMA.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl Isa {
    /// The best instruction set of this machine, or the one that the environment variable `SLUICE_ISA` names
    /// (`avx512`, `avx2` or `portable`).
    ///
    /// # Errors
    /// If `SLUICE_ISA` names none, or one that this machine lacks.
    pub fn detect() -> Result<Isa> {
        let best = Isa::available();
        match std::env::var("SLUICE_ISA").ok().as_deref() {
            None | Some("") => Ok(best[0]),
            Some(name) => match best.iter().find(|isa| isa.name() == name || isa.family() == name) {
                Some(isa) => Ok(*isa),
                None if ["avx512", "avx2", "portable"].contains(&name) => {
                    bail!("SLUICE_ISA={name}: this machine has only {}; unset it", names(&best))
                }
                None => bail!("SLUICE_ISA={name}: expected avx512, avx2 or portable; correct or unset it"),
            },
        }
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
            if avx512 && is_x86_feature_detected!("avx512bf16") {
                found.push(Isa::Avx512 { bf16: true });
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

    /// `avx512+bf16`, `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 { bf16: true } => "avx512+bf16",
            Isa::Avx512 { bf16: false } => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Portable => "portable",
        }
    }

    fn family(self) -> &'static str {
        self.name().split('+').next().unwrap_or_default()
    }
}

fn names(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}
