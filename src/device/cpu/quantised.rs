//! Rows of int8: symmetric, with one scale a row.
//!
//! `scale = max |x| / 127`, rounded up to 16 significant bits, and `q = round(x / scale)`. With so few bits `q * scale` is
//! exact in float32 and the largest element is 127 scales, so that quantising what was quantised changes nothing: a row
//! may travel as bytes and scale, and every rank computes with the same bits.
use std::ops::Range;

use super::isa::{Isa, Kernel};
use super::lanes::Lanes;
use super::pool::Shared;
use super::Cpu;

/// The largest quantised value.
const LARGEST: f32 = 127.0;
/// Rows whose largest element is smaller count as zeros: the inverse of their scale could not be represented.
const TINY: f32 = f32::from_bits((127 - 100) << 23);
/// Rows of which 127 scales are not below this count as not finite: a scale could not always be represented.
const HUGE: f32 = f32::from_bits((127 + 127) << 23);
/// Adding 1.5 * 2^23 to a small number rounds it to a whole one, ties to even, which then stands in the lowest bits.
const ROUND: f32 = 12_582_912.0;
/// Words behind the bytes of a row: its scale and its offset.
const TAIL: usize = 2;

/// Quantises `row` into `to` (of the same length) and returns the scale, of which `to` is a multiple: 0 where all elements
/// are below 2^-100, NaN where one is NaN or comes to 2^127 when rounded (`to` is then zero, and a product with it NaN).
///
/// # Panics
/// If the lengths differ.
pub fn quantise(row: &[f32], to: &mut [i8]) -> f32 {
    assert_eq!(
        row.len(),
        to.len(),
        "quantise: a row of {} into {}",
        row.len(),
        to.len()
    );
    // SAFETY: the standard set is available; bits don't depend on it.
    unsafe { Isa::standard().run(Quantise { row, to }) }.0
}

/// `scale * from` into `to`, exactly: what [`quantise`] gives back its `from` and `scale` for.
///
/// # Panics
/// If the lengths differ.
pub fn dequantise(from: &[i8], scale: f32, to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "dequantise: {} into {}", from.len(), to.len());
    to.iter_mut().zip(from).for_each(|(x, q)| *x = f32::from(*q) * scale);
}

/// The bits of the largest absolute value; those of a NaN are above all others.
#[inline(always)]
pub(super) fn largest(row: &[f32]) -> u32 {
    row.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max)
}

/// The scale of a row whose largest absolute value has the bits `largest`.
pub(super) fn scale_of(largest: u32) -> f32 {
    // A NaN's bits are above all others'.
    if largest >= HUGE.to_bits() {
        return f32::NAN;
    }
    if largest < TINY.to_bits() {
        return 0.0;
    }
    let scale = f32::from_bits(largest) / LARGEST;
    let scale = f32::from_bits((scale.to_bits() + 0xff) & !0xff);
    if LARGEST * scale < HUGE {
        scale
    } else {
        f32::NAN
    }
}

/// The factor that makes elements of a row multiples of its scale.
pub(super) fn inverse(scale: f32) -> f32 {
    if scale > 0.0 {
        1.0 / scale
    } else {
        0.0
    }
}

/// `x` as a multiple of the scale with this inverse, plus the bits of [`ROUND`].
#[inline(always)]
fn whole(x: f32, inverse: f32) -> u32 {
    (x * inverse + ROUND).to_bits()
}

/// `x` as a multiple of the scale with this inverse.
#[inline(always)]
pub(super) fn byte(x: f32, inverse: f32) -> i8 {
    whole(x, inverse) as i8
}

/// [`quantise`], and the sum of the quantised row.
struct Quantise<'a> {
    row: &'a [f32],
    to: &'a mut [i8],
}

impl Kernel for Quantise<'_> {
    type Out = (f32, i32);

    /// Plain loops, which the compiler vectorises.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> (f32, i32) {
        let scale = scale_of(largest(self.row));
        if scale.is_nan() || scale == 0.0 {
            self.to.fill(0);
            return (scale, 0);
        }
        let (inverse, mut sum) = (inverse(scale), 0u32);
        for (q, x) in self.to.iter_mut().zip(self.row) {
            let whole = whole(*x, inverse);
            *q = whole as i8;
            sum = sum.wrapping_add(whole);
        }
        let shift = ROUND.to_bits().wrapping_mul(self.row.len() as u32);
        (scale, sum.wrapping_sub(shift).cast_signed())
    }
}

/// The rows of a product, quantised once for all its tasks.
#[derive(Default)]
pub(super) struct QuantisedRows {
    /// Of each row the bytes, padded with zeros to whole words, the scale, and -128 times the sum: the packed weights'
    /// bytes lie 128 higher than the weights. Grows, and is kept.
    words: Vec<u32>,
    /// Words of a row.
    stride: usize,
}

impl QuantisedRows {
    /// Quantises `rows`, each of `inputs` elements, as far as `of` knows them.
    pub(super) fn fill<'a>(
        &mut self,
        cpu: &Cpu,
        rows: Range<usize>,
        inputs: usize,
        of: impl Fn(usize) -> &'a [f32] + Sync,
    ) {
        let stride = inputs.div_ceil(4) + TAIL;
        self.stride = stride;
        if self.words.len() < rows.end * stride {
            self.words.resize(rows.end * stride, 0);
        }
        let words = Shared(self.words.as_mut_ptr());
        let block = (16_384 / inputs).max(1);
        cpu.for_each(rows.len().div_ceil(block), (rows.len() * inputs) as f64 * 0.2, |task| {
            let first = rows.start + task * block;
            for row in first..(first + block).min(rows.end) {
                // SAFETY: the buffer holds all rows, and each is written by one task.
                let to = unsafe { std::slice::from_raw_parts_mut(words.at(row * stride), stride) };
                quantise_words(cpu.isa(), of(row), to);
            }
        });
    }

    /// The bytes of a row, four a word.
    pub(super) fn words(&self, row: usize) -> &[u32] {
        &self.words[row * self.stride..][..self.stride - TAIL]
    }

    /// The scale of a row, and -128 times the sum of its bytes.
    pub(super) fn scale_and_offset(&self, row: usize) -> (f32, i32) {
        let tail = &self.words[(row + 1) * self.stride - TAIL..][..TAIL];
        (f32::from_bits(tail[0]), tail[1].cast_signed())
    }
}

/// Quantises `x` into the words of a [`QuantisedRows`] row.
fn quantise_words(isa: Isa, x: &[f32], words: &mut [u32]) {
    let (bytes, tail) = words.split_at_mut(words.len() - TAIL);
    let (to, padding) = bytemuck::cast_slice_mut::<u32, i8>(bytes).split_at_mut(x.len());
    padding.fill(0);
    // SAFETY: a device's instruction set is available.
    let (scale, sum) = unsafe { isa.run(Quantise { row: x, to }) };
    tail.copy_from_slice(&[scale.to_bits(), (-128 * sum).cast_unsigned()]);
}
