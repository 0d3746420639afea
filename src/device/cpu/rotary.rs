//! Rotary positions.
use std::sync::{PoisonError, RwLock};

use super::isa::Kernel;
use super::lanes::Lanes;
use super::Cpu;

/// Positions whose angles are tabulated at a time.
const CHUNK: usize = 64;
/// Positions from here on have no float32 of their own.
const MOST: u32 = 1 << 24;

/// Rotations of pairs of elements by angles that grow with the position: pair i by `position * inv_freq[i]`, both
/// multiplied in float32.
#[derive(Debug, Default)]
pub struct Rotary {
    inv_freq: Vec<f32>,
    factor: f32,
    interleaved: bool,
    /// Of each chunk of positions, empty until one is asked for: for each position all cosines, then all sines.
    table: RwLock<Vec<Vec<f32>>>,
}

impl Rotary {
    /// Rotations by the frequencies `inv_freq` `[pairs]` (radians a position), cosines and sines multiplied by `factor`. A
    /// pair is elements 2 i and 2 i + 1 if `interleaved`, otherwise i and i + pairs.
    pub fn new(inv_freq: Vec<f32>, factor: f32, interleaved: bool) -> Rotary {
        Rotary {
            inv_freq,
            factor,
            interleaved,
            table: RwLock::default(),
        }
    }

    /// Number of pairs; twice as many elements of a head are rotated.
    pub fn pairs(&self) -> usize {
        self.inv_freq.len()
    }

    /// Makes sure that all of `positions` are tabulated.
    fn tabulate(&self, positions: &[u32]) {
        let missing = |table: &[Vec<f32>]| {
            let chunks = positions.iter().map(|p| *p as usize / CHUNK);
            let mut missing: Vec<usize> = chunks.filter(|c| table.get(*c).is_none_or(Vec::is_empty)).collect();
            missing.sort_unstable();
            missing.dedup();
            missing
        };
        if missing(&self.table.read().unwrap_or_else(PoisonError::into_inner)).is_empty() {
            return;
        }
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        for chunk in missing(&table) {
            if table.len() <= chunk {
                table.resize(chunk + 1, Vec::new());
            }
            table[chunk] = self.angles(chunk);
        }
    }

    /// Cosines and sines of a chunk of positions.
    fn angles(&self, chunk: usize) -> Vec<f32> {
        let mut angles = Vec::with_capacity(CHUNK * 2 * self.pairs());
        for position in chunk * CHUNK..(chunk + 1) * CHUNK {
            let angle = |f: &f32| f64::from(position as f32 * f);
            angles.extend(self.inv_freq.iter().map(|f| angle(f).cos() as f32 * self.factor));
            angles.extend(self.inv_freq.iter().map(|f| angle(f).sin() as f32 * self.factor));
        }
        angles
    }
}

impl Cpu {
    /// Rotates, in each row of `x` `[rows, stride]`, the first elements of `heads` heads that begin `head_stride` elements
    /// apart from `offset` on, for the row's position in `positions` `[rows]`: `(a, b)` becomes `(a cos - b sin, b cos + a
    /// sin)`.
    ///
    /// # Panics
    /// If the heads don't fit into a row, `x` has not as many rows as there are positions, or a position is 2^24 or above.
    #[allow(clippy::too_many_arguments)] // where heads lie is four numbers, as everywhere on this device
    pub fn rotate(
        &self,
        x: &mut [f32],
        stride: usize,
        offset: usize,
        heads: usize,
        head_stride: usize,
        rotary: &Rotary,
        positions: &[u32],
    ) {
        let width = 2 * rotary.pairs();
        let end = heads
            .checked_sub(1)
            .map_or(0, |last| offset + last * head_stride + width);
        assert!(
            x.len() == positions.len() * stride && end <= stride,
            "rotate: {heads} heads of {width} every {head_stride} from {offset} on in rows of {stride}, {} elements for {} \
             positions",
            x.len(),
            positions.len()
        );
        assert!(
            positions.iter().all(|p| *p < MOST),
            "rotate: a position of {MOST} or above"
        );
        rotary.tabulate(positions);
        let table = rotary.table.read().unwrap_or_else(PoisonError::into_inner);
        self.for_rows(x, stride, (heads * width) as f64 * 0.3, |i, row| {
            let position = positions[i] as usize;
            let (cos, sin) = table[position / CHUNK][position % CHUNK * width..][..width].split_at(width / 2);
            for head in 0..heads {
                let x = &mut row[offset + head * head_stride..][..width];
                let interleaved = rotary.interleaved;
                // SAFETY: a device's instruction set is available.
                unsafe {
                    self.isa().run(Rotate {
                        x,
                        cos,
                        sin,
                        interleaved,
                    })
                };
            }
        });
    }
}

/// One head.
struct Rotate<'a> {
    x: &'a mut [f32],
    cos: &'a [f32],
    sin: &'a [f32],
    interleaved: bool,
}

impl Kernel for Rotate<'_> {
    type Out = ();

    /// Plain loops, which the compiler vectorises; products are rounded before they are added, as in the formula.
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let angles = self.cos.iter().zip(self.sin);
        if self.interleaved {
            for (pair, (cos, sin)) in self.x.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
                let [a, b] = *pair;
                *pair = [a * cos - b * sin, b * cos + a * sin];
            }
        } else {
            let (first, second) = self.x.split_at_mut(self.cos.len());
            for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(angles) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}
