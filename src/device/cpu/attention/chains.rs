//! Scores of a tile of queries with 16 packed keys, summed in the order in which [`super::rows`] sums them across a
//! vector's lanes: 16 chains, then their tree.
use crate::device::cpu::lanes::Lanes;

/// `Q` queries times 16 keys: lane `l` of a product across lanes is the chain over elements `l`, `l + 16`, and so on.
pub(super) struct Chains<const Q: usize> {
    /// `[Q][width]`
    pub q: *const f32,
    /// `[width][16]`
    pub k: *const f32,
    pub width: usize,
}

impl<const Q: usize> Chains<Q> {
    #[inline(always)]
    unsafe fn chain<L: Lanes>(&self, lane: usize) -> [L; Q] {
        let mut sums = [L::splat(0.0); Q];
        for i in (0..self.width).step_by(16) {
            let k = L::load(self.k.add((i + lane) * 16));
            for (query, sum) in sums.iter_mut().enumerate() {
                let q = *self.q.add(query * self.width + i + lane);
                *sum = L::splat(q).fma(k, *sum);
            }
        }
        sums
    }

    /// [`Lanes::sum`] of the chains.
    #[inline(always)]
    pub(super) unsafe fn tree<L: Lanes>(&self) -> [L; Q] {
        add(self.eight(0), self.eight(1))
    }

    #[inline(always)]
    unsafe fn eight<L: Lanes>(&self, lane: usize) -> [L; Q] {
        add(self.four(lane), self.four(lane + 2))
    }

    #[inline(always)]
    unsafe fn four<L: Lanes>(&self, lane: usize) -> [L; Q] {
        add(self.two(lane), self.two(lane + 4))
    }

    #[inline(always)]
    unsafe fn two<L: Lanes>(&self, lane: usize) -> [L; Q] {
        add(self.chain(lane), self.chain(lane + 8))
    }
}

#[inline(always)]
unsafe fn add<L: Lanes, const Q: usize>(mut a: [L; Q], b: [L; Q]) -> [L; Q] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = a.add(b);
    }
    a
}
