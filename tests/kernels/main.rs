//! The CPU kernels beside their slow twins: equal to the last bit for any number of rows, grouping, thread count and, in
//! float32 and int8, instruction set.
mod attention;
mod gated;
mod head;
mod int8;
mod joined;
mod norms;
mod products;
mod rotary;
mod score;

use sluicegate::device::{Cpu, Dtype, Isa, Linear, Part, Source};

/// One device of one thread for each instruction set of this machine.
fn devices() -> Vec<Cpu> {
    Isa::available()
        .into_iter()
        .map(|isa| Cpu::with_isa(1, isa).unwrap())
        .collect()
}

/// Numbers without a pattern, from -1 to 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn pack(k: usize, w: &[f32], bias: Option<&[f32]>, dtype: Dtype) -> Linear {
    Linear::pack(
        k,
        &[Part {
            weights: Source::F32(w),
            bias,
        }],
        dtype,
    )
    .unwrap()
}

/// The promised chain: `acc = fma(x[k], w[k], acc)` from zero, then the bias.
fn twin(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize) -> Vec<f32> {
    let chain = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0, |acc, (x, w)| x.mul_add(*w, acc));
    let sum = |x, (j, w)| chain(x, w) + bias.map_or(0.0, |b| b[j]);
    x.chunks_exact(k)
        .flat_map(|x| w.chunks_exact(k).enumerate().map(move |w| sum(x, w)))
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}
