//! Attention over rows of keys and values, given as a range or one by one.
//!
//! One order of sums: a score `q . k` is summed over 16 lanes and then as a tree ([`Lanes::sum`](super::lanes::Lanes::sum));
//! keys come in blocks of [`KEYS`], counted from a query's first, each block's softmax relative to the largest score so
//! far, by which earlier sums are corrected (online softmax: Milakov and Gimelshein 2018; Rabe and Staats 2021); the
//! weighted sum of values runs over the keys in order. [`rows`] and [`tiles`] keep to it both, so that a query's result
//! doesn't depend on its company.
mod element;
mod plan;
mod rows;
mod softmax;
mod store;
mod tiles;

use std::cell::{Cell, RefCell};

pub use element::Element;
use plan::Task;

use super::linear::Line;
use super::pool::Shared;
use super::Cpu;

/// Keys of a block, over which a softmax is taken at once.
const KEYS: usize = 256;

thread_local! {
    /// What a task keeps of scores, keys and values; grows, and is kept.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    /// The tasks of the last attention, for their room.
    static TASKS: Cell<Vec<Task>> = const { Cell::new(Vec::new()) };
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
            KeyRows::Range(first, count) => first.saturating_add(*count),
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
pub struct Attend<'a, T = f32> {
    /// Queries: head `h` of query `i` starts at `i * q_stride + h * head_dim`.
    pub q: &'a [f32],
    /// Elements between the starts of two queries.
    pub q_stride: usize,
    /// Keys: head `h` of row `r` starts at `r * kv_stride + h * head_dim`.
    pub k: &'a [T],
    /// Values, laid out as the keys.
    pub v: &'a [T],
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

impl<T> Attend<'_, T> {
    fn check(&self) {
        let (width, queries) = (self.heads * self.head_dim, self.rows.len());
        assert_eq!(
            self.out.len(),
            queries * width,
            "attend: out doesn't fit {queries} queries"
        );
        let fits = |len: usize, rows: usize, stride: usize| {
            rows == 0 || (rows - 1).saturating_mul(stride).saturating_add(width) <= len
        };
        assert!(
            fits(self.q.len(), queries, self.q_stride),
            "attend: q is too short for {queries} queries"
        );
        let end = self.rows.iter().map(KeyRows::end).max().unwrap_or(0);
        assert!(
            fits(self.k.len(), end, self.kv_stride),
            "attend: key row {end} is beyond the end"
        );
        assert!(
            fits(self.v.len(), end, self.kv_stride),
            "attend: value row {end} is beyond the end"
        );
    }
}

impl Cpu {
    /// Attention of every query and head; see [`Attend`].
    ///
    /// # Panics
    /// If a query, a key row or `out` lies outside its buffer.
    pub fn attend<T: Element>(&self, mut a: Attend<'_, T>) {
        a.check();
        let keys: usize = a.rows.iter().map(KeyRows::len).sum();
        let nanoseconds = (keys * a.heads * (a.head_dim + 16)) as f64 * 0.05;
        let mut tasks = TASKS.take();
        plan::plan(a.rows, a.heads, self.threads(), &mut tasks);
        let out = Shared(a.out.as_mut_ptr());
        a.out = &mut [];
        let a = &a;
        self.for_each(tasks.len(), nanoseconds, |task| {
            let Task { queries, heads, shared } = tasks[task].clone();
            SCRATCH.with_borrow_mut(|scratch| {
                // SAFETY: a device's instruction set is available; `check` has seen that all rows lie inside; each
                // query and head belongs to one task, which alone writes its part of `out`.
                unsafe {
                    match shared {
                        true => self.isa().run(tiles::Tiles {
                            a,
                            queries,
                            heads,
                            scratch,
                            out,
                        }),
                        false => self.isa().run(rows::Rows {
                            a,
                            queries,
                            heads,
                            scores: floats(scratch, rows::HEADS * KEYS),
                            out,
                        }),
                    }
                };
            });
        });
        TASKS.set(tasks);
    }
}

/// The first `n` floats of `scratch`, which grows to hold them.
fn floats(scratch: &mut Vec<Line>, n: usize) -> &mut [f32] {
    let lines = n.div_ceil(16);
    if scratch.len() < lines {
        scratch.resize(lines, Line::default());
    }
    // SAFETY: a line is 16 plain words, for which any bits are a float.
    unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast(), n) }
}
