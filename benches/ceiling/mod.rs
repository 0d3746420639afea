//! What this machine can do at most: arithmetic in registers alone, and reading from memory.
use std::hint::black_box;
use std::sync::Barrier;
use std::time::Instant;

/// Chains of sums that don't wait for each other: more than an instruction takes cycles.
const CHAINS: usize = 12;
/// Steps of a thread in one measurement, some milliseconds.
const STEPS: usize = 1 << 19;
/// How often that is done.
const TIMES: usize = 5;
/// What is read in one measurement: more than any cache holds.
const READ: usize = 192 << 20;

/// Places that a thread reads from in turn: a CPU fetches ahead at each of them.
const STREAMS: usize = 4;

/// The instruction that a product kernel consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Float32 fused multiply-add.
    Fma,
    /// `vdpbf16ps`: two products of bfloat16 and their sum a lane.
    DotPairs,
    /// `vpdpbusd`: four products of bytes and their sum a lane.
    DotQuads,
}

impl Unit {
    /// All of them.
    pub const ALL: [Unit; 3] = [Unit::Fma, Unit::DotPairs, Unit::DotQuads];

    /// What the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Unit::Fma => "float32 fused multiply-add",
            Unit::DotPairs => "bfloat16 pairs (vdpbf16ps)",
            Unit::DotQuads => "int8 quads (vpdpbusd)",
        }
    }

    /// Operations a second of `threads` threads that do nothing else; none where the CPU lacks the instruction.
    #[cfg(target_arch = "x86_64")]
    pub fn peak(self, threads: usize) -> Option<f64> {
        let (run, lanes): (unsafe fn(), usize) = match self {
            Unit::Fma if is_x86_feature_detected!("avx512f") => (x86::fma_512, 16),
            Unit::Fma if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") => (x86::fma_256, 8),
            Unit::DotPairs if is_x86_feature_detected!("avx512bf16") => (x86::dot_pairs, 32),
            Unit::DotQuads if is_x86_feature_detected!("avx512vnni") => (x86::dot_quads, 64),
            _ => return None,
        };
        // SAFETY: the instruction set was found above.
        let seconds = seconds_on(threads, |_| unsafe { run() });
        Some((2 * lanes * CHAINS * STEPS * threads) as f64 / seconds)
    }

    /// As above, on a CPU that has none of these instructions.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn peak(self, _threads: usize) -> Option<f64> {
        None
    }
}

/// A block of memory that is read again and again.
pub struct Memory(Vec<u64>);

impl Memory {
    /// Takes it.
    pub fn new() -> Memory {
        Memory((0..READ as u64 / 8).collect())
    }

    /// Bytes a second that `threads` threads read together.
    pub fn bandwidth(&self, threads: usize) -> f64 {
        let parts: Vec<&[u64]> = self.0.chunks(self.0.len() / threads).collect();
        let seconds = seconds_on(threads, |thread| {
            let streams: Vec<&[u64]> = parts[thread].chunks(parts[thread].len() / STREAMS).collect();
            let mut sums = [0; 8];
            for at in (0..streams[0].len() - 8).step_by(8) {
                for stream in &streams[..STREAMS] {
                    sums.iter_mut().zip(&stream[at..at + 8]).for_each(|(sum, x)| *sum ^= x);
                }
            }
            black_box(sums);
        });
        READ as f64 / seconds
    }
}

/// The least time until all of `threads` threads have done `work`, each called with its number. The same threads do it several
/// times: new ones may share a core until the system has spread them.
fn seconds_on(threads: usize, work: impl Fn(usize) + Sync) -> f64 {
    let together = Barrier::new(threads);
    let time = || {
        // Before anybody begins: this thread may be the last to be told.
        let start = Instant::now();
        together.wait();
        work(0);
        together.wait();
        start.elapsed().as_secs_f64()
    };
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let (work, together) = (&work, &together);
            scope.spawn(move || {
                for _ in 0..TIMES {
                    together.wait();
                    work(thread);
                    together.wait();
                }
            });
        }
        (0..TIMES).map(|_| time()).fold(f64::INFINITY, f64::min)
    })
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{black_box, CHAINS, STEPS};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f")]
    pub fn fma_512() {
        let (a, b) = black_box((_mm512_set1_ps(1e-3), _mm512_set1_ps(1e-3)));
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn fma_256() {
        let (a, b) = black_box((_mm256_set1_ps(1e-3), _mm256_set1_ps(1e-3)));
        let mut sums = [_mm256_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(a, b, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    pub fn dot_pairs() {
        let one = black_box(_mm512_set1_ps(1e-3));
        let a = _mm512_cvtne2ps_pbh(one, one);
        let mut sums = [_mm512_setzero_ps(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, a, a);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    pub fn dot_quads() {
        let (a, b) = black_box((_mm512_set1_epi8(1), _mm512_set1_epi8(-1)));
        let mut sums = [_mm512_setzero_si512(); CHAINS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, a, b);
            }
        }
        black_box(sums);
    }
}
