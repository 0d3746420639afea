//! [`Lanes`] in AVX-512 and AVX2.
use std::arch::x86_64::*;

use super::lanes::Lanes;

/// One AVX-512 register; `VNNI` where the CPU has `vpdpbusd`, `BF16` where it has `vdpbf16ps`.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const VNNI: bool, const BF16: bool>(__m512);

impl<const VNNI: bool, const BF16: bool> Lanes for Avx512<VNNI, BF16> {
    const WIDE: bool = true;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm512_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(_mm512_loadu_ps(p))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm512_storeu_ps(p, self.0);
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(_mm512_fmadd_ps(self.0, b.0, c.0))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(_mm512_add_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(_mm512_sub_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(_mm512_mul_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(_mm512_div_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Self(_mm512_max_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Self(_mm512_min_ps(self.0, b.0))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0))
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        let n = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
        Self(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(n)))
    }
    #[inline(always)]
    unsafe fn times_pow2(self, n: Self) -> Self {
        Self(_mm512_scalef_ps(self.0, n.0))
    }
    #[inline(always)]
    unsafe fn any_above(self, b: Self) -> bool {
        _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(self.0, b.0) != 0
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, a: u32, b: *const u32) -> Self {
        let (a, b) = (_mm512_set1_epi32(a.cast_signed()), _mm512_loadu_si512(b.cast()));
        if BF16 {
            // SAFETY: __m512i and __m512bh are both 64 plain bytes.
            let (a, b) = (
                std::mem::transmute::<__m512i, __m512bh>(a),
                std::mem::transmute::<__m512i, __m512bh>(b),
            );
            return Self(_mm512_dpbf16_ps(self.0, a, b));
        }
        let sum = _mm512_fmadd_ps(even_512(a), even_512(b), self.0);
        Self(_mm512_fmadd_ps(odd_512(a), odd_512(b), sum))
    }
    #[inline(always)]
    unsafe fn dot_quads(self, a: u32, b: *const u32) -> Self {
        let (a, b) = (_mm512_set1_epi32(a.cast_signed()), _mm512_loadu_si512(b.cast()));
        let sum = _mm512_castps_si512(self.0);
        if VNNI {
            return Self(_mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, b, a)));
        }
        // Widened to 16 bits: the CPU's own sum of byte products (`vpmaddubsw`) saturates.
        let a_even = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(a));
        let b_even = _mm512_and_si512(b, _mm512_set1_epi16(0xff));
        let even = _mm512_madd_epi16(a_even, b_even);
        let odd = _mm512_madd_epi16(_mm512_srai_epi16::<8>(a), _mm512_srli_epi16::<8>(b));
        Self(_mm512_castsi512_ps(_mm512_add_epi32(sum, _mm512_add_epi32(even, odd))))
    }
    #[inline(always)]
    unsafe fn whole_plus(self, n: i32) -> Self {
        let sum = _mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(n));
        Self(_mm512_cvtepi32_ps(sum))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_l2(p: *const f32) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: f32) -> Self {
        Self(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), (1 << n) - 1, p))
    }
    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        _mm512_mask_storeu_ps(p, (1 << n) - 1, self.0);
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_of_8(halves(self.0))
    }
    #[inline(always)]
    unsafe fn sum_each([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        sum_each_of_8(halves(a.0), halves(b.0), halves(c.0), halves(d.0))
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        _mm512_reduce_max_ps(_mm512_max_ps(self.0, _mm512_set1_ps(f32::NEG_INFINITY)))
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; 16]) -> [Self; 16] {
        transpose_512(rows)
    }
}

/// Two AVX2 registers.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(_mm256_set1_ps(x), _mm256_set1_ps(x))
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Self(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8)))
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        Self(widen_256(p), widen_256(p.add(8)))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        _mm256_storeu_ps(p, self.0);
        _mm256_storeu_ps(p.add(8), self.1);
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Self(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1))
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        Self(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        Self(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        Self(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        Self(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        Self(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        Self(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        Self(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1))
    }
    #[inline(always)]
    unsafe fn pow2(self) -> Self {
        Self(pow2_256(self.0), pow2_256(self.1))
    }
    #[inline(always)]
    unsafe fn any_above(self, b: Self) -> bool {
        let (low, high) = (
            _mm256_cmp_ps::<_CMP_NLE_UQ>(self.0, b.0),
            _mm256_cmp_ps::<_CMP_NLE_UQ>(self.1, b.1),
        );
        _mm256_movemask_ps(_mm256_or_ps(low, high)) != 0
    }
    #[inline(always)]
    unsafe fn dot_pairs(self, a: u32, b: *const u32) -> Self {
        Self(dot_256(self.0, a, b), dot_256(self.1, a, b.add(8)))
    }
    #[inline(always)]
    unsafe fn dot_quads(self, a: u32, b: *const u32) -> Self {
        Self(quads_256(self.0, a, b), quads_256(self.1, a, b.add(8)))
    }
    #[inline(always)]
    unsafe fn whole_plus(self, n: i32) -> Self {
        Self(whole_plus_256(self.0, n), whole_plus_256(self.1, n))
    }
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
    #[inline(always)]
    unsafe fn prefetch_l2(p: *const f32) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        sum_of_8(_mm256_add_ps(self.0, self.1))
    }
    #[inline(always)]
    unsafe fn sum_each([a, b, c, d]: [Self; 4]) -> [f32; 4] {
        sum_each_of_8(
            _mm256_add_ps(a.0, a.1),
            _mm256_add_ps(b.0, b.1),
            _mm256_add_ps(c.0, c.1),
            _mm256_add_ps(d.0, d.1),
        )
    }
}

/// The lower half of each pair of bfloat16, as f32.
#[inline(always)]
unsafe fn even_512(x: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x))
}

/// The upper half.
#[inline(always)]
unsafe fn odd_512(x: __m512i) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
}

/// See [`Lanes::transpose`]: neighbouring rows are interleaved by one lane, by two, then by four and by eight.
#[inline(always)]
unsafe fn transpose_512<const VNNI: bool, const BF16: bool>(
    mut rows: [Avx512<VNNI, BF16>; 16],
) -> [Avx512<VNNI, BF16>; 16] {
    let mut a = [_mm512_setzero_ps(); 16];
    let mut b = a;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_ps(rows[2 * i].0, rows[2 * i + 1].0);
        a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i].0, rows[2 * i + 1].0);
    }
    let pairs = |low: __m512, high: __m512| (_mm512_castps_pd(low), _mm512_castps_pd(high));
    for i in (0..16).step_by(4) {
        for j in 0..2 {
            let (low, high) = pairs(a[i + j], a[i + j + 2]);
            b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    // b[4 i + c] has columns c, c + 4, c + 8, c + 12 of rows 4 i to 4 i + 3.
    for c in 0..4 {
        let even_low = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[c], b[4 + c]);
        let odd_low = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[c], b[4 + c]);
        let even_high = _mm512_shuffle_f32x4::<0b10_00_10_00>(b[8 + c], b[12 + c]);
        let odd_high = _mm512_shuffle_f32x4::<0b11_01_11_01>(b[8 + c], b[12 + c]);
        rows[c] = Avx512(_mm512_shuffle_f32x4::<0b10_00_10_00>(even_low, even_high));
        rows[c + 8] = Avx512(_mm512_shuffle_f32x4::<0b11_01_11_01>(even_low, even_high));
        rows[c + 4] = Avx512(_mm512_shuffle_f32x4::<0b10_00_10_00>(odd_low, odd_high));
        rows[c + 12] = Avx512(_mm512_shuffle_f32x4::<0b11_01_11_01>(odd_low, odd_high));
    }
    rows
}

/// 8 bfloat16 as f32.
#[inline(always)]
unsafe fn widen_256(p: *const u16) -> __m256 {
    let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
}

#[inline(always)]
unsafe fn pow2_256(x: __m256) -> __m256 {
    let n = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
}

#[inline(always)]
unsafe fn dot_256(acc: __m256, a: u32, b: *const u32) -> __m256 {
    let (a_even, a_odd) = (
        _mm256_set1_ps(f32::from_bits(a << 16)),
        _mm256_set1_ps(f32::from_bits(a & 0xffff_0000)),
    );
    let b = _mm256_loadu_si256(b.cast());
    let (even, odd) = (
        _mm256_slli_epi32::<16>(b),
        _mm256_and_si256(b, _mm256_set1_epi32(0xffff_0000_u32.cast_signed())),
    );
    let sum = _mm256_fmadd_ps(a_even, _mm256_castsi256_ps(even), acc);
    _mm256_fmadd_ps(a_odd, _mm256_castsi256_ps(odd), sum)
}

/// [`Lanes::dot_quads`] of 8 lanes, widened to 16 bits: the CPU's own sum of byte products (`vpmaddubsw`) saturates.
#[inline(always)]
unsafe fn quads_256(sum: __m256, a: u32, b: *const u32) -> __m256 {
    let (a, b) = (_mm256_set1_epi32(a.cast_signed()), _mm256_loadu_si256(b.cast()));
    let a_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(a));
    let b_even = _mm256_and_si256(b, _mm256_set1_epi16(0xff));
    let even = _mm256_madd_epi16(a_even, b_even);
    let odd = _mm256_madd_epi16(_mm256_srai_epi16::<8>(a), _mm256_srli_epi16::<8>(b));
    let products = _mm256_add_epi32(even, odd);
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sum), products))
}

#[inline(always)]
unsafe fn whole_plus_256(sum: __m256, n: i32) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_castps_si256(sum), _mm256_set1_epi32(n)))
}

/// The top level of [`Lanes::sum`]: lanes 8 apart.
#[inline(always)]
unsafe fn halves(x: __m512) -> __m256 {
    _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x))
}

/// [`sum_of_8`] of each of four, side by side.
#[inline(always)]
unsafe fn sum_each_of_8(a: __m256, b: __m256, c: __m256, d: __m256) -> [f32; 4] {
    let ab = _mm256_add_ps(
        _mm256_permute2f128_ps::<0x20>(a, b),
        _mm256_permute2f128_ps::<0x31>(a, b),
    );
    let cd = _mm256_add_ps(
        _mm256_permute2f128_ps::<0x20>(c, d),
        _mm256_permute2f128_ps::<0x31>(c, d),
    );
    let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
    let two = _mm256_add_ps(
        _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
        _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
    );
    // a, a, c, c, b, b, d, d
    let one = _mm256_add_ps(two, _mm256_movehdup_ps(two));
    let (ac, bd) = (_mm256_castps256_ps128(one), _mm256_extractf128_ps::<1>(one));
    let mut sums = [0.0; 4];
    let abcd = _mm_unpacklo_ps(_mm_shuffle_ps::<0b1000>(ac, ac), _mm_shuffle_ps::<0b1000>(bd, bd));
    _mm_storeu_ps(sums.as_mut_ptr(), abcd);
    sums
}

/// The lower levels of [`Lanes::sum`]: lanes 4 apart, then 2, then 1.
#[inline(always)]
unsafe fn sum_of_8(x: __m256) -> f32 {
    let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
}
