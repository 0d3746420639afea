//! Attention over rows of keys and values, given as a range or one by one.
use std::cell::RefCell;
use std::ops::Range;

use super::exp::exp_of_scores;
use super::isa::Kernel;
use super::lanes::Lanes;
use super::pool::Shared;
use super::Cpu;

/// Queries that a task takes at most, of one head, so that keys and values they share stay in cache.
const QUERIES: usize = 16;
/// Heads that the kernel takes at once at most.
const MOST_HEADS: usize = 4;
/// Key rows that are asked for ahead of the one in hand.
const AHEAD: usize = 3;

thread_local! {
    /// Scores of one query and head; grows, and is kept.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Which rows of the keys and values a query attends to, in order.
#[derive(Clone, Copy, Debug)]
pub enum KeyRows<'a> {
    /// First row and count.
    Range(usize, usize),
    /// The rows one by one.
    Table(&'a [u32]),
}

impl KeyRows<'_> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            KeyRows::Range(_, count) => *count,
            KeyRows::Table(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether these are known to be the same rows as `other`, without looking into tables.
    fn is(&self, other: &KeyRows<'_>) -> bool {
        match (self, other) {
            (KeyRows::Range(first, count), KeyRows::Range(other, n)) => (first, count) == (other, n),
            _ => false,
        }
    }

    /// One more than the highest row.
    fn end(&self) -> usize {
        match self {
            KeyRows::Range(_, 0) => 0,
            KeyRows::Range(first, count) => first + count,
            KeyRows::Table(rows) => rows.iter().max().map_or(0, |r| *r as usize + 1),
        }
    }

    /// Row `i` of them.
    #[inline(always)]
    fn at(&self, i: usize) -> usize {
        match self {
            KeyRows::Range(first, _) => first + i,
            KeyRows::Table(rows) => rows[i] as usize,
        }
    }
}

/// One attention over cached or fresh keys and values. Head `h` of query `i` is
/// `softmax(scale * q . k over its key rows, in order) . v`; a query without key rows gives zeros.
pub struct Attend<'a> {
    /// Queries: head `h` of query `i` starts at `i * q_stride + h * head_dim`.
    pub q: &'a [f32],
    /// Elements between the starts of two queries.
    pub q_stride: usize,
    /// Keys: head `h` of row `r` starts at `r * kv_stride + h * head_dim`.
    pub k: &'a [f32],
    /// Values, laid out as the keys.
    pub v: &'a [f32],
    /// Elements between the starts of two rows of keys, and of values.
    pub kv_stride: usize,
    /// Number of heads.
    pub heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// The key rows of each query; as many as there are queries.
    pub rows: &'a [KeyRows<'a>],
    /// `[queries, heads * head_dim]`
    pub out: &'a mut [f32],
}

impl Attend<'_> {
    fn check(&self) {
        let (width, queries) = (self.heads * self.head_dim, self.rows.len());
        assert_eq!(
            self.out.len(),
            queries * width,
            "attend: out doesn't fit {queries} queries"
        );
        let fits =
            |buffer: &[f32], rows: usize, stride: usize| rows == 0 || (rows - 1) * stride + width <= buffer.len();
        assert!(
            fits(self.q, queries, self.q_stride),
            "attend: q is too short for {queries} queries"
        );
        let end = self.rows.iter().map(KeyRows::end).max().unwrap_or(0);
        assert!(
            fits(self.k, end, self.kv_stride),
            "attend: key row {end} is beyond the end"
        );
        assert!(
            fits(self.v, end, self.kv_stride),
            "attend: value row {end} is beyond the end"
        );
    }
}

impl Cpu {
    /// Attention of every query and head; see [`Attend`].
    ///
    /// # Panics
    /// If a query, a key row or `out` lies outside its buffer.
    pub fn attend(&self, mut a: Attend<'_>) {
        a.check();
        let keys: usize = a.rows.iter().map(KeyRows::len).sum();
        let nanoseconds = (keys * a.heads * (a.head_dim + 16)) as f64 * 0.05;
        let cut = Cut::of(&a, self.threads());
        let longest = a.rows.iter().map(KeyRows::len).max().unwrap_or(0);
        let out = Shared(a.out.as_mut_ptr());
        a.out = &mut [];
        let a = &a;
        self.for_each(cut.tasks(a), nanoseconds, |task| {
            let (queries, heads) = cut.task(a, task);
            SCORES.with_borrow_mut(|scores| {
                if scores.len() < longest * MOST_HEADS {
                    scores.resize(longest * MOST_HEADS, 0.0);
                }
                let alone = cut.alone;
                // SAFETY: a device's instruction set is available; `check` has seen that all rows lie inside; each
                // query and head writes a part of `out` of its own.
                unsafe {
                    self.isa().run(Block {
                        a,
                        queries,
                        heads,
                        alone,
                        scores,
                        out,
                    })
                };
            });
        });
    }
}

/// How an attention is cut into tasks. Results don't depend on it.
struct Cut {
    /// Most queries have key rows of their own (decoding), which are read once: several heads at a time, row after row.
    /// Otherwise (prefill) neighbours share theirs: head after head, so that a head's keys stay in the first-level cache.
    alone: bool,
    /// Queries of a task.
    queries: usize,
    /// Heads of a task.
    heads: usize,
}

impl Cut {
    fn of(a: &Attend<'_>, threads: usize) -> Cut {
        let n = a.rows.len().max(1);
        let runs = a.rows.windows(2).filter(|pair| !pair[0].is(&pair[1])).count() + 1;
        let alone = runs * 8 > n;
        let heads = match alone {
            true if n >= 4 * threads => a.heads,
            true => MOST_HEADS.min(a.heads),
            false => 1,
        };
        let queries = (n * a.heads.div_ceil(heads.max(1)) / (threads * 8))
            .clamp(1, QUERIES)
            .min(n);
        Cut { alone, queries, heads }
    }

    fn groups(&self, a: &Attend<'_>) -> usize {
        a.heads.div_ceil(self.heads.max(1))
    }

    fn tasks(&self, a: &Attend<'_>) -> usize {
        a.rows.len().div_ceil(self.queries) * self.groups(a)
    }

    /// Queries and heads of a task.
    fn task(&self, a: &Attend<'_>, task: usize) -> (Range<usize>, Range<usize>) {
        let (query, head) = (task / self.groups(a) * self.queries, task % self.groups(a) * self.heads);
        let queries = query..(query + self.queries).min(a.rows.len());
        (queries, head..(head + self.heads).min(a.heads))
    }
}

/// Some queries and heads.
struct Block<'a> {
    a: &'a Attend<'a>,
    queries: Range<usize>,
    heads: Range<usize>,
    /// See [`Cut::alone`].
    alone: bool,
    scores: &'a mut [f32],
    out: Shared,
}

impl Kernel for Block<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(mut self) {
        match (self.alone, self.a.head_dim) {
            (true, 64) => self.rows_first::<L, 4, 4>(),
            (true, 128) => self.rows_first::<L, 2, 8>(),
            (false, 64) => self.heads_first::<L, 4>(),
            _ => self.heads_first::<L, 0>(),
        }
    }
}

impl Block<'_> {
    /// `H` heads of `N` vectors at a time.
    #[inline(always)]
    unsafe fn rows_first<L: Lanes, const H: usize, const N: usize>(&mut self) {
        for query in self.queries.clone() {
            let mut head = self.heads.start;
            while head + H <= self.heads.end {
                self.several_heads::<L, H, N>(query, head);
                head += H;
            }
            for head in head..self.heads.end {
                self.one_head::<L, N>(query, head);
            }
        }
    }

    /// `N` is the number of a head's vectors, or 0 for a head of any length.
    #[inline(always)]
    unsafe fn heads_first<L: Lanes, const N: usize>(&mut self) {
        for head in self.heads.clone() {
            for query in self.queries.clone() {
                self.one_head::<L, N>(query, head);
            }
        }
    }

    /// Neighbouring heads of one query, so that what is read of a row lies together. The sums are those of
    /// [`Block::one_head`].
    #[inline(always)]
    unsafe fn several_heads<L: Lanes, const H: usize, const N: usize>(&mut self, query: usize, head: usize) {
        let a = self.a;
        let (rows, offset) = (a.rows[query], head * a.head_dim);
        let n = rows.len();
        let q = a.q.as_ptr().add(query * a.q_stride + offset);
        let (k, v) = (a.k.as_ptr().add(offset), a.v.as_ptr().add(offset));
        let mut held = [[L::splat(0.0); N]; H];
        for (h, held) in held.iter_mut().enumerate() {
            *held = vectors(q.add(h * N * 16));
        }
        for i in 0..n {
            if i + AHEAD < n {
                let ahead = rows.at(i + AHEAD) * a.kv_stride;
                for line in 0..H * N {
                    L::prefetch(k.add(ahead + line * 16));
                    L::prefetch(v.add(ahead + line * 16));
                }
            }
            let k = k.add(rows.at(i) * a.kv_stride);
            let mut products = [L::splat(0.0); 4];
            for h in 0..H {
                products[h] = dot_held(held[h], k.add(h * N * 16));
            }
            let sums = L::sum_each(products);
            for (h, sum) in sums.into_iter().enumerate().take(H) {
                *self.scores.get_unchecked_mut(h * n + i) = a.scale * sum;
            }
        }
        let mut inverse = [L::splat(0.0); H];
        for (scores, inverse) in self.scores.chunks_exact_mut(n.max(1)).zip(&mut inverse) {
            let sum = exp_of_scores::<L>(&mut scores[..n]);
            *inverse = L::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
        }
        let mut sums = [[L::splat(0.0); N]; H];
        for i in 0..n {
            let v = v.add(rows.at(i) * a.kv_stride);
            for (h, sums) in sums.iter_mut().enumerate() {
                let p = L::splat(*self.scores.get_unchecked(h * n + i));
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = p.fma(L::load(v.add((h * N + j) * 16)), *sum);
                }
            }
        }
        let out = self.out.at((query * a.heads + head) * a.head_dim);
        for (h, sums) in sums.iter().enumerate() {
            for (j, sum) in sums.iter().enumerate() {
                sum.mul(inverse[h]).store(out.add((h * N + j) * 16));
            }
        }
    }

    /// One query and head.
    #[inline(always)]
    unsafe fn one_head<L: Lanes, const N: usize>(&mut self, query: usize, head: usize) {
        let a = self.a;
        let (d, offset) = (a.head_dim, head * a.head_dim);
        let rows = a.rows[query];
        let scores = &mut self.scores[..rows.len()];
        let q = a.q.as_ptr().add(query * a.q_stride + offset);
        let k = a.k.as_ptr().add(offset);
        let held: [L; N] = vectors(q);
        let whole = scores.len() / 4 * 4;
        for i in (0..whole).step_by(4) {
            let mut products = [L::splat(0.0); 4];
            for (j, product) in products.iter_mut().enumerate() {
                let k = k.add(rows.at(i + j) * a.kv_stride);
                *product = if N == 0 { dot::<L>(q, k, d) } else { dot_held(held, k) };
            }
            for (j, sum) in L::sum_each(products).into_iter().enumerate() {
                scores[i + j] = a.scale * sum;
            }
        }
        for (i, score) in scores.iter_mut().enumerate().skip(whole) {
            *score = a.scale * dot::<L>(q, k.add(rows.at(i) * a.kv_stride), d).sum();
        }
        let sum = exp_of_scores::<L>(scores);
        let inverse = L::splat(if sum == 0.0 { 0.0 } else { 1.0 / sum });
        let v = a.v.as_ptr().add(offset);
        let out = self.out.at((query * a.heads + head) * d);
        let mut j = 0;
        while j + 64 <= d {
            weighted::<L, 4>(scores, rows, v.add(j), a.kv_stride, inverse, out.add(j));
            j += 64;
        }
        while j + 16 <= d {
            weighted::<L, 1>(scores, rows, v.add(j), a.kv_stride, inverse, out.add(j));
            j += 16;
        }
        if j < d {
            let mut sum = L::splat(0.0);
            for (i, p) in scores.iter().enumerate() {
                sum = L::splat(*p).fma(L::load_part(v.add(rows.at(i) * a.kv_stride + j), d - j, 0.0), sum);
            }
            sum.mul(inverse).store_part(out.add(j), d - j);
        }
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
unsafe fn dot_held<L: Lanes, const N: usize>(a: [L; N], b: *const f32) -> L {
    let mut sum = L::splat(0.0);
    for (i, a) in a.into_iter().enumerate() {
        sum = a.fma(L::load(b.add(i * 16)), sum);
    }
    sum
}

/// `a . b` over 16 lanes, which are still to be summed.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: *const f32, b: *const f32, len: usize) -> L {
    let mut sum = L::splat(0.0);
    let mut i = 0;
    while i + 16 <= len {
        sum = L::load(a.add(i)).fma(L::load(b.add(i)), sum);
        i += 16;
    }
    if i < len {
        sum = L::load_part(a.add(i), len - i, 0.0).fma(L::load_part(b.add(i), len - i, 0.0), sum);
    }
    sum
}

/// `inverse *` the sum over the rows, in order, of score times value, for `N` vectors of the head.
#[inline(always)]
unsafe fn weighted<L: Lanes, const N: usize>(
    scores: &[f32],
    rows: KeyRows<'_>,
    v: *const f32,
    stride: usize,
    inverse: L,
    out: *mut f32,
) {
    let mut sums = [L::splat(0.0); N];
    for (i, score) in scores.iter().enumerate() {
        let (p, v) = (L::splat(*score), v.add(rows.at(i) * stride));
        for (n, sum) in sums.iter_mut().enumerate() {
            *sum = p.fma(L::load(v.add(n * 16)), *sum);
        }
    }
    for (n, sum) in sums.into_iter().enumerate() {
        sum.mul(inverse).store(out.add(n * 16));
    }
}
