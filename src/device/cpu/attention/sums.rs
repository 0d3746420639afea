//! The weighted sums of a block of values for a tile of queries.
use std::ops::Range;

use super::tiles::TILE;
use crate::device::cpu::lanes::Lanes;

/// What a query of a tile is to a block of keys.
#[derive(Clone, Default)]
pub(super) struct Look {
    /// The keys that it sees, by their places in the block; never none.
    pub keys: Range<usize>,
    /// What the sums of earlier blocks in `out` are multiplied by; none in the first block that it sees.
    pub factor: Option<f32>,
    /// What sums are multiplied by at the end of the block.
    pub inverse: f32,
}

/// The weighted sums of a block of values for a tile of queries.
pub(super) struct Sums<'a> {
    /// `exp(score - max)`, `[TILE][p_stride]`
    pub p: *const f32,
    pub p_stride: usize,
    /// `[keys][v_stride]`
    pub v: *const f32,
    pub v_stride: usize,
    /// The queries that there are, at most [`TILE`]; what they see neither begins nor ends before what those before them see.
    pub looks: &'a [Look],
    pub out: *mut f32,
    pub out_stride: usize,
}

impl Sums<'_> {
    /// The sums of `d` columns.
    #[inline(always)]
    pub(super) unsafe fn all<L: Lanes>(&self, d: usize) {
        let mut j = 0;
        while L::WIDE && j + 64 <= d {
            self.columns::<L, 4>(j, 16);
            j += 64;
        }
        while j < d {
            self.columns::<L, 1>(j, 16.min(d - j));
            j += 16;
        }
    }

    /// `C` vectors from column `j` on, the last (and only) one of `lanes` lanes.
    #[inline(always)]
    unsafe fn columns<L: Lanes, const C: usize>(&self, j: usize, lanes: usize) {
        let mut sums = [[L::splat(0.0); C]; TILE];
        for (i, (sums, look)) in sums.iter_mut().zip(self.looks).enumerate() {
            let Some(factor) = look.factor else { continue };
            for (c, sum) in sums.iter_mut().enumerate() {
                let from = self.out.add(i * self.out_stride + j + c * 16);
                let before = if lanes < 16 {
                    L::load_part(from, lanes, 0.0)
                } else {
                    L::load(from)
                };
                *sum = before.mul(L::splat(factor));
            }
        }
        // Keys that all see are between those that only the first see and those that only the last see.
        let (first, last) = (&self.looks[0].keys, &self.looks[self.looks.len() - 1].keys);
        let common = last.start..first.end.max(last.start);
        self.ragged(&mut sums, j, first.start..common.start.min(last.end));
        for key in common.clone() {
            let v = self.values::<L, C>(key, j);
            for (i, sums) in sums.iter_mut().enumerate() {
                let p = L::splat(*self.p.add(i * self.p_stride + key));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = p.fma(v, *sum);
                }
            }
        }
        self.ragged(&mut sums, j, common.end..last.end);
        for (i, (sums, look)) in sums.iter().zip(self.looks).enumerate() {
            for (c, sum) in sums.iter().enumerate() {
                let to = self.out.add(i * self.out_stride + j + c * 16);
                let sum = sum.mul(L::splat(look.inverse));
                if lanes < 16 {
                    sum.store_part(to, lanes);
                } else {
                    sum.store(to);
                }
            }
        }
    }

    /// Keys that not all of the queries see. The others must not take part with a weight of 0: a value may be infinite.
    #[inline(always)]
    unsafe fn ragged<L: Lanes, const C: usize>(&self, sums: &mut [[L; C]; TILE], j: usize, keys: Range<usize>) {
        for key in keys {
            let v = self.values::<L, C>(key, j);
            for (i, (sums, look)) in sums.iter_mut().zip(self.looks).enumerate() {
                if look.keys.contains(&key) {
                    let p = L::splat(*self.p.add(i * self.p_stride + key));
                    for (sum, v) in sums.iter_mut().zip(v) {
                        *sum = p.fma(v, *sum);
                    }
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn values<L: Lanes, const C: usize>(&self, key: usize, j: usize) -> [L; C] {
        let mut v = [L::splat(0.0); C];
        for (c, v) in v.iter_mut().enumerate() {
            *v = L::load(self.v.add(key * self.v_stride + j + c * 16));
        }
        v
    }
}
