//! N-grams and how often they occur.

use std::collections::HashMap;
use std::hash::Hash;

/// How often each n-gram of `order` items occurs.
pub(super) fn counts<T: Eq + Hash>(items: &[T], order: usize) -> HashMap<&[T], u64> {
    let mut counts = HashMap::new();
    for ngram in items.windows(order) {
        *counts.entry(ngram).or_insert(0) += 1;
    }
    counts
}
