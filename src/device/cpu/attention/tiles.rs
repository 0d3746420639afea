//! Queries that share their rows (prefill; beams over one source): keys and values are packed once for all of them, and
//! a tile of queries meets them as a small product.
//!
//! Keys are packed transposed, so that a vector holds 16 keys. A score is then summed for 16 keys at once in the order
//! in which [`super::rows`] sums it across a vector's lanes: 16 chains, then their tree.
use std::ops::Range;

use super::element::{load, load_part};
use super::softmax::Running;
use super::{floats, Attend, Element, KEYS};
use crate::device::cpu::isa::Kernel;
use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::linear::Line;
use crate::device::cpu::pool::Shared;

/// Queries of a block: their scores over a block of keys stay in the first-level cache.
const QUERIES: usize = 16;
/// Queries of a tile.
const TILE: usize = 4;
/// Packed queries, keys and values of short sentences, in floats, that should stay in the first-level cache.
const PACKED: usize = 6 << 10;

/// Some heads of queries that have the same rows.
pub(super) struct Tiles<'a, T> {
    pub a: &'a Attend<'a, T>,
    pub queries: Range<usize>,
    pub heads: Range<usize>,
    pub scratch: &'a mut Vec<Line>,
    pub out: Shared,
}

impl<T: Element> Kernel for Tiles<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (a, rows) = (self.a, self.a.rows[self.queries.start]);
        let vectors = a.head_dim.div_ceil(16);
        let keys = rows.len().min(KEYS).next_multiple_of(16);
        let most = (PACKED / (3 * keys * vectors * 16)).clamp(1, self.heads.len());
        let room = Room {
            keys,
            width: vectors * 16,
            heads: most,
            queries: self.queries.len(),
        };
        let scratch = floats(self.scratch, room.floats()).as_mut_ptr();
        for head in self.heads.clone().step_by(most) {
            let heads = head..(head + most).min(self.heads.end);
            let group = HeadGroup {
                a,
                queries: self.queries.clone(),
                heads,
                last_head: self.heads.end,
                room,
                scratch,
                out: self.out,
            };
            match a.head_dim {
                64 => group.attend::<L, 4>(),
                128 => group.attend::<L, 8>(),
                _ => group.attend::<L, 0>(),
            }
        }
    }
}

/// What lies where in the scratch, in floats.
#[derive(Clone, Copy)]
struct Room {
    /// Keys of a block at most, a multiple of 16.
    keys: usize,
    /// Elements of a head, padded with zeros to a multiple of 16.
    width: usize,
    /// Heads that are packed at once.
    heads: usize,
    queries: usize,
}

impl Room {
    /// Packed keys of a head, `[keys / 16][width][16]`.
    fn key(&self, head: usize) -> usize {
        head * self.keys * self.width
    }

    /// Packed values of a head, `[keys][width]`.
    fn value(&self, head: usize) -> usize {
        self.key(self.heads) + head * self.keys * self.width
    }

    /// Queries of a head, `[queries][width]`, with room for a whole last tile.
    fn query(&self, head: usize) -> usize {
        self.value(self.heads) + head * self.queries.next_multiple_of(TILE) * self.width
    }

    /// Scores of a block of queries, `[QUERIES][keys]`.
    fn score(&self) -> usize {
        self.query(self.heads)
    }

    /// The softmax of each head and query, `[heads][queries]`, two floats each.
    fn softmax(&self) -> usize {
        self.score() + QUERIES * self.keys
    }

    fn floats(&self) -> usize {
        self.softmax() + 2 * self.heads * self.queries
    }
}

/// Heads whose keys and values are packed side by side.
struct HeadGroup<'a, T> {
    a: &'a Attend<'a, T>,
    queries: Range<usize>,
    heads: Range<usize>,
    /// End of the heads of the task.
    last_head: usize,
    room: Room,
    scratch: *mut f32,
    out: Shared,
}

impl<T: Element> HeadGroup<'_, T> {
    /// `N` is the number of a head's vectors, or 0 for a head of any length.
    #[inline(always)]
    unsafe fn attend<L: Lanes, const N: usize>(&self) {
        let all = self.a.rows[self.queries.start].len();
        let softmax = self.scratch.add(self.room.softmax()).cast::<Running>();
        for i in 0..self.heads.len() * self.queries.len() {
            softmax.add(i).write(Running::START);
        }
        self.pack_queries::<L>();
        for start in (0..all).step_by(KEYS) {
            let keys = start..all.min(start + KEYS);
            self.pack::<L>(keys.clone());
            for head in 0..self.heads.len() {
                for first in self.queries.clone().step_by(QUERIES) {
                    let block = Block {
                        queries: first..(first + QUERIES).min(self.queries.end),
                        head,
                        keys: keys.len(),
                        fresh: start == 0,
                        last: keys.end == all,
                    };
                    self.block::<L, N>(&block);
                }
            }
        }
    }

    /// Packs a block of keys and values of all heads, row after row as they lie in memory.
    #[inline(always)]
    unsafe fn pack<L: Lanes>(&self, keys: Range<usize>) {
        let (a, rows, room) = (self.a, self.a.rows[self.queries.start], &self.room);
        for sixteen in (0..keys.len()).step_by(16) {
            // Beyond the end the last key is repeated: those scores are not looked at.
            let last = keys.len() - 1;
            let at: [usize; 16] = std::array::from_fn(|i| rows.at(keys.start + last.min(sixteen + i)));
            for (h, head) in self.heads.clone().enumerate() {
                let to = self.scratch.add(room.key(h) + sixteen * room.width);
                let at = at.map(|row| row * a.k_stride);
                transpose::<L, T>(a.k.as_ptr().add(head * a.head_dim), &at, a.head_dim, to);
            }
            for (i, at) in at.iter().enumerate().take(keys.len() - sixteen) {
                for (h, head) in self.heads.clone().enumerate() {
                    let to = self.scratch.add(room.value(h) + (sixteen + i) * room.width);
                    copy::<L, T>(a.v.as_ptr().add(at * a.v_stride + head * a.head_dim), a.head_dim, to);
                }
            }
        }
    }

    /// Copies all heads of the queries, query after query as they lie in memory.
    #[inline(always)]
    unsafe fn pack_queries<L: Lanes>(&self) {
        let a = self.a;
        for (i, query) in self.queries.clone().enumerate() {
            for (h, head) in self.heads.clone().enumerate() {
                let from = a.q.as_ptr().add(query * a.q_stride + head * a.head_dim);
                let to = self.scratch.add(self.room.query(h) + i * self.room.width);
                copy::<L, f32>(from, a.head_dim, to);
            }
        }
    }

    /// A block of queries of one head against the packed keys.
    #[inline(always)]
    unsafe fn block<L: Lanes, const N: usize>(&self, block: &Block) {
        let (a, room, head) = (self.a, &self.room, self.heads.start + block.head);
        let first = block.queries.start - self.queries.start;
        let q = self.scratch.add(room.query(block.head) + first * room.width);
        let scores = self.scratch.add(room.score());
        let tiles = block.queries.len().div_ceil(TILE);
        let padded = block.keys.next_multiple_of(16);
        for vector in 0..padded / 16 {
            let k = self.scratch.add(room.key(block.head) + vector * 16 * room.width);
            for tile in 0..tiles {
                let (q, to) = (
                    q.add(tile * TILE * room.width),
                    scores.add(tile * TILE * room.keys + vector * 16),
                );
                self.scores::<L, N>(q, k, to);
                if (vector + 1) * 16 > block.keys {
                    self.cut_scores::<L>(to, block.keys % 16);
                }
            }
        }
        // Queries beyond the end of the last tile have no softmax; what is made of them is not stored.
        let (mut factor, mut inverse) = ([0.0; QUERIES], [0.0; QUERIES]);
        let softmax = self.scratch.add(room.softmax()).cast::<Running>();
        let softmax = softmax.add(block.head * room.queries + first);
        for i in 0..block.queries.len() {
            let scores = std::slice::from_raw_parts_mut(scores.add(i * room.keys), padded);
            factor[i] = (*softmax.add(i)).take::<L>(scores);
            inverse[i] = if block.last { (*softmax.add(i)).inverse() } else { 1.0 };
        }
        for tile in 0..tiles {
            let first = block.queries.start + tile * TILE;
            self.ask_ahead::<L>(first - self.queries.start);
            let sums = Sums {
                p: scores.add(tile * TILE * room.keys),
                p_stride: room.keys,
                v: self.scratch.add(room.value(block.head)),
                v_stride: room.width,
                keys: block.keys,
                factor: (!block.fresh).then(|| &factor[tile * TILE..][..TILE]),
                inverse: &inverse[tile * TILE..][..TILE],
                out: self.out.at((first * a.heads + head) * a.head_dim),
                out_stride: a.heads * a.head_dim,
                queries: TILE.min(block.queries.end - first),
            };
            sums.all::<L>(a.head_dim);
        }
    }

    /// Puts `-inf` behind the first `n` of 16 scores of a tile of queries.
    #[inline(always)]
    unsafe fn cut_scores<L: Lanes>(&self, scores: *mut f32, n: usize) {
        // Added, since what is there is the last key's score, and not for this alone infinite.
        let cut = L::load_part([0.0; 16].as_ptr(), n, f32::NEG_INFINITY);
        for query in 0..TILE {
            let scores = scores.add(query * self.room.keys);
            L::load(scores).add(cut).store(scores);
        }
    }

    /// Asks for what the next heads need of a tile of queries, and of as many keys.
    #[inline(always)]
    unsafe fn ask_ahead<L: Lanes>(&self, first: usize) {
        let (a, rows) = (self.a, self.a.rows[self.queries.start]);
        let next = self.heads.end * a.head_dim;
        let most = (self.last_head - self.heads.end).min(self.heads.len()) * a.head_dim;
        for i in first..first + TILE {
            if i < self.queries.len() {
                let q = a.q.as_ptr().add((self.queries.start + i) * a.q_stride + next);
                (0..most).step_by(16).for_each(
                    #[inline(always)]
                    |j| L::prefetch(q.wrapping_add(j)),
                );
            }
            if i < rows.len() {
                let row = rows.at(i);
                let (k, v) = (
                    a.k.as_ptr().add(row * a.k_stride + next),
                    a.v.as_ptr().add(row * a.v_stride + next),
                );
                for j in (0..most).step_by(64 / size_of::<T>()) {
                    L::prefetch(k.wrapping_add(j).cast());
                    L::prefetch(v.wrapping_add(j).cast());
                }
            }
        }
    }

    /// Scores of a tile of queries with 16 keys.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const N: usize>(&self, q: *const f32, k: *const f32, to: *mut f32) {
        let width = if N == 0 { self.room.width } else { N * 16 };
        let scale = L::splat(self.a.scale);
        if L::WIDE {
            let chains = Chains::<TILE> { q, k, width };
            for (i, sum) in chains.tree::<L>().into_iter().enumerate() {
                sum.mul(scale).store(to.add(i * self.room.keys));
            }
            return;
        }
        for i in 0..TILE {
            let chains = Chains::<1> {
                q: q.add(i * width),
                k,
                width,
            };
            let [sum] = chains.tree::<L>();
            sum.mul(scale).store(to.add(i * self.room.keys));
        }
    }
}

/// A block of queries of one head and a block of keys.
struct Block {
    queries: Range<usize>,
    /// The head's number in its group.
    head: usize,
    keys: usize,
    /// Whether these are the first keys.
    fresh: bool,
    /// Whether these are the last keys.
    last: bool,
}

/// `Q` queries times 16 keys: lane `l` of a product across lanes is the chain over elements `l`, `l + 16`, and so on.
struct Chains<const Q: usize> {
    /// `[Q][width]`
    q: *const f32,
    /// `[width][16]`
    k: *const f32,
    width: usize,
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
    unsafe fn tree<L: Lanes>(&self) -> [L; Q] {
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

/// The weighted sums of a block of values for a tile of queries.
struct Sums<'a> {
    /// `exp(score - max)`, `[TILE][p_stride]`
    p: *const f32,
    p_stride: usize,
    /// `[keys][v_stride]`
    v: *const f32,
    v_stride: usize,
    keys: usize,
    /// What the sums of earlier blocks in `out` are multiplied by; none before the first block.
    factor: Option<&'a [f32]>,
    /// What sums are multiplied by at the end of the block.
    inverse: &'a [f32],
    out: *mut f32,
    out_stride: usize,
    /// Queries of the tile that there are.
    queries: usize,
}

impl Sums<'_> {
    #[inline(always)]
    unsafe fn all<L: Lanes>(&self, d: usize) {
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
        if let Some(factor) = self.factor {
            for (i, sums) in sums.iter_mut().enumerate().take(self.queries) {
                for (c, sum) in sums.iter_mut().enumerate() {
                    let from = self.out.add(i * self.out_stride + j + c * 16);
                    let before = if lanes < 16 {
                        L::load_part(from, lanes, 0.0)
                    } else {
                        L::load(from)
                    };
                    *sum = before.mul(L::splat(factor[i]));
                }
            }
        }
        for key in 0..self.keys {
            let v: [L; C] = {
                let mut v = [L::splat(0.0); C];
                for (c, v) in v.iter_mut().enumerate() {
                    *v = L::load(self.v.add(key * self.v_stride + j + c * 16));
                }
                v
            };
            for (i, sums) in sums.iter_mut().enumerate() {
                let p = L::splat(*self.p.add(i * self.p_stride + key));
                for (sum, v) in sums.iter_mut().zip(v) {
                    *sum = p.fma(v, *sum);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate().take(self.queries) {
            for (c, sum) in sums.iter().enumerate() {
                let to = self.out.add(i * self.out_stride + j + c * 16);
                let sum = sum.mul(L::splat(self.inverse[i]));
                if lanes < 16 {
                    sum.store_part(to, lanes);
                } else {
                    sum.store(to);
                }
            }
        }
    }
}

/// 16 rows of `d` elements, which begin at `at` after `from`, as columns: `[width][16]`.
#[inline(always)]
unsafe fn transpose<L: Lanes, T: Element>(from: *const T, at: &[usize; 16], d: usize, to: *mut f32) {
    for c in (0..d).step_by(16) {
        let mut rows = [L::splat(0.0); 16];
        for (row, at) in rows.iter_mut().zip(at) {
            let from = from.add(at + c);
            *row = if c + 16 <= d {
                load(from)
            } else {
                load_part(from, d - c)
            };
        }
        for (i, column) in L::transpose(rows).into_iter().enumerate() {
            column.store(to.add((c + i) * 16));
        }
    }
}

/// `d` elements as f32, padded with zeros to a multiple of 16.
#[inline(always)]
unsafe fn copy<L: Lanes, T: Element>(from: *const T, d: usize, to: *mut f32) {
    let whole = d / 16 * 16;
    for i in (0..whole).step_by(16) {
        load::<L, T>(from.add(i)).store(to.add(i));
    }
    if whole < d {
        load_part::<L, T>(from.add(whole), d - whole).store(to.add(whole));
    }
}
