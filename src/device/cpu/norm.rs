//! Normalisation of rows, over 16 lanes and the tree of their sum.
use super::isa::Kernel;
use super::lanes::Lanes;
use super::pool::Shared;
use super::Cpu;

impl Cpu {
    /// Layer normalisation of `x` `[rows, d]` with `weight` and `bias` `[d]` into `out`: `(x - mean) / sqrt(variance + eps)
    /// * weight + bias`, the variance in a second pass.
    ///
    /// # Panics
    /// If the lengths don't fit.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(weight.len(), bias.len(), "layer_norm: weight and bias differ in length");
        self.normalise(x, weight, Some(bias), eps, out);
    }

    /// Root-mean-square normalisation of `x` `[rows, d]` with `weight` `[d]` into `out`: `x / sqrt(mean(x^2) + eps) * weight`.
    ///
    /// # Panics
    /// If the lengths don't fit.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.normalise(x, weight, None, eps, out);
    }

    /// [`Cpu::rms_norm`] in place of the first `runs` runs of `weight.len()` elements from `offset` on, in each row of `x`
    /// `[rows, stride]`: the heads of a query projection (each a run), or all of it (one run).
    ///
    /// # Panics
    /// If the runs don't fit into a row, or `x` is no whole number of rows.
    pub fn rms_norm_within(&self, x: &mut [f32], stride: usize, offset: usize, runs: usize, weight: &[f32], eps: f32) {
        let d = weight.len();
        assert!(
            d > 0 && x.len().is_multiple_of(stride) && offset + runs * d <= stride,
            "norm: {runs} runs of {d} from {offset} on in rows of {stride}, {} elements",
            x.len()
        );
        self.for_rows(x, stride, (runs * d) as f64 * 0.5, |_, row| {
            for x in row[offset..offset + runs * d].chunks_exact_mut(d) {
                let (x, y) = (x.as_ptr(), x.as_mut_ptr());
                // SAFETY: a device's instruction set is available; one row of d elements each.
                unsafe {
                    self.isa().run(Norm {
                        x,
                        rows: 1,
                        weight,
                        bias: None,
                        eps,
                        out: y,
                    })
                };
            }
        });
    }

    fn normalise(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        let d = weight.len();
        assert!(
            d > 0 && x.len() == out.len() && x.len().is_multiple_of(d),
            "norm: {} elements, d {d}",
            x.len()
        );
        let rows = x.len() / d;
        let block = (16_384 / d).max(1);
        let out = Shared(out.as_mut_ptr());
        self.for_each(rows.div_ceil(block), rows as f64 * d as f64 * 0.5, |i| {
            let (first, last) = (i * block, (i * block + block).min(rows));
            // SAFETY: a device's instruction set is available; blocks are disjoint and inside `x` and `out`, which is
            // borrowed until all are done.
            unsafe {
                self.isa().run(Norm {
                    x: x[first * d..].as_ptr(),
                    rows: last - first,
                    weight,
                    bias,
                    eps,
                    out: out.at(first * d),
                })
            };
        });
    }
}

/// Layer normalisation with a bias, root-mean-square normalisation without.
struct Norm<'a> {
    /// `[rows, d]`
    x: *const f32,
    rows: usize,
    weight: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    /// `[rows, d]`; may be `x`.
    out: *mut f32,
}

impl Kernel for Norm<'_> {
    type Out = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let d = self.weight.len();
        for row in 0..self.rows {
            let (x, y) = (self.x.add(row * d), self.out.add(row * d));
            let mean = if self.bias.is_some() {
                sum::<L>(x, d) / d as f32
            } else {
                0.0
            };
            let variance = sum_of_squares::<L>(x, d, mean) / d as f32;
            let (mean, inverse) = (L::splat(mean), L::splat(1.0 / (variance + self.eps).sqrt()));
            let w = self.weight.as_ptr();
            let b = self.bias.map(|b| b.as_ptr());
            let mut i = 0;
            while i + 16 <= d {
                let centred = L::load(x.add(i)).sub(mean).mul(inverse);
                scaled(centred, L::load(w.add(i)), b.map(|b| L::load(b.add(i)))).store(y.add(i));
                i += 16;
            }
            if i < d {
                let n = d - i;
                let centred = L::load_part(x.add(i), n, 0.0).sub(mean).mul(inverse);
                let b = b.map(|b| L::load_part(b.add(i), n, 0.0));
                scaled(centred, L::load_part(w.add(i), n, 0.0), b).store_part(y.add(i), n);
            }
        }
    }
}

#[inline(always)]
unsafe fn scaled<L: Lanes>(x: L, weight: L, bias: Option<L>) -> L {
    match bias {
        Some(bias) => x.fma(weight, bias),
        None => x.mul(weight),
    }
}

#[inline(always)]
unsafe fn sum<L: Lanes>(x: *const f32, len: usize) -> f32 {
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i + 16 <= len {
        sum = sum.add(L::load(x.add(i)));
        i += 16;
    }
    if i < len {
        sum = sum.add(L::load_part(x.add(i), len - i, 0.0));
    }
    sum.sum()
}

/// Sum of `(x - mean)^2`.
#[inline(always)]
unsafe fn sum_of_squares<L: Lanes>(x: *const f32, len: usize, mean: f32) -> f32 {
    let shift = L::splat(mean);
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i + 16 <= len {
        let c = L::load(x.add(i)).sub(shift);
        sum = c.fma(c, sum);
        i += 16;
    }
    if i < len {
        // The mean in the lanes beyond the end, so that they add nothing.
        let c = L::load_part(x.add(i), len - i, mean).sub(shift);
        sum = c.fma(c, sum);
    }
    sum.sum()
}
