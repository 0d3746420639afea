//! The way out of a model: logits over the vocabulary, and the best of them.
use super::isa::{Isa, Kernel};
use super::lanes::Lanes;
use super::pool::Shared;
use super::{Cpu, Epilogue, Linear};

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

impl Cpu {
    /// The logits of each row of `x` `[rows, d]` against `w` `[vocabulary, d]`, in blocks of rows whose logits stay
    /// under `max_bytes` (one row at least). `each(row, logits)` is called once a row, on several threads and in no fixed
    /// order; `logits` is its to change.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn head(&self, x: &[f32], w: &Linear, max_bytes: usize, each: impl Fn(usize, &mut [f32]) + Sync) {
        let (rows, v) = (x.len() / w.inputs, w.outputs);
        assert_eq!(
            x.len(),
            rows * w.inputs,
            "head: x is no whole number of rows of {}",
            w.inputs
        );
        let block = (max_bytes / (v * size_of::<f32>()).max(1)).clamp(1, rows.max(1));
        let mut buffer = self.take_logits();
        if buffer.len() < block * v {
            buffer.resize(block * v, 0.0);
        }
        for first in (0..rows).step_by(block) {
            let count = block.min(rows - first);
            let logits = &mut buffer[..count * v];
            self.linear(&x[first * w.inputs..][..count * w.inputs], w, Epilogue::Store, logits);
            let logits = Shared(logits.as_mut_ptr());
            self.for_each(count, (count * v) as f64, |i| {
                // SAFETY: each task has a row of its own inside the buffer, which lives until all are done.
                each(first + i, unsafe {
                    std::slice::from_raw_parts_mut(logits.at(i * v), v)
                });
            });
        }
        self.keep_logits(buffer);
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

    /// Sixteen elements are passed over with one comparison where none is above the last of the best so far.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> Self::Out {
        let Self { row, k, out } = self;
        out.clear();
        let filled = k.min(row.len());
        insert(row, 0..filled, k, out)?;
        let mut i = filled;
        while i + 16 <= row.len() {
            let last = out.last().map_or(f32::INFINITY, |l| l.0);
            if L::load(row.as_ptr().add(i)).any_above(L::splat(last)) {
                insert(row, i..i + 16, k, out)?;
            }
            i += 16;
        }
        insert(row, i..row.len(), k, out)
    }
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
        for n in [0, 1, 5, 16, 17, 100, 3000] {
            // Few distinct values, so that there are many ties; zeros of both signs are equal.
            let row: Vec<f32> = (0..n).map(|i| ((i * 7919 + 31) % 97) as f32 * -0.5).collect();
            for k in [0, 1, 2, 8, 31] {
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
    }

    #[test]
    fn a_nan_is_reported_wherever_it_stands() {
        let mut out = Vec::new();
        for index in [0, 3, 20, 36] {
            let mut row = [1.0; 37];
            row[index] = f32::NAN;
            for k in [0, 1, 4] {
                assert_eq!(top_k(&row, k, &mut out), Err(NotANumber { index }), "k {k}");
                assert!(out.is_empty());
            }
        }
    }
}
