//! How many rows are held in memory at once: as many as some bytes allow, since one row's scores may be as large as
//! thousands of others. Pure.

use std::ops::Range;

/// Rows in a block, at most.
pub(crate) const ROWS: u64 = 16_384;
/// Bytes in a block, about, where it isn't a single row that is larger.
pub(crate) const BYTES: u64 = 16 << 20;

/// Cuts rows of these `sizes` into blocks of at most `limit` bytes. A row above it is a block of its own.
pub(crate) fn cut(sizes: &[u64], limit: u64) -> Vec<Range<usize>> {
    let mut blocks: Vec<Range<usize>> = Vec::new();
    let mut held = 0u64;
    for (row, size) in sizes.iter().enumerate() {
        held = held.saturating_add(*size);
        match blocks.last_mut() {
            Some(block) if held <= limit => block.end = row + 1,
            _ => {
                blocks.push(row..row + 1);
                held = *size;
            }
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn blocks_hold_what_the_limit_allows_and_one_row_at_least() {
        assert!(cut(&[], 10).is_empty());
        assert_eq!(cut(&[1, 2, 3, 4, 5], 6), [0..3, 3..4, 4..5]);
        assert_eq!(cut(&[0, 0, 0], 0).len(), 1);
        assert_eq!(cut(&[99, 1, 1, 99, 0, 1], 5), [0..1, 1..3, 3..4, 4..6]);
        assert_eq!(cut(&[u64::MAX, u64::MAX], 9), [0..1, 1..2]);
    }
}
