//! Queries with rows of their own, whose heads share keys and values (decoding; latent attention): a row is read once for all
//! heads of a task.
//!
//! Heads and keys meet in small tiles. A block's scores of all heads come first, then the sums of its values, each row after
//! row as they lie in memory.
use std::ops::Range;

use super::element::{load, load_part};
use super::softmax::{Running, Weigh};
use super::{floats, Attend, Element, KeyRows, KEYS};
use crate::device::cpu::isa::Kernel;
use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::linear::Line;
use crate::device::cpu::pool::Shared;

/// Keys of a tile of scores.
const FOUR: usize = 4;
/// Rows that are asked for ahead of those in hand.
const AHEAD: usize = 6;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Bytes of values that should stay in cache while all heads pass over them.
const CHUNK: usize = 64 << 10;

/// Some heads of some queries.
pub(super) struct Groups<'a, T> {
    pub a: &'a Attend<'a, T>,
    pub queries: Range<usize>,
    pub heads: Range<usize>,
    /// `[heads][KEYS]`
    pub scores: &'a mut [f32],
    /// `[heads]`
    pub states: &'a mut [State],
    pub out: Shared,
}

/// What is known of a head of the query in hand.
#[derive(Clone, Copy)]
pub(super) struct State {
    softmax: Running,
    /// What the sums of earlier blocks are multiplied by.
    factor: f32,
    /// What sums are multiplied by at the end of the block.
    inverse: f32,
}

impl<'a, T: Element> Groups<'a, T> {
    pub(super) fn new(
        a: &'a Attend<'a, T>,
        queries: Range<usize>,
        heads: Range<usize>,
        scratch: &'a mut Vec<Line>,
        out: Shared,
    ) -> Self {
        let (n, words) = (heads.len(), size_of::<State>() / 4);
        let (scores, states) = floats(scratch, n * (KEYS + words)).split_at_mut(n * KEYS);
        // SAFETY: a state is plain floats, for which there is room.
        let states = unsafe { std::slice::from_raw_parts_mut(states.as_mut_ptr().cast(), n) };
        Groups {
            a,
            queries,
            heads,
            scores,
            states,
            out,
        }
    }
}

impl<T: Element> Kernel for Groups<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        for query in self.queries.clone() {
            let (a, rows) = (self.a, self.a.rows[query]);
            let seen = rows.seen(a.window);
            for (head, state) in self.heads.clone().zip(&mut *self.states) {
                *state = State {
                    softmax: a.start(head),
                    factor: 0.0,
                    inverse: 1.0,
                };
            }
            if seen.is_empty() {
                let out = self.out.at(a.out_at(query, self.heads.start));
                std::slice::from_raw_parts_mut(out, self.heads.len() * a.v_dim).fill(0.0);
            }
            for start in (seen.start / KEYS * KEYS..seen.end).step_by(KEYS) {
                let keys = seen.start.max(start)..seen.end.min(start + KEYS);
                let block = Block::new(query, rows, start, keys.clone(), seen.start >= start);
                self.score::<L>(&block);
                for (h, state) in self.states.iter_mut().enumerate() {
                    let weigh = Weigh {
                        query,
                        head: self.heads.start + h,
                        start,
                        keys: block.keys(),
                    };
                    let scores = &mut self.scores[h * KEYS..][..KEYS];
                    state.factor = weigh.run::<L, T>(a, scores, &mut state.softmax);
                    state.inverse = match seen.end <= start + KEYS {
                        true => state.softmax.inverse(),
                        false => 1.0,
                    };
                }
                self.ask_for_next::<L>(query, keys.end..seen.end);
                self.values::<L>(&block);
            }
        }
    }
}

/// A block of keys of a query.
struct Block {
    query: usize,
    /// Whether the query has seen no keys before.
    fresh: bool,
    /// Place of the first key that is seen.
    first: usize,
    /// Keys that are seen.
    count: usize,
    /// Their rows.
    rows: [usize; KEYS],
}

impl Block {
    #[inline(always)]
    fn new(query: usize, rows: KeyRows<'_>, start: usize, keys: Range<usize>, fresh: bool) -> Block {
        let mut at = [0; KEYS];
        for (at, key) in at.iter_mut().zip(keys.clone()) {
            *at = rows.at(key);
        }
        Block {
            query,
            fresh,
            first: keys.start - start,
            count: keys.len(),
            rows: at,
        }
    }

    /// The keys that are seen, by their places.
    fn keys(&self) -> Range<usize> {
        self.first..self.first + self.count
    }
}

impl<T: Element> Groups<'_, T> {
    /// Heads of keys.
    #[inline(always)]
    fn shared(&self) -> Range<usize> {
        self.a.kv_head(self.heads.start)..self.a.kv_head(self.heads.end - 1) + 1
    }

    /// The task's heads that read a head of keys, by their numbers in the task.
    #[inline(always)]
    fn readers(&self, shared: usize) -> Range<usize> {
        let group = self.a.heads / self.a.kv_heads;
        let (first, end) = (self.heads.start, self.heads.end);
        (shared * group).max(first) - first..((shared + 1) * group).min(end) - first
    }

    /// Rows of values of which the task's heads should stay in cache.
    #[inline(always)]
    fn chunk(&self) -> usize {
        (CHUNK / (self.shared().len() * self.a.v_dim * size_of::<T>()).max(1)).clamp(16, KEYS)
    }

    /// Asks for what the task needs of a row of keys.
    #[inline(always)]
    unsafe fn ask_key<L: Lanes>(&self, row: usize) {
        let (a, shared) = (self.a, self.shared());
        let at = a.k.as_ptr().wrapping_add(row * a.k_stride + shared.start * a.head_dim);
        for byte in (0..shared.len() * a.head_dim * size_of::<T>()).step_by(LINE) {
            L::prefetch_l2(at.cast::<u8>().wrapping_add(byte).cast());
        }
    }

    /// Asks for what the task needs of a row of values.
    #[inline(always)]
    unsafe fn ask_value<L: Lanes>(&self, row: usize) {
        let (a, shared) = (self.a, self.shared());
        let at = a.v.as_ptr().wrapping_add(row * a.v_stride + shared.start * a.v_dim);
        for byte in (0..shared.len() * a.v_dim * size_of::<T>()).step_by(LINE) {
            L::prefetch_l2(at.cast::<u8>().wrapping_add(byte).cast());
        }
    }

    /// Asks for the first keys of the next block: of those that are left of the query, or else of the next query.
    #[inline(always)]
    unsafe fn ask_for_next<L: Lanes>(&self, query: usize, left: Range<usize>) {
        let (query, keys) = match left.is_empty() {
            false => (query, left),
            true if query + 1 < self.queries.end => (query + 1, self.a.rows[query + 1].seen(self.a.window)),
            true => return,
        };
        for key in keys.take(AHEAD) {
            self.ask_key::<L>(self.a.rows[query].at(key));
        }
    }

    /// Scores of a block of keys with all heads.
    #[inline(always)]
    unsafe fn score<L: Lanes>(&mut self, block: &Block) {
        let rows = &block.rows[..block.count];
        let soon = self.chunk().min(block.count);
        for i in (0..rows.len()).step_by(FOUR) {
            // Beyond the end the last key is repeated.
            let at: [usize; FOUR] = std::array::from_fn(|j| rows[(i + j).min(rows.len() - 1)]);
            for row in rows.iter().skip(i + AHEAD).take(FOUR) {
                self.ask_key::<L>(*row);
            }
            // The first values spread over all keys.
            for row in &rows[i * soon / rows.len()..(i + FOUR).min(rows.len()) * soon / rows.len()] {
                self.ask_value::<L>(*row);
            }
            for shared in self.shared() {
                let readers = self.readers(shared);
                let k = self.a.k.as_ptr().add(shared * self.a.head_dim);
                let k = at.map(|row| k.wrapping_add(row * self.a.k_stride));
                let place = (block.first + i)..block.first + rows.len().min(i + FOUR);
                let mut h = readers.start;
                while L::WIDE && h + 4 <= readers.end {
                    self.tile::<L, 4>(block.query, h, k, place.clone());
                    h += 4;
                }
                while L::WIDE && h + 2 <= readers.end {
                    self.tile::<L, 2>(block.query, h, k, place.clone());
                    h += 2;
                }
                while h < readers.end {
                    self.tile::<L, 1>(block.query, h, k, place.clone());
                    h += 1;
                }
            }
        }
    }

    /// Scores of `H` heads from head `h` of the task on with the keys at `k`, those of `places`.
    #[inline(always)]
    unsafe fn tile<L: Lanes, const H: usize>(
        &mut self,
        query: usize,
        h: usize,
        k: [*const T; FOUR],
        places: Range<usize>,
    ) {
        let (a, d) = (self.a, self.a.head_dim);
        let q = a.q.as_ptr().add(a.q_at(query, self.heads.start + h));
        let mut sums = [[L::splat(0.0); FOUR]; H];
        let whole = d / 16 * 16;
        for j in (0..whole).step_by(16) {
            let mut held = [L::splat(0.0); FOUR];
            for (held, k) in held.iter_mut().zip(k) {
                *held = load(k.add(j));
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let q = L::load(q.add(i * d + j));
                for (sum, k) in sums.iter_mut().zip(held) {
                    *sum = q.fma(k, *sum);
                }
            }
        }
        if whole < d {
            for (i, sums) in sums.iter_mut().enumerate() {
                let q = L::load_part(q.add(i * d + whole), d - whole, 0.0);
                for (sum, k) in sums.iter_mut().zip(k) {
                    *sum = q.fma(load_part(k.add(whole), d - whole), *sum);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let sums = L::sum_each(sums);
            let scores = &mut self.scores[(h + i) * KEYS..][places.clone()];
            for (score, sum) in scores.iter_mut().zip(sums) {
                *score = a.scale * sum;
            }
        }
    }

    /// The weighted sums of a block of values for all heads.
    #[inline(always)]
    unsafe fn values<L: Lanes>(&self, block: &Block) {
        let (chunk, v_dim) = (self.chunk(), self.a.v_dim);
        for first in (0..block.count).step_by(chunk) {
            let part = first..block.count.min(first + chunk);
            let next = part.end..block.count.min(part.end + chunk);
            let strips = v_dim.div_ceil(if L::WIDE { 64 } else { 16 });
            let (mut asked, each) = (next.start, next.len().div_ceil(strips * self.shared().len()));
            for shared in self.shared() {
                let mut j = 0;
                while j < v_dim {
                    for row in &block.rows[asked..next.end.min(asked + each)] {
                        self.ask_value::<L>(*row);
                    }
                    asked = next.end.min(asked + each);
                    let strip = Strip {
                        shared,
                        column: j,
                        keys: part.clone(),
                    };
                    j += match (L::WIDE, v_dim - j) {
                        (true, 64..) => self.strip::<L, 4>(block, &strip, 64),
                        (_, left) => self.strip::<L, 1>(block, &strip, left.min(16)),
                    };
                }
            }
        }
    }

    /// `C` vectors of a head of values, `width` elements in all, for all heads that read it; gives back the width.
    #[inline(always)]
    unsafe fn strip<L: Lanes, const C: usize>(&self, block: &Block, strip: &Strip, width: usize) -> usize {
        let readers = self.readers(strip.shared);
        let mut h = readers.start;
        while h + 4 <= readers.end {
            self.sums::<L, 4, C>(block, strip, h, width);
            h += 4;
        }
        while h < readers.end {
            self.sums::<L, 1, C>(block, strip, h, width);
            h += 1;
        }
        width
    }

    /// The sums of `H` heads from head `h` of the task on.
    #[inline(always)]
    unsafe fn sums<L: Lanes, const H: usize, const C: usize>(
        &self,
        block: &Block,
        strip: &Strip,
        h: usize,
        width: usize,
    ) {
        let a = self.a;
        let out = self.out.at(a.out_at(block.query, self.heads.start + h) + strip.column);
        let v = a.v.as_ptr().add(strip.shared * a.v_dim + strip.column);
        let mut sums = [[L::splat(0.0); C]; H];
        for (i, sums) in sums.iter_mut().enumerate() {
            // Within a block what was summed before counts as it is.
            let factor = match strip.keys.start {
                0 if block.fresh => continue,
                0 => self.states[h + i].factor,
                _ => 1.0,
            };
            for (c, sum) in sums.iter_mut().enumerate() {
                let from = out.add(i * a.v_dim + c * 16);
                let before = if width < 16 {
                    L::load_part(from, width, 0.0)
                } else {
                    L::load(from)
                };
                *sum = before.mul(L::splat(factor));
            }
        }
        let scores = self.scores.as_ptr().add(h * KEYS + block.first);
        for key in strip.keys.clone() {
            let v = v.add(*block.rows.get_unchecked(key) * a.v_stride);
            let mut held = [L::splat(0.0); C];
            for (c, held) in held.iter_mut().enumerate() {
                *held = if width < 16 {
                    load_part(v, width)
                } else {
                    load(v.add(c * 16))
                };
            }
            for (i, sums) in sums.iter_mut().enumerate() {
                let p = L::splat(*scores.add(i * KEYS + key));
                for (sum, v) in sums.iter_mut().zip(held) {
                    *sum = p.fma(v, *sum);
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate() {
            let inverse = match strip.keys.end == block.count {
                true => self.states[h + i].inverse,
                false => 1.0,
            };
            for (c, sum) in sums.into_iter().enumerate() {
                let (to, sum) = (out.add(i * a.v_dim + c * 16), sum.mul(L::splat(inverse)));
                if width < 16 {
                    sum.store_part(to, width);
                } else {
                    sum.store(to);
                }
            }
        }
    }
}

/// Some columns of some rows of a head of values.
struct Strip {
    /// The head.
    shared: usize,
    column: usize,
    /// The rows, by their numbers among those of the block that are seen.
    keys: Range<usize>,
}
