//! Texts as numbers, and how often their n-grams occur.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// Gives equal items equal numbers, from 0 on.
#[derive(Default)]
pub(super) struct Numbers<T>(HashMap<T, u32>);

impl<T: Eq + Hash> Numbers<T> {
    /// The items as numbers.
    pub fn of(&mut self, items: impl Iterator<Item = T>) -> Vec<u32> {
        items
            .map(|item| {
                let next = self.0.len() as u32;
                *self.0.entry(item).or_insert(next)
            })
            .collect()
    }
}

/// Counts the n-grams of `texts`, numbered items, for each order from 1 to `orders`: `see` gets the order and, for each text,
/// how often it has each n-gram that any text has, `[texts][n-grams]`.
pub(super) fn count(texts: &[&[u32]], orders: usize, mut see: impl FnMut(usize, &[Vec<u32>])) {
    // An n-gram is known by the number of its beginning, one item shorter, and its last item.
    let mut numbers: HashMap<u64, u32, BuildHasherDefault<Multiply>> = HashMap::default();
    let mut beginnings: Vec<Vec<u32>> = texts.iter().map(|text| vec![0; text.len() + 1]).collect();
    for order in 1..=orders {
        numbers.clear();
        for (beginnings, text) in beginnings.iter_mut().zip(texts) {
            let last = text.get(order - 1..).unwrap_or_default();
            beginnings.truncate(last.len());
            for (beginning, item) in beginnings.iter_mut().zip(last) {
                let next = numbers.len() as u32;
                let ngram = u64::from(*beginning) << 32 | u64::from(*item);
                *beginning = *numbers.entry(ngram).or_insert(next);
            }
        }
        let count = |ngrams: &Vec<u32>| {
            let mut counts = vec![0; numbers.len()];
            ngrams.iter().for_each(|ngram| counts[*ngram as usize] += 1);
            counts
        };
        see(order, &beginnings.iter().map(count).collect::<Vec<_>>());
    }
}

/// How many n-grams two texts share, by their counts.
pub(super) fn shared(one: &[u32], other: &[u32]) -> u64 {
    one.iter().zip(other).map(|(a, b)| u64::from(*a.min(b))).sum()
}

/// Hashes one small number well enough: a product, its upper half folded into the lower.
#[derive(Default)]
struct Multiply(u64);

impl Hasher for Multiply {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The plain way: every n-gram against every other.
    fn plainly(text: &[u32], order: usize, ngram: &[u32]) -> u32 {
        text.windows(order).filter(|other| *other == ngram).count() as u32
    }

    #[test]
    fn counts_are_those_of_comparing_each_with_each() {
        let texts: [Vec<u32>; 5] = [
            vec![1, 2, 1, 2, 1, 2, 3],
            vec![],
            vec![2],
            (0..60).map(|i| i * i % 7).collect(),
            vec![u32::MAX, 0, u32::MAX, 0],
        ];
        let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut seen = 0;
        count(&slices, 6, |order, counts| {
            seen += 1;
            assert_eq!(order, seen);
            for (text, counts) in texts.iter().zip(counts) {
                let total = (text.len() + 1).saturating_sub(order);
                assert_eq!(counts.iter().sum::<u32>() as usize, total);
            }
            for (i, a) in texts.iter().enumerate() {
                for (j, b) in texts.iter().enumerate() {
                    let mut distinct: Vec<&[u32]> = a.windows(order).collect();
                    distinct.sort();
                    distinct.dedup();
                    let expected = distinct
                        .iter()
                        .map(|ngram| plainly(a, order, ngram).min(plainly(b, order, ngram)));
                    assert_eq!(
                        shared(&counts[i], &counts[j]),
                        u64::from(expected.sum::<u32>()),
                        "{order} {i} {j}"
                    );
                }
            }
        });
        assert_eq!(seen, 6);
    }

    #[test]
    fn equal_items_have_equal_numbers() {
        let mut numbers = Numbers::default();
        assert_eq!(numbers.of("abca".chars()), [0, 1, 2, 0]);
        assert_eq!(numbers.of("dab".chars()), [3, 0, 1]);
    }
}
