//! Attention over rows of keys and values, given as a range or one by one.
//!
//! One order of sums: a score `q . k` is summed over 16 lanes and then as a tree ([`Lanes::sum`](super::lanes::Lanes::sum));
//! keys come in blocks of [`KEYS`], counted from a query's first, each block's softmax relative to the largest score so
//! far, by which earlier sums are corrected (online softmax: Milakov and Gimelshein 2018; Rabe and Staats 2021); the
//! weighted sum of values runs over the keys in order. [`rows`] and [`tiles`] keep to it both, so that a query's result
//! doesn't depend on its company.
mod bias;
mod chains;
mod element;
mod groups;
mod keys;
mod pack;
mod plan;
mod rows;
mod softmax;
mod store;
mod sums;
mod tiles;

use std::cell::{Cell, RefCell};

pub use bias::Bias;
pub use element::Element;
pub use keys::KeyRows;
use plan::{Asked, Task};
use softmax::Running;

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

/// One attention over cached or fresh keys and values. Head `h` of query `i` is
/// `softmax(scale * q . k + bias over the key rows it sees, in order) . v`; a query that sees no key row gives zeros.
///
/// Several heads may share a head of keys and values (grouped-query attention: Ainslie et al. 2023), and values may be a part
/// of the keys (multi-head latent attention: DeepSeek-V2, section 2.1): `k` and `v` are then the same slice.
pub struct Attend<'a, T = f32> {
    /// Queries: head `h` of query `i` starts at `i * q_stride + h * head_dim`.
    pub q: &'a [f32],
    /// Elements between the starts of two queries.
    pub q_stride: usize,
    /// Keys: head `j` of row `r` starts at `r * k_stride + j * head_dim`.
    pub k: &'a [T],
    /// Elements between the starts of two rows of keys.
    pub k_stride: usize,
    /// Values: head `j` of row `r` starts at `r * v_stride + j * v_dim`.
    pub v: &'a [T],
    /// Elements between the starts of two rows of values.
    pub v_stride: usize,
    /// Number of heads of queries, a multiple of `kv_heads`.
    pub heads: usize,
    /// Number of heads of keys and values: head `h` reads head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// Elements of a head of queries and keys.
    pub head_dim: usize,
    /// Elements of a head of values and of `out`.
    pub v_dim: usize,
    /// Factor on `q . k`.
    pub scale: f32,
    /// The key rows of each query; as many as there are queries.
    pub rows: &'a [KeyRows<'a>],
    /// How many of its key rows a query sees, the last ones; all if none.
    pub window: Option<usize>,
    /// A further logit in the softmax of each head, `[heads]`, whose value counts for nothing (gpt-oss).
    pub sinks: Option<&'a [f32]>,
    /// What is added to scores by distance.
    pub bias: Option<Bias<'a>>,
    /// `[queries, heads * v_dim]`
    pub out: &'a mut [f32],
}

impl<T> Attend<'_, T> {
    fn check(&self) {
        let queries = self.rows.len();
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "attend: {} heads can't share {} heads of keys",
            self.heads,
            self.kv_heads
        );
        assert_eq!(
            self.out.len(),
            queries * self.heads * self.v_dim,
            "attend: out doesn't fit {queries} queries"
        );
        let fits = |len: usize, rows: usize, stride: usize, width: usize| {
            rows == 0 || (rows - 1).saturating_mul(stride).saturating_add(width) <= len
        };
        assert!(
            fits(self.q.len(), queries, self.q_stride, self.heads * self.head_dim),
            "attend: q is too short for {queries} queries"
        );
        let end = self.rows.iter().map(KeyRows::end).max().unwrap_or(0);
        assert!(
            fits(self.k.len(), end, self.k_stride, self.kv_heads * self.head_dim),
            "attend: key row {end} is beyond the end"
        );
        assert!(
            fits(self.v.len(), end, self.v_stride, self.kv_heads * self.v_dim),
            "attend: value row {end} is beyond the end"
        );
        if let Some(sinks) = self.sinks {
            assert_eq!(sinks.len(), self.heads, "attend: as many sinks as heads");
        }
        if let Some(bias) = &self.bias {
            let table = self.heads * (2 * bias.reach + 1);
            assert_eq!(bias.table.len(), table, "attend: a bias for each head and distance");
            assert_eq!(bias.positions.len(), queries, "attend: a place for each query");
        }
    }

    /// The head of keys and values that a head reads.
    #[inline(always)]
    fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    /// Where a head of a query starts in `q`.
    #[inline(always)]
    fn q_at(&self, query: usize, head: usize) -> usize {
        query * self.q_stride + head * self.head_dim
    }

    /// Where a head of a query starts in `out`.
    #[inline(always)]
    fn out_at(&self, query: usize, head: usize) -> usize {
        (query * self.heads + head) * self.v_dim
    }

    /// The softmax of a head before its first key.
    #[inline(always)]
    fn start(&self, head: usize) -> Running {
        match self.sinks {
            Some(sinks) => Running::after(sinks[head]),
            None => Running::START,
        }
    }
}

impl Cpu {
    /// Attention of every query and head; see [`Attend`].
    ///
    /// # Panics
    /// If a query, a key row or `out` lies outside its buffer.
    pub fn attend<T: Element>(&self, a: Attend<'_, T>) {
        a.check();
        T::attend(self, a);
    }

    /// [`Cpu::attend`] of what has been checked.
    fn attend_all<T: Element>(&self, mut a: Attend<'_, T>) {
        let keys: usize = a.rows.iter().map(|r| r.seen(a.window).len()).sum();
        let nanoseconds = (keys * a.heads * ((a.head_dim + a.v_dim) / 2 + 16)) as f64 * 0.05;
        let mut tasks = TASKS.take();
        let asked = Asked {
            rows: a.rows,
            window: a.window,
            heads: a.heads,
            group: a.heads / a.kv_heads,
        };
        asked.plan(self.threads(), &mut tasks);
        let out = Shared(a.out.as_mut_ptr());
        a.out = &mut [];
        let a = &a;
        let grouped = a.heads > a.kv_heads;
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
                        false if grouped => self.isa().run(groups::Groups::new(a, queries, heads, scratch, out)),
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
