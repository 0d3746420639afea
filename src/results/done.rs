//! Which rows are finished: a set of row numbers kept as ranges.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of row numbers. Finished rows are mostly neighbours, so that millions take a few ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DoneRows {
    /// Start of each range, and its end (exclusive); disjoint, not touching, not empty.
    ranges: BTreeMap<u64, u64>,
}

impl DoneRows {
    /// Is row `index` finished?
    pub fn contains(&self, index: u64) -> bool {
        self.ranges
            .range(..=index)
            .next_back()
            .is_some_and(|(_, end)| index < *end)
    }

    /// How many rows are finished.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges of finished rows, ascending, none touching the next.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().map(|(start, end)| *start..*end)
    }

    /// Adds rows. Gives the first row that was there already, in which case nothing is added.
    pub fn insert(&mut self, rows: Range<u64>) -> Result<(), u64> {
        if rows.is_empty() {
            return Ok(());
        }
        let Range { mut start, mut end } = rows;
        if let Some((_, before)) = self.ranges.range(..=start).next_back() {
            if *before > start {
                return Err(start);
            }
        }
        if let Some((after, _)) = self.ranges.range(start..end).next() {
            return Err(*after);
        }
        if let Some((&left, &touches)) = self.ranges.range(..start).next_back() {
            if touches == start {
                start = left;
            }
        }
        if let Some(right) = self.ranges.remove(&end) {
            end = right;
        }
        self.ranges.insert(start, end);
        Ok(())
    }

    /// The first `most` rows below `rows` that are not finished.
    pub fn missing(&self, rows: u64, most: usize) -> Vec<u64> {
        let mut gaps = Vec::new();
        let mut at = 0;
        for range in self.ranges().chain(std::iter::once(rows..rows)) {
            gaps.extend((at..range.start.min(rows)).take(most - gaps.len()));
            at = range.end;
        }
        gaps
    }
}

#[cfg(test)]
mod tests {
    use super::DoneRows;
    use std::collections::BTreeSet;

    #[test]
    fn agrees_with_a_plain_set() {
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let (mut done, mut plain) = (DoneRows::default(), BTreeSet::new());
            for _ in 0..40 {
                let start = random(60);
                let rows = start..start + random(6);
                let double = rows.clone().find(|row| plain.contains(row));
                assert_eq!(done.insert(rows.clone()).err(), double);
                if double.is_none() {
                    plain.extend(rows);
                }
                assert_eq!(done.count(), plain.len() as u64);
                assert!((0..70).all(|row| done.contains(row) == plain.contains(&row)));
                let missing: Vec<u64> = (0..50).filter(|row| !plain.contains(row)).take(5).collect();
                assert_eq!(done.missing(50, 5), missing);
                let ends: Vec<_> = done.ranges().collect();
                assert!(ends.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
