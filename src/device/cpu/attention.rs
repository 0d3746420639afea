//! Attention over rows of keys and values, given as a range or one by one.
use std::cell::RefCell;

use super::exp::exp_of_scores;
use super::isa::Kernel;
use super::lanes::Lanes;
use super::pool::Shared;
use super::Cpu;

/// Queries that a task takes at most, of one head, so that keys and values they share stay in cache.
const QUERIES: usize = 16;

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
        let items = a.rows.len() * a.heads;
        let queries = (items / (self.threads() * 8))
            .clamp(1, QUERIES)
            .min(a.rows.len().max(1));
        let blocks = a.rows.len().div_ceil(queries);
        let longest = a.rows.iter().map(KeyRows::len).max().unwrap_or(0);
        let out = Shared(a.out.as_mut_ptr());
        a.out = &mut [];
        let a = &a;
        self.for_each(blocks * a.heads, nanoseconds, |task| {
            let (block, head) = (task / a.heads, task % a.heads);
            SCORES.with_borrow_mut(|scores| {
                if scores.len() < longest {
                    scores.resize(longest, 0.0);
                }
                for query in block * queries..((block + 1) * queries).min(a.rows.len()) {
                    // SAFETY: a device's instruction set is available; `check` has seen that all rows lie inside; each
                    // query and head writes a part of `out` of its own.
                    unsafe {
                        self.isa().run(OneHead {
                            a,
                            query,
                            head,
                            scores,
                            out,
                        })
                    };
                }
            });
        });
    }
}

/// One query and head.
struct OneHead<'a> {
    a: &'a Attend<'a>,
    query: usize,
    head: usize,
    scores: &'a mut [f32],
    out: Shared,
}

impl Kernel for OneHead<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let a = self.a;
        let (d, offset) = (a.head_dim, self.head * a.head_dim);
        let rows = a.rows[self.query];
        let scores = &mut self.scores[..rows.len()];
        let q = a.q.as_ptr().add(self.query * a.q_stride + offset);
        let k = a.k.as_ptr().add(offset);
        let whole = scores.len() / 4 * 4;
        for i in (0..whole).step_by(4) {
            let mut products = [L::splat(0.0); 4];
            for (j, product) in products.iter_mut().enumerate() {
                *product = dot::<L>(q, k.add(rows.at(i + j) * a.kv_stride), d);
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
        let out = self.out.at((self.query * a.heads + self.head) * d);
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
