//! Sixteen float32 lanes, so that every kernel is written once and means the same on every instruction set.
//!
//! Each operation rounds as IEEE 754 asks, so equal operations in an equal order give equal bits; only
//! [`Lanes::dot_pairs`] may differ, where the CPU has an instruction of its own for bfloat16. Products of bytes are summed
//! in integers and are exact.

/// A vector of 16 float32.
///
/// # Safety
/// All functions need the CPU features of the implementing type: call them only below [`super::Isa::run`]. Pointers must
/// be valid for 16 elements (the `_part` functions: for `n`), at any alignment.
#[allow(clippy::missing_safety_doc)] // said once, above
pub(super) trait Lanes: Copy {
    /// Whether there are registers for tiles of 12 rows x 2 vectors (otherwise 6 x 1).
    const WIDE: bool;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    /// 16 bfloat16, given by their bits.
    unsafe fn load_bf16(p: *const u16) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// `self * b + c` with one rounding.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `if self > b { self } else { b }`: a NaN in either gives `b`.
    unsafe fn max(self, b: Self) -> Self;
    /// `if self < b { self } else { b }`: a NaN in either gives `b`.
    unsafe fn min(self, b: Self) -> Self;
    /// To the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for integers from -126 to 127.
    unsafe fn pow2(self) -> Self;
    /// `self * 2^n` for self from 0.5 to 2 and integers n from -252 to 254, rounded once.
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        let half = n.mul(Self::splat(0.5)).round();
        self.mul(half.pow2()).mul(n.sub(half).pow2())
    }
    /// Whether any lane is above `b` or NaN.
    unsafe fn any_above(self, b: Self) -> bool;
    /// Adds to each lane the product of the bfloat16 pair `a` (the lower half first) with the lane's pair at `b`.
    unsafe fn dot_pairs(self, a: u32, b: *const u32) -> Self;

    /// With the bits of each lane an i32: adds the products of the four signed bytes of `a` with the lane's four unsigned
    /// bytes at `b`, modulo 2^32.
    unsafe fn dot_quads(self, a: u32, b: *const u32) -> Self;
    /// With the bits of each lane an i32: the lane plus `n` (modulo 2^32), as the nearest float32.
    unsafe fn whole_plus(self, n: i32) -> Self;

    /// Asks for the cache line at `p`, which need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_p: *const f32) {}

    /// As [`Lanes::prefetch`], into the second-level cache only.
    #[inline(always)]
    unsafe fn prefetch_l2(_p: *const f32) {}

    /// The first `n < 16` elements; `fill` in the others.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: f32) -> Self {
        let mut lanes = [fill; 16];
        std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
        Self::load(lanes.as_ptr())
    }

    /// Stores the first `n < 16` lanes.
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        std::ptr::copy_nonoverlapping(self.to_array().as_ptr(), p, n);
    }

    #[inline(always)]
    unsafe fn to_array(self) -> [f32; 16] {
        let mut lanes = [0.0; 16];
        self.store(lanes.as_mut_ptr());
        lanes
    }

    /// Sum of the lanes as a tree: 8 apart, then 4, 2, 1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut l = self.to_array();
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                l[i] += l[i + half];
            }
        }
        l[0]
    }

    /// [`Lanes::sum`] of each of four.
    #[inline(always)]
    unsafe fn sum_each(four: [Self; 4]) -> [f32; 4] {
        [four[0].sum(), four[1].sum(), four[2].sum(), four[3].sum()]
    }

    /// Lane `i` of vector `j` as lane `j` of vector `i`.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; 16]) -> [Self; 16] {
        let mut columns = [[0.0; 16]; 16];
        for (i, row) in rows.into_iter().enumerate() {
            for (column, x) in columns.iter_mut().zip(row.to_array()) {
                column[i] = x;
            }
        }
        let mut out = rows;
        for (out, column) in out.iter_mut().zip(columns) {
            *out = Self::load(column.as_ptr());
        }
        out
    }

    /// The largest lane that is a number; `-inf` if there is none.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.to_array()
            .into_iter()
            .fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 16]);

impl Plain {
    #[inline(always)]
    fn map(mut self, b: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
        for i in 0..16 {
            self.0[i] = f(self.0[i], b.0[i]);
        }
        self
    }
}

impl Lanes for Plain {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; 16])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Plain(p.cast::<[f32; 16]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        let halves = p.cast::<[u16; 16]>().read_unaligned();
        Plain(halves.map(|x| f32::from_bits(u32::from(x) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        p.cast::<[f32; 16]>().write_unaligned(self.0);
    }
    #[inline(always)]
    unsafe fn fma(mut self, b: Self, c: Self) -> Self {
        for i in 0..16 {
            self.0[i] = self.0[i].mul_add(b.0[i], c.0[i]);
        }
        self
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        self.map(b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        self.map(b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        self.map(b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        self.map(b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        self.map(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        self.map(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        self.map(self, |a, _| a.round_ties_even())
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        self.map(self, |a, _| {
            f32::from_bits((a as i32).wrapping_add(127).cast_unsigned() << 23)
        })
    }
    #[inline(always)]
    unsafe fn any_above(self, b: Self) -> bool {
        self.0.iter().zip(b.0).any(|(a, b)| a.is_nan() || *a > b)
    }
    #[inline(always)]
    unsafe fn dot_pairs(mut self, a: u32, b: *const u32) -> Self {
        let (even, odd) = (f32::from_bits(a << 16), f32::from_bits(a & 0xffff_0000));
        for i in 0..16 {
            let b = b.add(i).read();
            self.0[i] = even.mul_add(f32::from_bits(b << 16), self.0[i]);
            self.0[i] = odd.mul_add(f32::from_bits(b & 0xffff_0000), self.0[i]);
        }
        self
    }
    #[inline(always)]
    unsafe fn dot_quads(mut self, a: u32, b: *const u32) -> Self {
        let a = a.to_le_bytes().map(|a| i32::from(a.cast_signed()));
        for i in 0..16 {
            let b = b.add(i).read().to_le_bytes();
            let products = (0..4).map(|j| a[j] * i32::from(b[j])).sum::<i32>();
            let sum = self.0[i].to_bits().wrapping_add(products.cast_unsigned());
            self.0[i] = f32::from_bits(sum);
        }
        self
    }
    #[inline(always)]
    unsafe fn whole_plus(self, n: i32) -> Self {
        self.map(self, |a, _| a.to_bits().cast_signed().wrapping_add(n) as f32)
    }
}
