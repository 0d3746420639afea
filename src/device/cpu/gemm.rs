//! The product kernel: a tile of rows against panels of 32 outputs.
//!
//! Every sum is one chain over the inputs in order, from zero, in one lane: how rows are cut in tiles, outputs in panels
//! and inputs in blocks (a block's sums are stored and loaded again, which is exact) changes nothing.
use std::cell::RefCell;
use std::ops::Range;

use super::isa::{Isa, Kernel};
use super::lanes::Lanes;
use super::linear::{pack_pair, Line, PANEL, VECTOR};
use super::pool::Shared;
use super::quantised::QuantisedRows;
use super::{Activation, Dtype, Epilogue, Linear};

/// Steps of a block: 12 rows of it are 24 KiB, a panel of it 64 KiB.
const BLOCK: usize = 512;
/// Words between the rows of a packed block: a constant (addresses without registers) that keeps rows out of each other's
/// cache sets.
const STRIDE: usize = BLOCK + 16;
/// Bytes of packed rows that should stay in the second-level cache.
const ROWS_BYTES: usize = 512 << 10;
/// Rows that a task takes at least, where there are so many, however long they are.
const MIN_ROWS: usize = 48;
/// Vectors of outputs that a tile takes at most.
const MOST_VECTORS: usize = 8;
/// Steps between two looks ahead into the weights to come.
const STRETCH: usize = 8;

thread_local! {
    /// Packed rows and unfinished sums; grows, and is kept.
    static SCRATCH: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
}

/// Rows of one task for weights of `steps` steps.
pub(super) fn rows_of_a_task(steps: usize) -> usize {
    (ROWS_BYTES / (steps * 4)).clamp(MIN_ROWS, 256) / 12 * 12
}

/// Some rows of a product against some panels.
pub(super) struct Product<'a> {
    pub x: &'a [f32],
    /// For each row of `out`, the row of `x`.
    pub source: Option<&'a [u32]>,
    /// The rows of `out` for int8 weights, which take the place of `x`.
    pub quantised: &'a QuantisedRows,
    pub weights: &'a Linear,
    pub rows: Range<usize>,
    pub panels: Range<usize>,
    pub epilogue: Epilogue,
    /// `[any, stride]`
    pub out: Shared,
    /// Elements from one row of `out` to the next.
    pub stride: usize,
    /// Row and output that `out` begins with.
    pub origin: (usize, usize),
}

impl Product<'_> {
    /// Computes it.
    ///
    /// # Safety
    /// `isa` is available; all rows lie inside `x` and `out`; nothing else touches these outputs of these rows meanwhile.
    pub(super) unsafe fn compute(self, isa: Isa) {
        let (rows, blocks) = (self.rows.len(), self.weights.steps().div_ceil(BLOCK));
        let words = blocks * rows * STRIDE;
        SCRATCH.with_borrow_mut(|scratch| {
            let lines = words.div_ceil(16) + rows * MOST_VECTORS;
            if scratch.len() < lines {
                scratch.resize(lines, Line::default());
            }
            let packed = scratch.as_mut_ptr().cast::<u32>();
            // SAFETY: the caller's; the scratch holds the packed rows and, from the next line on, the sums.
            unsafe {
                isa.run(Tiles {
                    sums: packed.add(words.next_multiple_of(16)).cast(),
                    packed,
                    product: self,
                })
            };
        });
    }

    fn row_of_x(&self, row: usize) -> &[f32] {
        let from = self.source.map_or(row, |source| source[row] as usize);
        &self.x[from * self.weights.inputs()..][..self.weights.inputs()]
    }
}

/// A product with its scratch.
struct Tiles<'a> {
    product: Product<'a>,
    /// `[blocks][rows][STRIDE]`
    packed: *mut u32,
    /// `[vectors][rows][16]`
    sums: *mut f32,
}

impl Kernel for Tiles<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        match self.product.weights.dtype() {
            Dtype::F32 => self.columns::<L, Singles>(),
            Dtype::Bf16 => self.columns::<L, Pairs>(),
            Dtype::Int8 => self.columns::<L, Quads>(),
        }
    }
}

/// What a word of packed rows and weights holds.
trait Words {
    /// The type of weights.
    const DTYPE: Dtype;
    /// Adds the products of the inputs in `a` with those at `b`.
    unsafe fn step<L: Lanes>(acc: L, a: u32, b: *const u32) -> L;
}

/// One f32.
struct Singles;
/// Two bfloat16.
struct Pairs;
/// Four bytes.
struct Quads;

impl Words for Singles {
    const DTYPE: Dtype = Dtype::F32;
    #[inline(always)]
    unsafe fn step<L: Lanes>(acc: L, a: u32, b: *const u32) -> L {
        L::splat(f32::from_bits(a)).fma(L::load(b.cast()), acc)
    }
}

impl Words for Pairs {
    const DTYPE: Dtype = Dtype::Bf16;
    #[inline(always)]
    unsafe fn step<L: Lanes>(acc: L, a: u32, b: *const u32) -> L {
        acc.dot_pairs(a, b)
    }
}

impl Words for Quads {
    const DTYPE: Dtype = Dtype::Int8;
    #[inline(always)]
    unsafe fn step<L: Lanes>(acc: L, a: u32, b: *const u32) -> L {
        acc.dot_quads(a, b)
    }
}

impl Tiles<'_> {
    #[inline(always)]
    unsafe fn columns<L: Lanes, W: Words>(&self) {
        self.pack_rows::<W>();
        let panels = &self.product.panels;
        let (mut v, end) = (panels.start * 2, panels.end * 2);
        let rows = self.product.rows.len();
        // Few rows have few chains of sums: take more outputs at once.
        let (wide, base) = match (L::WIDE, rows) {
            (true, 1) => (MOST_VECTORS, 2),
            (true, 2 | 3) => (4, 2),
            (true, _) => (2, 2),
            (false, 1) => (4, 1),
            (false, 2) => (2, 1),
            (false, _) => (1, 1),
        };
        while v < end {
            let vectors = if v + wide <= end { wide } else { base };
            self.blocks::<L, W>(v, vectors);
            v += vectors;
        }
    }

    /// All rows against `vectors` vectors of outputs from vector `v` on.
    #[inline(always)]
    unsafe fn blocks<L: Lanes, W: Words>(&self, v: usize, vectors: usize) {
        let steps = self.product.weights.steps();
        let rows = self.product.rows.len();
        let largest = if L::WIDE { 12 } else { 6 };
        let tiles = rows.div_ceil(largest);
        for start in (0..steps).step_by(BLOCK) {
            let count = BLOCK.min(steps - start);
            let b = self
                .product
                .weights
                .words()
                .add((v / 2 * steps + start) * PANEL + v % 2 * 16);
            let a = self.packed.add(start / BLOCK * rows * STRIDE).cast_const();
            // Panels lie one behind the other: what follows a block of one is the next block to be taken.
            let more = vectors == 2 && (start + count < steps || v + vectors < self.product.panels.end * 2);
            for tile in 0..tiles {
                // Tiles of nearly equal height: 13 rows are 7 and 6, not 12 and 1.
                let (first, next) = (tile * rows / tiles, (tile + 1) * rows / tiles);
                let sums = self.sums_at(first, v, v & !1);
                let lines = |tile: usize| if more { tile * count * 2 / tiles } else { 0 };
                let t = Tile {
                    a: a.add(first * STRIDE),
                    b,
                    panel: steps * PANEL,
                    count,
                    ahead: b.wrapping_add((count * 2 + lines(tile)) * 16),
                    lines: lines(tile + 1) - lines(tile),
                    sums,
                    stride: rows * VECTOR,
                    fresh: start == 0,
                };
                t.run::<L, W>(next - first, vectors);
                if start + count == steps {
                    self.finish::<L>(first..next, v, vectors);
                }
            }
        }
    }

    /// Copies the rows into blocks, as f32, pairs of bfloat16 with a zero after an odd end, or quantised.
    #[inline(always)]
    unsafe fn pack_rows<W: Words>(&self) {
        let rows = self.product.rows.len();
        for (i, row) in self.product.rows.clone().enumerate() {
            if W::DTYPE == Dtype::Int8 {
                for (block, words) in self.product.quantised.words(row).chunks(BLOCK).enumerate() {
                    let to = self.packed.add((block * rows + i) * STRIDE);
                    std::ptr::copy_nonoverlapping(words.as_ptr(), to, words.len());
                }
                continue;
            }
            let x = self.product.row_of_x(row);
            let bf16 = W::DTYPE == Dtype::Bf16;
            let inputs = if bf16 { 2 * BLOCK } else { BLOCK };
            for (block, x) in x.chunks(inputs).enumerate() {
                let to = self.packed.add((block * rows + i) * STRIDE);
                if bf16 {
                    let (whole, rest) = x.as_chunks::<2>();
                    for (j, pair) in whole.iter().enumerate() {
                        to.add(j).write(pack_pair(pair));
                    }
                    if !rest.is_empty() {
                        to.add(whole.len()).write(pack_pair(rest));
                    }
                } else {
                    std::ptr::copy_nonoverlapping(x.as_ptr().cast(), to, x.len());
                }
            }
        }
    }

    /// Where the sums of a row and a vector of outputs lie: vectors of a panel, or more of one tile, side by side.
    #[inline(always)]
    unsafe fn sums_at(&self, row: usize, v: usize, first: usize) -> *mut f32 {
        self.sums.add(((v - first) * self.product.rows.len() + row) * VECTOR)
    }

    /// The sums of a row and a vector, scaled and with the bias.
    #[inline(always)]
    unsafe fn sum<L: Lanes>(&self, row: usize, v: usize, first: usize) -> L {
        let (p, column) = (&self.product, v * VECTOR);
        let mut sum = L::load(self.sums_at(row, v, first));
        if let Some(scales) = p.weights.scales() {
            let (scale, offset) = p.quantised.scale_and_offset(p.rows.start + row);
            let whole = sum.whole_plus(offset).mul(L::splat(scale));
            sum = whole.mul(L::load(scales.as_ptr().add(column)));
        }
        if let Some(bias) = p.weights.bias() {
            sum = sum.add(L::load(bias.as_ptr().add(column)));
        }
        sum
    }

    /// Where the sums of a row go of which `column` is the first, and how many of 16 there are.
    #[inline(always)]
    unsafe fn place(&self, row: usize, column: usize) -> (*mut f32, usize) {
        let p = &self.product;
        let out = p.out.at((p.rows.start + row - p.origin.0) * p.stride);
        (out.add(column - p.origin.1), (p.weights.outputs() - column).min(VECTOR))
    }

    /// Takes finished sums to where they belong.
    #[inline(always)]
    unsafe fn finish<L: Lanes>(&self, rows: Range<usize>, v: usize, vectors: usize) {
        if let Epilogue::Gated(activation) = self.product.epilogue {
            return self.finish_gated::<L>(activation, rows, v, vectors);
        }
        let epilogue = self.product.epilogue;
        for row in rows {
            for j in 0..vectors {
                let column = (v + j) * VECTOR;
                if column >= self.product.weights.outputs() {
                    break;
                }
                let mut sum = self.sum::<L>(row, v + j, v & !1);
                if epilogue == Epilogue::Relu {
                    // Zero first: a NaN stays one.
                    sum = L::splat(0.0).max(sum);
                }
                let (to, n) = self.place(row, column);
                match (epilogue == Epilogue::Add, n == VECTOR) {
                    (true, true) => L::load(to).add(sum).store(to),
                    (true, false) => L::load_part(to, n, 0.0).add(sum).store_part(to, n),
                    (false, true) => sum.store(to),
                    (false, false) => sum.store_part(to, n),
                }
            }
        }
    }

    /// As [`finish`](Self::finish), for panels of a vector of gates and one of up projections. Where vectors are taken one
    /// by one, the gates wait for their projections.
    #[inline(always)]
    unsafe fn finish_gated<L: Lanes>(&self, activation: Activation, rows: Range<usize>, v: usize, vectors: usize) {
        let first = v & !1;
        for row in rows {
            for gate in (first..v + vectors - 1).step_by(2) {
                let (gates, ups) = (self.sum::<L>(row, gate, first), self.sum::<L>(row, gate + 1, first));
                let out = activation.apply(gates, ups);
                let (to, n) = self.place(row, gate / 2 * VECTOR);
                if n == VECTOR {
                    out.store(to);
                } else {
                    out.store_part(to, n);
                }
            }
        }
    }
}

/// One block of one tile.
struct Tile {
    /// `[rows][STRIDE]`
    a: *const u32,
    /// The block's first words of the first vector.
    b: *const u32,
    /// Words of a panel.
    panel: usize,
    /// Steps.
    count: usize,
    /// Weights of the next block that this tile asks for, so that they come from memory evenly and in time: left to
    /// itself the CPU stops at the end of every page.
    ahead: *const u32,
    /// Cache lines from there on.
    lines: usize,
    /// `[vectors][stride]`, of which `[rows][16]`
    sums: *mut f32,
    /// Elements from one vector's sums to the next one's.
    stride: usize,
    /// Whether the sums start from zero.
    fresh: bool,
}

impl Tile {
    #[inline(always)]
    unsafe fn run<L: Lanes, W: Words>(&self, rows: usize, vectors: usize) {
        macro_rules! pick {
            ($(($rows:literal, $vectors:literal)),*) => {
                match (rows, vectors) {
                    $(($rows, $vectors) => self.sum::<L, W, $rows, $vectors>(),)*
                    _ => unreachable!("a tile of {rows} rows x {vectors} vectors"),
                }
            };
        }
        if L::WIDE {
            pick!(
                (1, 8),
                (1, 2),
                (2, 4),
                (2, 2),
                (3, 4),
                (3, 2),
                (4, 2),
                (5, 2),
                (6, 2),
                (7, 2),
                (8, 2),
                (9, 2),
                (10, 2),
                (11, 2),
                (12, 2)
            );
        } else {
            pick!((1, 4), (1, 1), (2, 2), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1));
        }
    }

    #[inline(always)]
    unsafe fn sum<L: Lanes, W: Words, const ROWS: usize, const VECTORS: usize>(&self) {
        let mut acc = [[L::splat(0.0); VECTORS]; ROWS];
        if !self.fresh {
            for (r, acc) in acc.iter_mut().enumerate() {
                for (v, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(self.sums.add(v * self.stride + r * VECTOR));
                }
            }
        }
        let each = self.lines.div_ceil(self.count.div_ceil(STRETCH).max(1));
        let mut ahead = self.ahead;
        for start in (0..self.count).step_by(STRETCH) {
            for _ in 0..each {
                L::prefetch_l2(ahead.cast());
                ahead = ahead.wrapping_add(16);
            }
            for k in start..(start + STRETCH).min(self.count) {
                let b: [*const u32; VECTORS] =
                    std::array::from_fn(|v| self.b.wrapping_add(v / 2 * self.panel + k * PANEL + v % 2 * 16));
                for (r, acc) in acc.iter_mut().enumerate() {
                    let a = self.a.add(r * STRIDE + k).read();
                    for (acc, b) in acc.iter_mut().zip(b) {
                        *acc = W::step(*acc, a, b);
                    }
                }
            }
        }
        for (r, acc) in acc.iter().enumerate() {
            for (v, acc) in acc.iter().enumerate() {
                acc.store(self.sums.add(v * self.stride + r * VECTOR));
            }
        }
    }
}
