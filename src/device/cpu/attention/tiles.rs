//! Queries that share their rows (encoding; prefill and scoring; beams over one source): keys and values are packed once
//! for all of them, and a tile of queries meets them as a small product.
//!
//! Keys are packed transposed, so that a vector holds 16 keys. All queries look at the same rows from the first on, each as
//! far as it sees: of a triangle, only what lies above the diagonal within 16 keys of it is computed in vain.
use std::ops::Range;

use super::chains::Chains;
use super::pack::{copy, transpose};
use super::softmax::{Running, Weigh};
use super::sums::{Look, Sums};
use super::{floats, Attend, Element, KEYS};
use crate::device::cpu::isa::Kernel;
use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::linear::Line;
use crate::device::cpu::pool::Shared;

/// Queries of a block: their scores over a block of keys stay in the first-level cache.
const QUERIES: usize = 16;
/// Queries of a tile.
pub(super) const TILE: usize = 4;
/// Packed queries, keys and values of short sentences, in floats, that should stay in the first-level cache.
const PACKED: usize = 6 << 10;

/// Some heads of queries that share their rows; see [`super::plan::Task::shared`].
pub(super) struct Tiles<'a, T> {
    pub a: &'a Attend<'a, T>,
    pub queries: Range<usize>,
    /// All heads of some heads of keys.
    pub heads: Range<usize>,
    pub scratch: &'a mut Vec<Line>,
    pub out: Shared,
}

impl<T: Element> Kernel for Tiles<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let a = self.a;
        let group = a.heads / a.kv_heads;
        let (width, v_width) = (a.head_dim.next_multiple_of(16), a.v_dim.next_multiple_of(16));
        let keys = a.rows[self.queries.end - 1].len().min(KEYS).next_multiple_of(16);
        let queries = self.queries.len().next_multiple_of(TILE);
        let packed = keys * (width + v_width) + group * queries * width;
        let most = (PACKED / packed).clamp(1, self.heads.len() / group) * group;
        let room = Room {
            keys,
            width,
            v_width,
            heads: most,
            group,
            queries,
        };
        let scratch = floats(self.scratch, room.floats()).as_mut_ptr();
        for head in self.heads.clone().step_by(most) {
            let heads = HeadGroup {
                a,
                queries: self.queries.clone(),
                heads: head..(head + most).min(self.heads.end),
                last_head: self.heads.end,
                room,
                scratch,
                out: self.out,
            };
            match a.head_dim {
                64 => heads.attend::<L, 4>(),
                128 => heads.attend::<L, 8>(),
                _ => heads.attend::<L, 0>(),
            }
        }
    }
}

/// What lies where in the scratch, in floats.
#[derive(Clone, Copy)]
struct Room {
    /// Keys of a block at most, a multiple of 16.
    keys: usize,
    /// Elements of a head of queries and keys, padded with zeros to a multiple of 16.
    width: usize,
    /// Of values.
    v_width: usize,
    /// Heads that are packed at once.
    heads: usize,
    /// Heads that share keys and values.
    group: usize,
    /// A multiple of [`TILE`].
    queries: usize,
}

impl Room {
    /// Packed keys of a head, `[keys / 16][width][16]`.
    fn key(&self, head: usize) -> usize {
        head / self.group * self.keys * self.width
    }

    /// Packed values of a head, `[keys][v_width]`.
    fn value(&self, head: usize) -> usize {
        self.key(self.heads) + head / self.group * self.keys * self.v_width
    }

    /// Queries of a head, `[queries][width]`, and room for a whole tile from each of them on.
    fn query(&self, head: usize) -> usize {
        self.value(self.heads) + head * self.queries * self.width
    }

    /// Scores of a block of queries, `[QUERIES][keys]`.
    fn score(&self) -> usize {
        self.query(self.heads) + TILE * self.width
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
    /// `N` is the number of a key's vectors, or 0 for keys of any length.
    #[inline(always)]
    unsafe fn attend<L: Lanes, const N: usize>(&self) {
        let (a, rows) = (self.a, &self.a.rows[self.queries.clone()]);
        let softmax = self.scratch.add(self.room.softmax()).cast::<Running>();
        for (h, head) in self.heads.clone().enumerate() {
            for i in 0..self.queries.len() {
                softmax.add(h * self.room.queries + i).write(a.start(head));
            }
        }
        self.pack_queries::<L>();
        let (first, last) = (rows[0].seen(a.window).start, rows[rows.len() - 1].len());
        for start in (first / KEYS * KEYS..last).step_by(KEYS) {
            // What a query sees neither begins nor ends before what those before it see.
            let looking = rows.partition_point(|r| r.len() <= start)
                ..rows.partition_point(|r| r.seen(a.window).start < start + KEYS);
            self.pack::<L>(first.max(start)..last.min(start + KEYS), start);
            for head in 0..self.heads.len() {
                for first in looking.clone().step_by(QUERIES) {
                    self.block::<L, N>(first..(first + QUERIES).min(looking.end), head, start);
                }
            }
        }
    }

    /// Packs the keys and values that are seen of the block from `start` on, row after row as they lie in memory.
    #[inline(always)]
    unsafe fn pack<L: Lanes>(&self, keys: Range<usize>, start: usize) {
        let (a, rows, room) = (self.a, self.a.rows[self.queries.end - 1], &self.room);
        for first in (keys.start / 16 * 16..keys.end).step_by(16) {
            // Beyond both ends a key is repeated: those scores are not looked at.
            let at: [usize; 16] = std::array::from_fn(|i| rows.at((first + i).clamp(keys.start, keys.end - 1)));
            let place = first - start;
            for h in (0..self.heads.len()).step_by(room.group) {
                let k = a.k.as_ptr().add(a.kv_head(self.heads.start + h) * a.head_dim);
                let to = self.scratch.add(room.key(h) + place * room.width);
                transpose::<L, T>(k, &at.map(|row| row * a.k_stride), a.head_dim, to);
            }
            for (i, row) in at.iter().enumerate() {
                for h in (0..self.heads.len()).step_by(room.group) {
                    let v = a.v.as_ptr().add(a.kv_head(self.heads.start + h) * a.v_dim);
                    let to = self.scratch.add(room.value(h) + (place + i) * room.v_width);
                    copy::<L, T>(v.add(row * a.v_stride), a.v_dim, to);
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
                let to = self.scratch.add(self.room.query(h) + i * self.room.width);
                copy::<L, f32>(a.q.as_ptr().add(a.q_at(query, head)), a.head_dim, to);
            }
        }
    }

    /// A block of queries, by their numbers in the task, of one head of the group against the packed keys from `start` on.
    /// Each of them sees some.
    #[inline(always)]
    unsafe fn block<L: Lanes, const N: usize>(&self, queries: Range<usize>, h: usize, start: usize) {
        let (a, room, head) = (self.a, &self.room, self.heads.start + h);
        let scores = self.scratch.add(room.score());
        let rows = &a.rows[self.queries.start..];
        let places = |query: usize| {
            let seen = rows[query].seen(a.window);
            seen.start.max(start) - start..seen.end.min(start + KEYS) - start
        };
        let q = self.scratch.add(room.query(h));
        let tiles = || (queries.clone().step_by(TILE)).map(|first| first..(first + TILE).min(queries.end));
        for vector in places(queries.start).start / 16..places(queries.end - 1).end.div_ceil(16) {
            let k = self.scratch.add(room.key(h) + vector * 16 * room.width);
            for tile in tiles() {
                let seen = places(tile.start).start..places(tile.end - 1).end;
                if seen.start < (vector + 1) * 16 && vector * 16 < seen.end {
                    let to = scores.add((tile.start - queries.start) * room.keys + vector * 16);
                    self.scores::<L, N>(q.add(tile.start * room.width), k, to);
                }
            }
        }
        let softmax = self.scratch.add(room.softmax()).cast::<Running>().add(h * room.queries);
        let mut looks: [Look; QUERIES] = std::array::from_fn(|_| Look::default());
        for (i, query) in queries.clone().enumerate() {
            let seen = rows[query].seen(a.window);
            let scores = std::slice::from_raw_parts_mut(scores.add(i * room.keys), room.keys);
            let softmax = &mut *softmax.add(query);
            let keys = places(query);
            let block = Weigh {
                query: self.queries.start + query,
                head,
                start,
                keys: keys.clone(),
            };
            let factor = block.run::<L, T>(a, scores, softmax);
            looks[i] = Look {
                keys,
                factor: (seen.start < start).then_some(factor),
                inverse: if seen.end <= start + KEYS {
                    softmax.inverse()
                } else {
                    1.0
                },
            };
        }
        for tile in tiles() {
            if start == 0 {
                self.ask_ahead::<L>(tile.start, h);
            }
            let first = tile.start - queries.start;
            let sums = Sums {
                p: scores.add(first * room.keys),
                p_stride: room.keys,
                v: self.scratch.add(room.value(h)),
                v_stride: room.v_width,
                looks: &looks[first..first + tile.len()],
                out: self.out.at(a.out_at(self.queries.start + tile.start, head)),
                out_stride: a.heads * a.v_dim,
            };
            sums.all::<L>(a.v_dim);
        }
    }

    /// Asks for what the group's next heads need of a tile of queries, and of as many keys; head `h` for the one that many
    /// heads further.
    #[inline(always)]
    unsafe fn ask_ahead<L: Lanes>(&self, first: usize, h: usize) {
        let (a, rows) = (self.a, self.a.rows[self.queries.end - 1]);
        let head = self.heads.end + h;
        if head >= self.last_head {
            return;
        }
        for i in first..first + TILE {
            if i < self.queries.len() {
                let q = a.q.as_ptr().wrapping_add(a.q_at(self.queries.start + i, head));
                for j in (0..a.head_dim).step_by(16) {
                    L::prefetch(q.wrapping_add(j));
                }
            }
            if i < rows.len() && h.is_multiple_of(self.room.group) {
                let (row, shared) = (rows.at(i), a.kv_head(head));
                let k = a.k.as_ptr().wrapping_add(row * a.k_stride + shared * a.head_dim);
                let v = a.v.as_ptr().wrapping_add(row * a.v_stride + shared * a.v_dim);
                for j in (0..a.head_dim).step_by(64 / size_of::<T>()) {
                    L::prefetch(k.wrapping_add(j).cast());
                }
                for j in (0..a.v_dim).step_by(64 / size_of::<T>()) {
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
