//! What is added to scores by the distance of a key from its query.
use crate::device::cpu::lanes::Lanes;

/// A relative position bias (T5: Raffel et al. 2020, section 2.1), a number for each head and distance: to the scaled score
/// of key row `i` with a query at place `p` comes `table[head][clamp(i - p, -reach, reach) + reach]`.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// `[heads, 2 * reach + 1]`
    pub table: &'a [f32],
    /// Distance from which on the number is the same.
    pub reach: usize,
    /// The place of each query among its key rows, `[queries]`.
    pub positions: &'a [u32],
}

impl Bias<'_> {
    /// The numbers of a head, of a query.
    pub(super) fn of(&self, head: usize, query: usize) -> Distances<'_> {
        let width = 2 * self.reach + 1;
        Distances {
            table: &self.table[head * width..][..width],
            // Key row `i` has number `i - p + reach`.
            shift: self.reach as isize - self.positions[query] as isize,
        }
    }
}

/// The bias of one head and query.
#[derive(Clone, Copy)]
pub(super) struct Distances<'a> {
    table: &'a [f32],
    shift: isize,
}

impl Distances<'_> {
    /// What is added to the scores of 16 key rows from `key` on.
    #[inline(always)]
    pub(super) unsafe fn sixteen<L: Lanes>(&self, key: usize) -> L {
        let (first, last) = (key as isize + self.shift, self.table.len() as isize - 1);
        if first >= 0 && first + 15 <= last {
            return L::load(self.table.as_ptr().add(first.cast_unsigned()));
        }
        let lanes: [f32; 16] = std::array::from_fn(|i| {
            let number = (first + i as isize).clamp(0, last);
            self.table[number.cast_unsigned()]
        });
        L::load(lanes.as_ptr())
    }
}
