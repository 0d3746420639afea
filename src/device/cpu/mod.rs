//! The CPU device: packed kernels with one order of sums, on a pool of threads.
mod isa;
mod linear;

pub use isa::Isa;
pub use linear::{Dtype, Linear, Part, Source};

use std::ops::Range;

use anyhow::Result;

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

/// One expert's share of a grouped product.
pub struct Group<'a> {
    /// The expert's weights.
    pub weights: &'a Linear,
    /// Its rows of `out` (and of `source`, where there is one).
    pub rows: Range<usize>,
}

/// Which rows of the keys and values a query attends to, in order.
#[derive(Clone, Debug)]
pub enum KeyRows<'a> {
    /// First row and count.
    Range(usize, usize),
    /// The rows one by one.
    Table(&'a [u32]),
}

/// One attention over cached or fresh keys and values. Head `h` of query `i` is
/// `softmax(scale * q . k over its key rows, in order) . v`; a query without key rows gives zeros.
pub struct Attend<'a> {
    /// Queries: head `h` of query `i` starts at `i * q_stride + h * head_dim`.
    pub q: &'a [f32],
    /// Elements between the starts of two queries.
    pub q_stride: usize,
    /// Keys: head `h` of row `r` starts at `r * kv_stride + h * head_dim`.
    pub k: &'a [f32],
    /// Values, laid out as the keys.
    pub v: &'a [f32],
    /// Elements between the starts of two rows of keys, and of values.
    pub kv_stride: usize,
    /// Number of heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// The key rows of each query; as many as there are queries.
    pub rows: &'a [KeyRows<'a>],
    /// `[queries, heads * head_dim]`
    pub out: &'a mut [f32],
}

/// A value that is not a number stood where an order was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANumber {
    /// Its place in the row.
    pub index: usize,
}

impl std::fmt::Display for NotANumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "element {} is not a number (NaN): the weights or the activations are damaged",
            self.index
        )
    }
}

impl std::error::Error for NotANumber {}

/// The CPU with its threads.
pub struct Cpu {
    threads: usize,
    isa: Isa,
}

impl Cpu {
    /// A device of `threads` threads (at least one, the calling thread included) with the detected instruction set.
    ///
    /// # Errors
    /// If `SLUICE_ISA` is wrong, `threads` is 0, or threads cannot be started.
    pub fn new(threads: usize) -> Result<Cpu> {
        Cpu::with_isa(threads, Isa::detect()?)
    }

    /// As [`Cpu::new`], with an instruction set of the caller's choice, which this machine must have.
    ///
    /// # Errors
    /// As [`Cpu::new`]; and if this machine lacks the instruction set.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu> {
        anyhow::ensure!(threads > 0, "threads: found 0, expected at least 1");
        Ok(Cpu { threads, isa })
    }

    /// Number of threads, the caller's included.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The instruction set of its kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// `x` is `[rows, inputs]`, `out` is `[rows, outputs]`; the weights `w` are `[outputs, inputs]`.
    pub fn linear(&self, x: &[f32], w: &Linear, epi: Epilogue, out: &mut [f32]) {
        let rows = out.len() / w.outputs;
        self.grouped_linear(
            x,
            None,
            &[Group {
                weights: w,
                rows: 0..rows,
            }],
            epi,
            out,
        );
    }

    /// Experts as one operation: `out[r] = epi(x[source[r]] W_g^T + b_g)` for the rows r of each group g (without
    /// `source`, `x[r]`). Groups may be ragged and empty; rows in no group are left as they are.
    pub fn grouped_linear(
        &self,
        x: &[f32],
        source: Option<&[u32]>,
        groups: &[Group<'_>],
        epi: Epilogue,
        out: &mut [f32],
    ) {
        for group in groups {
            let w = group.weights;
            for r in group.rows.clone() {
                let from = source.map_or(r, |s| s[r] as usize);
                w.row_naive(
                    &x[from * w.inputs..][..w.inputs],
                    epi,
                    &mut out[r * w.outputs..][..w.outputs],
                );
            }
        }
    }

    /// Layer normalisation of `x` `[rows, d]` with `weight` and `bias` `[d]` into `out`: the variance in a second pass.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let d = weight.len();
        for (x, y) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
            let mean = x.iter().sum::<f32>() / d as f32;
            let var = x.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / d as f32;
            let inv = 1.0 / (var + eps).sqrt();
            for i in 0..d {
                y[i] = (x[i] - mean) * inv * weight[i] + bias[i];
            }
        }
    }

    /// Attention of every query and head; see [`Attend`].
    pub fn attend(&self, a: Attend<'_>) {
        let hd = a.head_dim;
        for (i, rows) in a.rows.iter().enumerate() {
            let rows: Vec<usize> = match rows {
                KeyRows::Range(first, count) => (*first..first + count).collect(),
                KeyRows::Table(t) => t.iter().map(|&r| r as usize).collect(),
            };
            for h in 0..a.heads {
                let q = &a.q[i * a.q_stride + h * hd..][..hd];
                let mut s: Vec<f32> = rows
                    .iter()
                    .map(|r| {
                        let k = &a.k[r * a.kv_stride + h * hd..][..hd];
                        a.scale * q.iter().zip(k).map(|(q, k)| q * k).sum::<f32>()
                    })
                    .collect();
                softmax_in_place(&mut s);
                let out = &mut a.out[(i * a.heads + h) * hd..][..hd];
                out.fill(0.0);
                for (p, r) in s.iter().zip(&rows) {
                    let v = &a.v[r * a.kv_stride + h * hd..][..hd];
                    out.iter_mut().zip(v).for_each(|(o, v)| *o += p * v);
                }
            }
        }
    }

    /// The logits of each row of `x` `[rows, d]` against `w` `[vocabulary, d]`, in blocks of rows whose logits stay
    /// under `max_bytes` (one row at least); `each(row, logits)` is called once a row, in parallel and in no fixed order.
    pub fn head(&self, x: &[f32], w: &Linear, max_bytes: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
        let _ = max_bytes;
        let mut logits = vec![0.0; w.outputs];
        for (i, x) in x.chunks_exact(w.inputs).enumerate() {
            self.linear(x, w, Epilogue::Store, &mut logits);
            each(i, &mut logits);
        }
    }
}

/// `e^x`, within about one unit in the last place; `exp(-inf)` is 0, NaN stays NaN.
pub fn exp(x: f32) -> f32 {
    x.exp()
}

/// [`exp`] of every element, in place.
pub fn exp_slice(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = exp(*x));
}

/// `log(sum(exp(row)))`; `-inf` for an empty row or one of `-inf` only. A NaN anywhere gives NaN.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return max;
    }
    max + row.iter().map(|x| exp(x - max)).sum::<f32>().ln()
}

/// Softmax of a row, in place.
pub fn softmax_in_place(row: &mut [f32]) {
    let lse = log_sum_exp(row);
    row.iter_mut().for_each(|x| *x = exp(*x - lse));
}

/// The `k` largest elements of `row` with their places, the largest first, of equal ones the lower place first; fewer
/// where the row is shorter. `out` is cleared first.
///
/// # Errors
/// [`NotANumber`] if the row holds a NaN; `out` is then empty.
pub fn top_k(row: &[f32], k: usize, out: &mut Vec<(f32, u32)>) -> Result<(), NotANumber> {
    out.clear();
    if let Some(index) = row.iter().position(|x| x.is_nan()) {
        return Err(NotANumber { index });
    }
    out.extend(row.iter().zip(0u32..).map(|(x, i)| (*x, i)));
    out.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    out.truncate(k);
    Ok(())
}
