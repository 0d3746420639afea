//! Which rows of the keys and values a query attends to.
use std::ops::Range;

/// Which rows of the keys and values a query attends to, in order.
#[derive(Clone, Copy, Debug)]
pub enum KeyRows<'a> {
    /// First row and count.
    Range(usize, usize),
    /// The rows `first..first + count`, then `then..then + more`: those of a prompt, then those generated.
    Joined {
        /// First row of the first part.
        first: usize,
        /// Rows of the first part.
        count: usize,
        /// First row of the second part.
        then: usize,
        /// Rows of the second part.
        more: usize,
    },
    /// The rows one by one.
    Table(&'a [u32]),
}

impl KeyRows<'_> {
    /// Number of rows.
    pub fn len(&self) -> usize {
        match self {
            KeyRows::Range(_, count) => *count,
            KeyRows::Joined { count, more, .. } => count + more,
            KeyRows::Table(rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The rows in order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.len()).map(|i| self.at(i))
    }

    /// Which of them, by their numbers, a query sees that sees the last `window`.
    pub(super) fn seen(&self, window: Option<usize>) -> Range<usize> {
        let len = self.len();
        len.saturating_sub(window.unwrap_or(len))..len
    }

    /// One more than the highest row.
    pub(super) fn end(&self) -> usize {
        let end = |first: usize, count: usize| match count {
            0 => 0,
            _ => first.saturating_add(count),
        };
        match *self {
            KeyRows::Range(first, count) => end(first, count),
            KeyRows::Joined {
                first,
                count,
                then,
                more,
            } => end(first, count).max(end(then, more)),
            KeyRows::Table(rows) => rows.iter().max().map_or(0, |r| *r as usize + 1),
        }
    }

    /// Row `i` of them.
    #[inline(always)]
    pub(super) fn at(&self, i: usize) -> usize {
        match *self {
            KeyRows::Range(first, _) => first + i,
            KeyRows::Joined { first, count, .. } if i < count => first + i,
            KeyRows::Joined { count, then, .. } => then + (i - count),
            KeyRows::Table(rows) => rows[i] as usize,
        }
    }
}
