//! Our own exponential and what is built on it, over 16 lanes: a row's result depends on nothing but the row.
use super::isa::{Isa, Kernel};
use super::lanes::Lanes;

/// `e^x`, within about one unit in the last place; `exp(-inf)` is 0, NaN stays NaN.
pub fn exp(x: f32) -> f32 {
    let mut one = [x];
    exp_slice(&mut one);
    one[0]
}

/// [`exp`] of every element, in place.
pub fn exp_slice(x: &mut [f32]) {
    // SAFETY: the standard set is available.
    unsafe { Isa::standard().run(Exp { x }) };
}

/// Elements whose exponentials are summed relative to the largest of them, before such sums are joined.
pub(super) const CHUNK: usize = 1024;

/// `log(sum(exp(row)))`; `-inf` for an empty row or one of `-inf` only. A NaN anywhere gives NaN.
///
/// Chunks of 1024 elements are summed each for itself and joined in order, so that a row that is never there as a whole
/// (the logits of a large vocabulary) has the same bits.
pub fn log_sum_exp(row: &[f32]) -> f32 {
    // SAFETY: the standard set is available.
    let part = |chunk| unsafe { Isa::standard().run(MaxAndSum { row: chunk }) };
    let parts: Vec<(f32, f32)> = row.chunks(CHUNK).map(part).collect();
    log_of_parts(parts.iter().copied())
}

/// The logarithm of a sum of exponentials in parts, each its largest exponent m and its sum of `exp(x - m)`.
pub(super) fn log_of_parts(parts: impl Iterator<Item = (f32, f32)> + Clone) -> f32 {
    let max = parts.clone().fold(f32::NEG_INFINITY, |max, part| max.max(part.0));
    let shift = finite_or_zero(max);
    let sum: f64 = parts.map(|(m, sum)| f64::from(exp(m - shift)) * f64::from(sum)).sum();
    if max == f32::NEG_INFINITY && !sum.is_nan() {
        return max;
    }
    // In f64 the logarithm costs nothing and rounds once.
    max + sum.ln() as f32
}

/// The exponential of each lane.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, so e^x = 2^n e^r; e^r by the polynomial of Cephes' `expf`. Results down to the
/// smallest subnormal are rounded once, and overflow gives infinity.
#[inline(always)]
pub(super) unsafe fn exp_lanes<L: Lanes>(x: L) -> L {
    // Constants first: min and max then keep a NaN.
    let x = L::splat(89.0).min(L::splat(-104.5).max(x));
    let n = x.mul(L::splat(std::f32::consts::LOG2_E)).round();
    // ln 2 in two parts; n times the first is exact.
    let r = n.fma(L::splat(-355.0 / 512.0), x);
    let r = n.fma(L::splat(2.121_944_4e-4), r);
    let mut p = L::splat(1.987_569_1e-4);
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p.fma(r, L::splat(c));
    }
    p.fma(r.mul(r), r).add(L::splat(1.0)).times_pow2(n)
}

/// The largest element (`-inf` for none; NaN is passed over).
#[inline(always)]
pub(super) unsafe fn max_of<L: Lanes>(row: &[f32]) -> f32 {
    let mut max = L::splat(f32::NEG_INFINITY);
    let mut i = 0;
    while i + 16 <= row.len() {
        max = L::load(row.as_ptr().add(i)).max(max);
        i += 16;
    }
    if i < row.len() {
        max = L::load_part(row.as_ptr().add(i), row.len() - i, f32::NEG_INFINITY).max(max);
    }
    max.largest()
}

/// Sum over the row of `exp(x - max)`, stored into `out` where that is not null. Blocks of [`CHUNK`] elements are summed
/// first, then the blocks: the rounding error of a row of 256k logits stays that of a few hundred additions.
#[inline(always)]
pub(super) unsafe fn exp_and_sum<L: Lanes>(row: *const f32, len: usize, max: f32, out: *mut f32) -> f32 {
    let shift = L::splat(max);
    let (mut total, mut block) = (L::splat(0.0), L::splat(0.0));
    let whole = len / 16 * 16;
    let mut i = 0;
    while i < whole {
        let e = exp_lanes(L::load(row.add(i)).sub(shift));
        if !out.is_null() {
            e.store(out.add(i));
        }
        block = block.add(e);
        i += 16;
        if i.is_multiple_of(CHUNK) {
            total = total.add(block);
            block = L::splat(0.0);
        }
    }
    if whole < len {
        // exp(-inf) = 0 in the lanes beyond the end.
        let e = exp_lanes(L::load_part(row.add(whole), len - whole, f32::NEG_INFINITY).sub(shift));
        if !out.is_null() {
            e.store_part(out.add(whole), len - whole);
        }
        block = block.add(e);
    }
    total.add(block).sum()
}

#[inline(always)]
pub(super) fn finite_or_zero(max: f32) -> f32 {
    if max == f32::NEG_INFINITY {
        0.0
    } else {
        max
    }
}

struct Exp<'a> {
    x: &'a mut [f32],
}

impl Kernel for Exp<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let x = self.x.as_mut_ptr();
        exp_and_sum::<L>(x, self.x.len(), 0.0, x);
    }
}

/// The largest element and the sum of `exp(x - largest)`; the largest of none, or of `-inf` only, is `-inf` with sum 0.
pub(super) struct MaxAndSum<'a> {
    pub row: &'a [f32],
}

impl Kernel for MaxAndSum<'_> {
    type Out = (f32, f32);
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> (f32, f32) {
        let max = max_of::<L>(self.row);
        let sum = exp_and_sum::<L>(
            self.row.as_ptr(),
            self.row.len(),
            finite_or_zero(max),
            std::ptr::null_mut(),
        );
        (max, sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 1009) as f32 / 40.0 - 12.0).collect()
    }

    #[test]
    fn exp_is_within_an_ulp_everywhere() {
        let mut worst = 0.0_f64;
        for i in 0..400_000 {
            let x = -103.0 + i as f32 * (191.7 / 400_000.0);
            let (ours, true_value) = (exp(x), f64::from(x).exp());
            let ulp = if true_value < f64::from(f32::MIN_POSITIVE) {
                f64::from(f32::from_bits(1))
            } else {
                f64::from(true_value as f32) * f64::from(f32::EPSILON) / 2.0
            };
            worst = worst.max((f64::from(ours) - true_value).abs() / ulp);
        }
        assert!(worst < 2.0, "off by {worst} half units in the last place");
    }

    #[test]
    fn exp_knows_its_limits() {
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(88.9), f32::INFINITY);
        assert!(exp(88.7).is_finite());
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn instruction_sets_agree_from_the_smallest_subnormal_to_infinity() {
        let row: Vec<f32> = (-105_000..90_000).map(|i| i as f32 * 1e-3).collect();
        let all = |isa: Isa| {
            let mut x = row.clone();
            // SAFETY: it is available.
            unsafe { isa.run(Exp { x: &mut x }) };
            x
        };
        let want = all(Isa::Portable);
        assert!(want.contains(&0.0) && want.contains(&f32::from_bits(1)) && want.contains(&f32::INFINITY));
        for isa in Isa::available() {
            assert_eq!(all(isa), want, "{}", isa.name());
        }
    }

    #[test]
    fn instruction_sets_and_places_in_a_row_agree() {
        for n in [1, 5, 16, 17, 1000, 5000] {
            let row = wave(n);
            let alone: Vec<f32> = row.iter().map(|x| exp(*x)).collect();
            // SAFETY: it is available.
            let (max, sum) = unsafe { Isa::Portable.run(MaxAndSum { row: &row }) };
            for isa in Isa::available() {
                let mut whole = row.clone();
                // SAFETY: it is available.
                unsafe { isa.run(Exp { x: &mut whole }) };
                assert_eq!(whole, alone, "{} {n}", isa.name());
                assert_eq!(
                    // SAFETY: it is available.
                    unsafe { isa.run(MaxAndSum { row: &row }) },
                    (max, sum),
                    "{} {n}",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn log_sum_exp_equals_double_precision() {
        for n in [1, 2, 31, 1024, 1025, 256_206] {
            let row = wave(n);
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
            let want = f64::from(max) + sum.ln();
            assert!(
                (f64::from(log_sum_exp(&row)) - want).abs() < 2e-6 * want.abs().max(1.0),
                "{n}"
            );
        }
    }

    #[test]
    fn masked_and_damaged_rows() {
        let low = f32::NEG_INFINITY;
        assert_eq!(log_sum_exp(&[]), low);
        assert_eq!(log_sum_exp(&[low; 20]), low);
        assert_eq!(log_sum_exp(&[low, 3.0, low]), 3.0);
        let mut row = [1.0; 33];
        row[20] = f32::NAN;
        assert!(log_sum_exp(&row).is_nan());
        assert!(log_sum_exp(&[low, f32::NAN]).is_nan());
    }
}
