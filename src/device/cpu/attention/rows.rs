//! Queries with rows of their own (decoding): each row is read once, several heads of it side by side.
use std::ops::Range;

use super::element::{load, load_part};
use super::softmax::{Running, Weigh};
use super::{Attend, Element, KeyRows, KEYS};
use crate::device::cpu::isa::Kernel;
use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::pool::Shared;

/// Heads that are taken at once at most.
pub(super) const HEADS: usize = 4;
/// Key rows that are asked for ahead of the one in hand.
const AHEAD: usize = 6;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Some heads of some queries.
pub(super) struct Rows<'a, T> {
    pub a: &'a Attend<'a, T>,
    pub queries: Range<usize>,
    pub heads: Range<usize>,
    /// `[HEADS][KEYS]`
    pub scores: &'a mut [f32],
    pub out: Shared,
}

impl<T: Element> Kernel for Rows<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        let mut ahead = Ahead::new(&self);
        let (a, d) = (self.a, self.a.head_dim);
        let plain =
            a.heads == a.kv_heads && d == a.v_dim && a.window.is_none() && a.bias.is_none() && a.sinks.is_none();
        let d = if plain { d } else { 0 };
        if d == 64 || d == 128 {
            ahead.ask::<L, T>(&self, AHEAD);
        }
        for query in self.queries.clone() {
            match d {
                64 => self.query::<L, 4, 4>(query, &mut ahead),
                128 => self.query::<L, 2, 8>(query, &mut ahead),
                _ => {
                    for head in self.heads.clone() {
                        self.one_head::<L, 0>(query, head);
                    }
                }
            }
        }
    }
}

/// Asks for the rows that a task will need, across its queries, in memory's order and all its heads of a row at once: a
/// stream, which the CPU's own prefetcher joins. The sums take a part of the heads at a time, which it can't follow.
struct Ahead {
    /// The next row to ask for: its query, and its number among that query's.
    query: usize,
    key: usize,
}

impl Ahead {
    /// Before the first row of a task.
    fn new<T: Element>(task: &Rows<'_, T>) -> Ahead {
        Ahead {
            query: task.queries.start,
            key: 0,
        }
    }

    /// Asks for the next `rows` rows of the task, as far as there are any.
    #[inline(always)]
    unsafe fn ask<L: Lanes, T: Element>(&mut self, task: &Rows<'_, T>, rows: usize) {
        let a = task.a;
        for _ in 0..rows {
            while self.query < task.queries.end && self.key == a.rows[self.query].len() {
                (self.query, self.key) = (self.query + 1, 0);
            }
            if self.query == task.queries.end {
                return;
            }
            let (row, offset) = (a.rows[self.query].at(self.key), task.heads.start * a.head_dim);
            let bytes = task.heads.len() * a.head_dim * size_of::<T>();
            let (k, v) = (row * a.k_stride + offset, row * a.v_stride + offset);
            for row in [a.k.as_ptr().add(k), a.v.as_ptr().add(v)] {
                for byte in (0..bytes).step_by(LINE) {
                    L::prefetch_l2(row.cast::<u8>().add(byte).cast());
                }
            }
            self.key += 1;
        }
    }
}

impl<T: Element> Rows<'_, T> {
    /// `H` heads of `N` vectors at a time.
    #[inline(always)]
    unsafe fn query<L: Lanes, const H: usize, const N: usize>(&mut self, query: usize, ahead: &mut Ahead) {
        let mut head = self.heads.start;
        while head + H <= self.heads.end {
            self.several_heads::<L, H, N>(query, head, ahead);
            head += H;
        }
        for head in head..self.heads.end {
            self.one_head::<L, N>(query, head);
        }
    }

    /// Neighbouring heads of one query, so that what is read of a row lies together. The sums are those of
    /// [`Rows::one_head`].
    #[inline(always)]
    unsafe fn several_heads<L: Lanes, const H: usize, const N: usize>(
        &mut self,
        query: usize,
        head: usize,
        ahead: &mut Ahead,
    ) {
        let (rows, offset) = (self.a.rows[query], head * self.a.head_dim);
        let q = self.a.q.as_ptr().add(query * self.a.q_stride + offset);
        let out = self.out.at((query * self.a.heads + head) * self.a.head_dim);
        let mut softmax = [Running::START; H];
        if rows.is_empty() {
            std::slice::from_raw_parts_mut(out, H * N * 16).fill(0.0);
        }
        for start in (0..rows.len()).step_by(KEYS) {
            let keys = start..rows.len().min(start + KEYS);
            let first = (head == self.heads.start).then_some(&mut *ahead);
            self.score::<L, H, N>(q, rows, keys.clone(), offset, first);
            let (mut factor, mut inverse) = ([1.0; H], [1.0; H]);
            for (h, softmax) in softmax.iter_mut().enumerate() {
                factor[h] = softmax.take::<L>(padded(&mut self.scores[h * KEYS..], keys.len()));
                if keys.end == rows.len() {
                    inverse[h] = softmax.inverse();
                }
            }
            let mut sums = [[L::splat(0.0); N]; H];
            if start > 0 {
                for (h, sums) in sums.iter_mut().enumerate() {
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = L::load(out.add((h * N + j) * 16)).mul(L::splat(factor[h]));
                    }
                }
            }
            for (i, key) in keys.enumerate() {
                let v = self.a.v.as_ptr().add(offset + rows.at(key) * self.a.v_stride);
                for (h, sums) in sums.iter_mut().enumerate() {
                    let p = L::splat(*self.scores.get_unchecked(h * KEYS + i));
                    for (j, sum) in sums.iter_mut().enumerate() {
                        *sum = p.fma(load(v.add((h * N + j) * 16)), *sum);
                    }
                }
            }
            for (h, sums) in sums.iter().enumerate() {
                for (j, sum) in sums.iter().enumerate() {
                    sum.mul(L::splat(inverse[h])).store(out.add((h * N + j) * 16));
                }
            }
        }
    }

    /// Scores of a block of keys with `H` heads of the query at `q`, into `[H][KEYS]`.
    #[inline(always)]
    unsafe fn score<L: Lanes, const H: usize, const N: usize>(
        &mut self,
        q: *const f32,
        rows: KeyRows<'_>,
        keys: Range<usize>,
        offset: usize,
        mut ahead: Option<&mut Ahead>,
    ) {
        let a = self.a;
        let k = a.k.as_ptr().add(offset);
        let mut held = [[L::splat(0.0); N]; H];
        for (h, held) in held.iter_mut().enumerate() {
            *held = vectors(q.add(h * N * 16));
        }
        for (i, key) in keys.enumerate() {
            if let Some(ahead) = &mut ahead {
                ahead.ask::<L, T>(self, 1);
            }
            let k = k.add(rows.at(key) * a.k_stride);
            let mut products = [L::splat(0.0); 4];
            for h in 0..H {
                products[h] = dot_held(held[h], k.add(h * N * 16));
            }
            let sums = L::sum_each(products);
            for (h, sum) in sums.into_iter().enumerate().take(H) {
                *self.scores.get_unchecked_mut(h * KEYS + i) = a.scale * sum;
            }
        }
    }

    /// One query and head. `N` is the number of its vectors, or 0 for a head of any length.
    #[inline(always)]
    unsafe fn one_head<L: Lanes, const N: usize>(&mut self, query: usize, head: usize) {
        let (a, rows) = (self.a, self.a.rows[query]);
        let (d, shared) = (a.head_dim, a.kv_head(head));
        let q = a.q.as_ptr().add(a.q_at(query, head));
        let (k, v) = (a.k.as_ptr().add(shared * d), a.v.as_ptr().add(shared * a.v_dim));
        let held: [L; N] = vectors(q);
        let out = self.out.at(a.out_at(query, head));
        std::slice::from_raw_parts_mut(out, a.v_dim).fill(0.0);
        let (mut softmax, seen) = (a.start(head), rows.seen(a.window));
        for start in (seen.start / KEYS * KEYS..seen.end).step_by(KEYS) {
            let keys = seen.start.max(start)..seen.end.min(start + KEYS);
            let (first, count) = (keys.start - start, keys.len());
            let scores = &mut self.scores[first..first + count];
            for (four, scores) in scores.chunks_mut(4).enumerate() {
                let mut products = [L::splat(0.0); 4];
                for (i, product) in products.iter_mut().enumerate().take(scores.len()) {
                    let k = k.add(rows.at(keys.start + four * 4 + i) * a.k_stride);
                    *product = if N == 0 { dot(q, k, d) } else { dot_held(held, k) };
                }
                for (score, sum) in scores.iter_mut().zip(L::sum_each(products)) {
                    *score = a.scale * sum;
                }
            }
            let block = Weigh {
                query,
                head,
                start,
                keys: first..first + count,
            };
            let factor = L::splat(block.run::<L, T>(a, self.scores, &mut softmax));
            let inverse = match keys.end == seen.end {
                true => softmax.inverse(),
                false => 1.0,
            };
            let block = Weighted {
                scores: &self.scores[first..first + count],
                rows,
                start: keys.start,
                v,
                stride: a.v_stride,
                factor,
                inverse: L::splat(inverse),
            };
            block.all(out, a.v_dim);
        }
    }
}

/// `n` scores and `-inf` up to the next multiple of 16: a store of part of a vector costs more than one of all.
#[inline(always)]
fn padded(scores: &mut [f32], n: usize) -> &mut [f32] {
    let whole = n.next_multiple_of(16);
    scores[n..whole].fill(f32::NEG_INFINITY);
    &mut scores[..whole]
}

/// The weighted sum of a block of values of one query and head.
struct Weighted<'a, L, T> {
    /// `exp(score - max)`
    scores: &'a [f32],
    rows: KeyRows<'a>,
    /// The block's first key among `rows`.
    start: usize,
    v: *const T,
    stride: usize,
    /// What sums of earlier blocks are multiplied by.
    factor: L,
    /// What sums are multiplied by at the end of the block.
    inverse: L,
}

impl<L: Lanes, T: Element> Weighted<'_, L, T> {
    /// Adds to the `d` sums at `out`.
    #[inline(always)]
    unsafe fn all(&self, out: *mut f32, d: usize) {
        let mut j = 0;
        while j + 64 <= d {
            self.vectors::<4>(out, j);
            j += 64;
        }
        while j + 16 <= d {
            self.vectors::<1>(out, j);
            j += 16;
        }
        if j < d {
            let mut sum = L::load_part(out.add(j), d - j, 0.0).mul(self.factor);
            for (i, p) in self.scores.iter().enumerate() {
                sum = L::splat(*p).fma(load_part(self.value(i).add(j), d - j), sum);
            }
            sum.mul(self.inverse).store_part(out.add(j), d - j);
        }
    }

    #[inline(always)]
    unsafe fn vectors<const N: usize>(&self, out: *mut f32, j: usize) {
        let mut sums: [L; N] = vectors(out.add(j));
        for sum in &mut sums {
            *sum = sum.mul(self.factor);
        }
        for (i, p) in self.scores.iter().enumerate() {
            let (p, v) = (L::splat(*p), self.value(i).add(j));
            for (n, sum) in sums.iter_mut().enumerate() {
                *sum = p.fma(load(v.add(n * 16)), *sum);
            }
        }
        for (n, sum) in sums.into_iter().enumerate() {
            sum.mul(self.inverse).store(out.add(j + n * 16));
        }
    }

    #[inline(always)]
    unsafe fn value(&self, i: usize) -> *const T {
        self.v.add(self.rows.at(self.start + i) * self.stride)
    }
}

/// `N` vectors from `p` on.
#[inline(always)]
unsafe fn vectors<L: Lanes, const N: usize>(p: *const f32) -> [L; N] {
    let mut all = [L::splat(0.0); N];
    for (i, one) in all.iter_mut().enumerate() {
        *one = L::load(p.add(i * 16));
    }
    all
}

/// [`dot`] with `a` in registers.
#[inline(always)]
unsafe fn dot_held<L: Lanes, T: Element, const N: usize>(a: [L; N], b: *const T) -> L {
    let mut sum = L::splat(0.0);
    for (i, a) in a.into_iter().enumerate() {
        sum = a.fma(load(b.add(i * 16)), sum);
    }
    sum
}

/// `a . b` over 16 lanes, which are still to be summed.
#[inline(always)]
unsafe fn dot<L: Lanes, T: Element>(a: *const f32, b: *const T, len: usize) -> L {
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i + 16 <= len {
        sum = L::load(a.add(i)).fma(load(b.add(i)), sum);
        i += 16;
    }
    if i < len {
        sum = L::load_part(a.add(i), len - i, 0.0).fma(load_part(b.add(i), len - i), sum);
    }
    sum
}
