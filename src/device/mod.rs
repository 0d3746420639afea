//! Where the arithmetic runs. [`Cpu`] is always there.
//!
//! The promise of this room is **one order of sums**: every element of a product is one chain
//! `acc = fma(a[k], b[k], acc)` for k = 0..K from zero, then the bias, whatever the number of rows, their grouping, the
//! thread count or the tile they fall in; norms, softmax and other reductions run over 16 fixed lanes, which depend only
//! on the row's own length. So a row's result is the same to the last bit alone or among a thousand, and the float32
//! kernels of all instruction sets agree exactly. Int8 products are sums of whole numbers, scaled by `f32(sum) * row scale *
//! output scale`, then the bias, and agree as exactly.
mod cpu;

pub use cpu::{
    dequantise, exp, exp_slice, log_sum_exp, quantise, top_k, Activation, Attend, Bias, Cpu, Dtype, Element, Epilogue,
    Group, Isa, KeyRows, Layout, Linear, NotANumber, Part, Rotary, Scored, Source, Strided, Tops, Want,
};
