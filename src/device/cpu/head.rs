//! The way out of a model: logits over the vocabulary, and the best of them.
use std::cell::RefCell;
use std::ops::Range;

use super::exp::{log_of_parts, MaxAndSum, CHUNK};
use super::gemm::Product;
use super::isa::{Isa, Kernel};
use super::lanes::Lanes;
use super::linear::PANEL;
use super::pool::Shared;
use super::quantised::QuantisedRows;
use super::{Cpu, Epilogue, Group, Linear};

/// Rows whose logits against a chunk of outputs are in cache at a time.
const ROWS: usize = 64;
/// Candidates that are kept at a time (32 MiB), or sums of chunks.
const MOST_CANDIDATES: usize = 4 << 20;

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
            "element {} of a row to be ordered is not a number (NaN), expected finite values; the weights may be damaged",
            self.index
        )
    }
}

impl std::error::Error for NotANumber {}

/// What [`Cpu::head`] found; the buffers keep their memory from call to call.
#[derive(Debug, Default)]
pub struct Tops {
    width: usize,
    /// `[rows, width]`: logit and output, the best first.
    best: Vec<(f32, u32)>,
    /// `[rows]`
    log_sums: Vec<f32>,
    /// Largest logit and sum of exponentials of each chunk of outputs, `[rows, chunks]`.
    parts: Vec<(f32, f32)>,
    /// The best of each chunk, `[rows, chunks, places]`; places without one hold [`NOTHING`].
    candidates: Vec<(f32, u32)>,
}

/// An output that is none.
const NOTHING: (f32, u32) = (f32::NEG_INFINITY, u32::MAX);

impl Tops {
    /// The best outputs of a row with their logits, the best first, of equal ones the lower output first; no outputs at all
    /// where [`Tops::log_sum`] is NaN.
    pub fn best(&self, row: usize) -> &[(f32, u32)] {
        &self.best[row * self.width..][..self.width]
    }

    /// [`log_sum_exp`](super::log_sum_exp) of a row's logits; NaN if they hold one.
    pub fn log_sum(&self, row: usize) -> f32 {
        self.log_sums[row]
    }

    /// Room for `rows` rows, of which `most` are in hand at a time, with `places` candidates a chunk.
    fn reset(&mut self, rows: usize, most: usize, chunks: usize, [width, places]: [usize; 2]) {
        self.width = width;
        self.best.resize(rows * width, NOTHING);
        self.log_sums.resize(rows, 0.0);
        self.parts.resize(most * chunks, (0.0, 0.0));
        self.candidates.resize(most * chunks * places, NOTHING);
    }
}

/// Joins the best of all chunks, in order, to the best of the row: of equal logits the lower output stays ahead.
fn join(candidates: &[(f32, u32)], best: &mut [(f32, u32)]) {
    let mut filled = 0;
    for &candidate in candidates.iter().filter(|c| c.1 != NOTHING.1) {
        let above = |b: &(f32, u32)| b.0 >= candidate.0;
        if filled == best.len() && best.last().is_none_or(above) {
            continue;
        }
        let at = best[..filled].partition_point(above);
        filled = (filled + 1).min(best.len());
        best.copy_within(at..filled - 1, at + 1);
        best[at] = candidate;
    }
    best[filled..].fill(NOTHING);
}

/// What a thread holds of a chunk of outputs.
struct OfChunk {
    /// `[rows, CHUNK]`
    logits: Vec<f32>,
    /// Of the row in hand.
    best: Vec<(f32, u32)>,
}

thread_local! {
    /// Kept from chunk to chunk.
    static OF_CHUNK: RefCell<OfChunk> = const { RefCell::new(OfChunk { logits: Vec::new(), best: Vec::new() }) };
}

impl Cpu {
    /// The `k` best outputs of each row of `x` `[rows, d]` against `w` `[vocabulary, d]`, and the logarithm of the sum of
    /// all logits' exponentials. `ruled_out(row)` names outputs, ascending, that count as `-inf` among the best (not in
    /// the sum). Logits are used chunk by chunk of the vocabulary, while they are in cache; what is found has the same
    /// bits as from whole rows of logits ([`log_sum_exp`](super::log_sum_exp), [`top_k`]).
    ///
    /// # Panics
    /// If `x` is no whole number of rows, or the weights are gated.
    pub fn head<'r>(
        &self,
        x: &[f32],
        w: &Linear,
        k: usize,
        ruled_out: impl Fn(usize) -> &'r [u32] + Sync,
        found: &mut Tops,
    ) {
        let rule_out = |row, first: usize, logits: &mut [f32]| {
            let ruled_out = ruled_out(row);
            let at = |output: usize| ruled_out.partition_point(|&o| (o as usize) < output);
            for &output in &ruled_out[at(first)..at(first + logits.len())] {
                logits[output as usize - first] = f32::NEG_INFINITY;
            }
        };
        self.look(x, w, k, rule_out, found);
    }

    /// [`Cpu::head`], with `each(row, first, logits)` called for the logits of a row from output `first` on when their
    /// exponentials are summed and before the best are taken.
    pub(super) fn look(
        &self,
        x: &[f32],
        w: &Linear,
        k: usize,
        each: impl Fn(usize, usize, &mut [f32]) + Sync,
        found: &mut Tops,
    ) {
        let (d, rows) = (w.inputs(), x.len() / w.inputs());
        assert_eq!(x.len(), rows * d, "head: x is no whole number of rows of {d}");
        w.assert_fits(Epilogue::Store);
        let (chunks, width) = (w.outputs().div_ceil(CHUNK), k.min(w.outputs()));
        // Rows at a time, so that wide searches over large vocabularies don't take much memory.
        let places = width.min(CHUNK);
        let most = (MOST_CANDIDATES / (chunks * places.max(1)).max(1)).clamp(1, rows.max(1));
        found.reset(rows, most, chunks, [width, places]);
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            let blocks = count.div_ceil(ROWS);
            let parts = Shared(found.parts.as_mut_ptr());
            let candidates = Shared(found.candidates.as_mut_ptr());
            let nanoseconds = (count * w.outputs()) as f64 * d as f64 / 50.0;
            let x = &x[first * d..(first + count) * d];
            let group = Group {
                weights: w,
                rows: 0..count,
            };
            let quantised = self.quantise_groups(x, None, &[group]);
            self.for_each(chunks * blocks, nanoseconds, |task| {
                let (chunk, block) = (task / blocks, task % blocks);
                let rows = block * count / blocks..(block + 1) * count / blocks;
                self.chunk((x, &quantised), w, rows, chunk, |row, logits, best| {
                    // SAFETY: a device's instruction set is available.
                    let part = unsafe { self.isa.run(MaxAndSum { row: logits }) };
                    each(first + row, chunk * CHUNK, logits);
                    self.best_of_chunk(logits, chunk * CHUNK, places, best);
                    // SAFETY: each chunk of each row has places of its own in both buffers, which live until all are
                    // done; no more than `places` are the best.
                    unsafe {
                        *parts.at(row * chunks + chunk) = part;
                        let to = candidates.at((row * chunks + chunk) * places);
                        for j in 0..places {
                            *to.add(j) = best.get(j).copied().unwrap_or(NOTHING);
                        }
                    }
                });
            });
            self.keep_quantised(quantised);
            let (log_sums, best) = (Shared(found.log_sums.as_mut_ptr()), Shared(found.best.as_mut_ptr()));
            let (parts, candidates) = (&found.parts, &found.candidates);
            self.for_each(count, (count * chunks * (places + 1)) as f64, |row| {
                let all = &candidates[row * chunks * places..][..chunks * places];
                // SAFETY: each row has places of its own in both buffers, which live until all are done.
                unsafe {
                    *log_sums.at(first + row) = log_of_parts(parts[row * chunks..][..chunks].iter().copied());
                    join(
                        all,
                        std::slice::from_raw_parts_mut(best.at((first + row) * width), width),
                    );
                }
            });
        }
    }

    /// The best `k` of a row's logits of the outputs from `first` on, into `best` (nothing if one is NaN).
    fn best_of_chunk(&self, logits: &[f32], first: usize, k: usize, best: &mut Vec<(f32, u32)>) {
        best.clear();
        if k == 0 {
            return;
        }
        let (row, out) = (logits, &mut *best);
        // SAFETY: a device's instruction set is available.
        if unsafe { self.isa.run(TopK { row, k, out }) }.is_err() {
            // The NaN is in the sum.
            best.clear();
        }
        best.iter_mut().for_each(|b| b.1 += first as u32);
    }

    /// Calls `each(row, logits, scratch)` for `rows` with their logits of one chunk of outputs.
    fn chunk(
        &self,
        (x, quantised): (&[f32], &QuantisedRows),
        w: &Linear,
        rows: Range<usize>,
        chunk: usize,
        mut each: impl FnMut(usize, &mut [f32], &mut Vec<(f32, u32)>),
    ) {
        let (outputs, panels) = (chunk * CHUNK..w.outputs().min((chunk + 1) * CHUNK), CHUNK / PANEL);
        OF_CHUNK.with_borrow_mut(|OfChunk { logits, best }| {
            if logits.len() < rows.len() * CHUNK {
                logits.resize(rows.len() * CHUNK, 0.0);
            }
            let product = Product {
                x,
                source: None,
                quantised,
                weights: w,
                rows: rows.clone(),
                panels: chunk * panels..w.panels().min((chunk + 1) * panels),
                epilogue: Epilogue::Store,
                out: Shared(logits.as_mut_ptr()),
                stride: CHUNK,
                origin: (rows.start, outputs.start),
            };
            // SAFETY: a device's instruction set is available; rows and panels are there; the buffer is this thread's.
            unsafe { product.compute(self.isa) };
            for (row, logits) in rows.zip(logits.chunks_exact_mut(CHUNK)) {
                each(row, &mut logits[..outputs.len()], best);
            }
        });
    }
}

/// The `k` largest elements of `row` with their places, the largest first, of equal ones the lower place first; fewer
/// where the row is shorter. `out` is cleared first. Meant for small `k`.
///
/// # Errors
/// [`NotANumber`] if the row holds a NaN; `out` is then empty.
pub fn top_k(row: &[f32], k: usize, out: &mut Vec<(f32, u32)>) -> Result<(), NotANumber> {
    // SAFETY: the standard set is available.
    let found = unsafe { Isa::standard().run(TopK { row, k, out }) };
    if found.is_err() {
        out.clear();
    }
    found
}

struct TopK<'a> {
    row: &'a [f32],
    k: usize,
    out: &'a mut Vec<(f32, u32)>,
}

impl Kernel for TopK<'_> {
    type Out = Result<(), NotANumber>;

    /// Sixteen elements are passed over with one comparison where none is above the last of the best so far, or none
    /// can be among the best at all.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Self::Out {
        let Self { row, k, out } = self;
        out.clear();
        let below = below_the_best::<L>(row, k);
        let mut i = if below == f32::NEG_INFINITY {
            k.min(row.len())
        } else {
            0
        };
        insert(row, 0..i, k, out)?;
        while i + 16 <= row.len() {
            let last = if out.len() == k {
                out.last().map_or(f32::INFINITY, |l| l.0.max(below))
            } else {
                below
            };
            if L::load(row.as_ptr().add(i)).any_above(L::splat(last)) {
                insert(row, i..i + 16, k, out)?;
            }
            i += 16;
        }
        insert(row, i..row.len(), k, out)
    }
}

/// A number below the best `k` of a row, close to the last of them; `-inf` where it is not worth finding one.
#[inline(always)]
unsafe fn below_the_best<L: Lanes>(row: &[f32], k: usize) -> f32 {
    // The row must stay in cache, and be so short that many of its elements are among the best so far for a while.
    if !(1..=16).contains(&k) || !(64..=4 * CHUNK).contains(&row.len()) {
        return f32::NEG_INFINITY;
    }
    let mut max = L::splat(f32::NEG_INFINITY);
    for i in 0..row.len() / 16 {
        max = L::load(row.as_ptr().add(i * 16)).max(max);
    }
    // The largest of each lane are elements of their own: k elements are not below the k-th of them.
    let mut largest = max.to_array();
    largest.sort_unstable_by(|a, b| b.total_cmp(a));
    largest[k - 1].next_down()
}

/// Takes elements that belong to the best `k` into `out`.
fn insert(row: &[f32], range: std::ops::Range<usize>, k: usize, out: &mut Vec<(f32, u32)>) -> Result<(), NotANumber> {
    for index in range {
        let x = row[index];
        if x.is_nan() {
            return Err(NotANumber { index });
        }
        if out.len() == k {
            match out.last() {
                Some(last) if x > last.0 => out.pop(),
                _ => continue,
            };
        }
        // Behind its equals: they came earlier in the row.
        let at = out.partition_point(|o| o.0 >= x);
        out.insert(at, (x, index as u32));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn twin(row: &[f32], k: usize) -> Vec<(f32, u32)> {
        let mut all: Vec<(f32, u32)> = row.iter().zip(0..).map(|(x, i)| (*x, i)).collect();
        all.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap());
        all.truncate(k);
        all
    }

    #[test]
    fn top_k_equals_sorting_with_ties_on_every_instruction_set() {
        let mut out = Vec::new();
        for n in [0, 1, 5, 16, 17, 63, 64, 100, 1024, 3000, 5000] {
            // Few distinct values, so that there are many ties; zeros of both signs are equal.
            let row: Vec<f32> = (0..n).map(|i| ((i * 7919 + 31) % 97) as f32 * -0.5).collect();
            for k in [0, 1, 2, 8, 15, 16, 17, 31] {
                for isa in Isa::available() {
                    unsafe {
                        isa.run(TopK {
                            row: &row,
                            k,
                            out: &mut out,
                        })
                    }
                    .unwrap();
                    assert_eq!(out, twin(&row, k), "n {n}, k {k}, {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn top_k_of_masked_rows() {
        let mut out = Vec::new();
        let mut row = [f32::NEG_INFINITY; 40];
        top_k(&row, 2, &mut out).unwrap();
        assert_eq!(out, [(f32::NEG_INFINITY, 0), (f32::NEG_INFINITY, 1)]);
        row[39] = 1.0;
        top_k(&row, 1, &mut out).unwrap();
        assert_eq!(out, [(1.0, 39)]);
        let mut row = [f32::NEG_INFINITY; 100];
        row[70] = -3.0;
        top_k(&row, 3, &mut out).unwrap();
        assert_eq!(out, [(-3.0, 70), (f32::NEG_INFINITY, 0), (f32::NEG_INFINITY, 1)]);
    }

    #[test]
    fn a_nan_is_reported_wherever_it_stands() {
        let mut out = Vec::new();
        for index in [0, 3, 20, 36] {
            let mut row = [1.0; 70];
            row[index] = f32::NAN;
            for row in [&row[..37], &row] {
                for k in [0, 1, 4] {
                    assert_eq!(top_k(row, k, &mut out), Err(NotANumber { index }), "k {k}");
                    assert!(out.is_empty());
                }
            }
        }
    }
}
