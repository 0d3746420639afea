//! The best of a token's scores.

use crate::device::NotANumber;

/// Scores of which the largest is kept at hand.
const CHUNK: usize = 16;

/// Finds the largest of a few hundred scores, without a branch that depends on them; keeps its memory.
#[derive(Default)]
pub(super) struct Choice {
    /// What is left of the scores, as [`key`]s, 0 in place of those taken.
    left: Vec<[u64; CHUNK]>,
    /// The largest of each chunk.
    largest: Vec<u64>,
}

impl Choice {
    /// Puts the places of the largest `scores` into `chosen`, the largest first, of equal ones the lower place first.
    ///
    /// # Errors
    /// If a score is NaN.
    pub(super) fn find(&mut self, scores: &[f32], chosen: &mut [u32]) -> Result<(), NotANumber> {
        // All are looked at before any is judged: that loop is vectorised, a search is not.
        if scores.iter().fold(false, |found, x| found | x.is_nan()) {
            let index = scores.iter().position(|x| x.is_nan()).unwrap_or(0);
            return Err(NotANumber { index });
        }
        self.left.clear();
        self.largest.clear();
        for (c, scores) in scores.chunks(CHUNK).enumerate() {
            let mut keys = [0; CHUNK];
            for (i, (to, &score)) in keys.iter_mut().zip(scores).enumerate() {
                *to = key(score, c * CHUNK + i);
            }
            self.left.push(keys);
            self.largest.push(largest(&keys));
        }
        for to in chosen {
            let place = !(self.largest.iter().copied().fold(0, u64::max) as u32);
            let chunk = place as usize / CHUNK;
            self.left[chunk][place as usize % CHUNK] = 0;
            self.largest[chunk] = largest(&self.left[chunk]);
            *to = place;
        }
        Ok(())
    }
}

/// A number above 0 that is larger the larger the score, and of equal scores the lower the place, which is its lower half
/// inverted.
fn key(score: f32, place: usize) -> u64 {
    // Adding zero makes both zeros one.
    let bits = (score + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!(place as u32))
}

/// As a tree, so that comparisons need not wait for each other.
fn largest(chunk: &[u64; CHUNK]) -> u64 {
    let mut l = *chunk;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            l[i] = l[i].max(l[i + half]);
        }
    }
    l[0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::top_k;

    #[test]
    fn the_best_are_those_of_the_plain_search() {
        let (mut choice, mut expected) = (Choice::default(), Vec::new());
        for n in [1, 2, 15, 16, 17, 64, 100, 512] {
            for distinct in [1, 2, 7, 1000] {
                let value = |i: usize| match i * 7919 % distinct {
                    0 if i.is_multiple_of(2) => -0.0,
                    0 => 0.0,
                    1 => f32::NEG_INFINITY,
                    2 => 1e-42,
                    v => (v as f32 - 3.5) * 1e3,
                };
                let scores: Vec<f32> = (0..n).map(value).collect();
                for k in [0, 1, 2, 8, 22, n] {
                    let mut chosen = vec![0; k.min(n)];
                    choice.find(&scores, &mut chosen).unwrap();
                    top_k(&scores, chosen.len(), &mut expected).unwrap();
                    assert!(chosen.iter().eq(expected.iter().map(|(_, e)| e)), "{scores:?}, {k}");
                }
            }
        }
    }

    #[test]
    fn a_nan_is_reported_wherever_it_stands() {
        for index in [0, 3, 20, 36] {
            let mut scores = [1.0; 37];
            scores[index] = if index % 2 == 0 { f32::NAN } else { -f32::NAN };
            assert_eq!(Choice::default().find(&scores, &mut [0; 2]), Err(NotANumber { index }));
        }
    }
}
