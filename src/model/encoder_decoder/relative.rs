//! Relative positions as T5 has them (Raffel et al. 2020, section 2.1): the bias of a score depends on the bucket that the
//! key's distance from the query falls into. Near distances have a bucket each; farther ones share buckets that grow with
//! the logarithm of the distance, and the last takes all from `max_distance` on.

use crate::device::Bias;

/// The bias that an attention adds to its scores, by head and distance.
pub(super) struct RelativeBias {
    /// `[heads, 2 * reach + 1]`: entry `reach + distance` for a key `distance` tokens behind its query.
    table: Vec<f32>,
    /// Distance from which on the bias is the same.
    reach: usize,
}

impl RelativeBias {
    /// Spreads `weights` `[buckets, heads]` over distances. In a decoder (`one_sided`) no key is behind its query, so that all
    /// buckets serve distances ahead.
    pub fn spread(weights: &[f32], heads: usize, max_distance: usize, one_sided: bool) -> RelativeBias {
        let buckets = weights.len() / heads;
        let (reach, distances) = (max_distance, 2 * max_distance + 1);
        let bucket_of = |i: usize| bucket(i as i64 - reach as i64, buckets, max_distance, one_sided);
        let bucket_of: Vec<usize> = (0..distances).map(bucket_of).collect();
        let of_head = |head: usize| bucket_of.iter().map(move |bucket| weights[bucket * heads + head]);
        RelativeBias {
            table: (0..heads).flat_map(of_head).collect(),
            reach,
        }
    }

    /// For queries at these places among their key rows.
    pub fn at<'a>(&'a self, positions: &'a [u32]) -> Bias<'a> {
        Bias {
            table: &self.table,
            reach: self.reach,
            positions,
        }
    }
}

/// The bucket of a key's place minus its query's. The logarithm is taken in float32, as in the reference.
fn bucket(relative: i64, buckets: usize, max_distance: usize, one_sided: bool) -> usize {
    let (buckets, first, distance) = if one_sided {
        (buckets, 0, (-relative).max(0))
    } else {
        let half = buckets / 2;
        (half, if relative > 0 { half } else { 0 }, relative.abs())
    };
    let (exact, distance) = (buckets / 2, distance as usize);
    if distance < exact {
        return first + distance;
    }
    let growth = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    let farther = (growth * (buckets - exact) as f32) as usize;
    first + (exact + farther).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From which relative position on a bucket is another than before, and which, as transformers 5.23 has them.
    #[test]
    fn buckets_are_the_references() {
        let both = (
            vec![
                -130, -90, -63, -45, -31, -22, -15, -11, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16,
                23, 32, 46, 64, 91,
            ],
            (0..16).rev().chain(17..32).collect::<Vec<usize>>(),
        );
        let one = (
            vec![
                -130, -112, -98, -86, -76, -66, -58, -51, -45, -39, -34, -30, -26, -23, -20, -18, -15, -14, -13, -12,
                -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0,
            ],
            (0..32).rev().collect(),
        );
        let odd = (vec![-66, -29, -13, -6, -2, -1, 0], (0..7).rev().collect());
        let few = (vec![-35, -5, 0, 1, 6], vec![2, 1, 0, 4, 5]);
        for (one_sided, buckets, max_distance, wanted) in [
            (false, 32, 128, both),
            (true, 32, 128, one),
            (true, 7, 64, odd),
            (false, 6, 33, few),
        ] {
            let ends = max_distance as i64 + 2;
            let mut found: (Vec<i64>, Vec<usize>) = Default::default();
            for relative in -ends..=ends {
                let bucket = bucket(relative, buckets, max_distance, one_sided);
                if found.1.last() != Some(&bucket) {
                    found.0.push(relative);
                    found.1.push(bucket);
                }
            }
            assert_eq!(
                found, wanted,
                "{buckets} buckets to {max_distance}, one-sided {one_sided}"
            );
        }
    }

    /// The formula, a query and a key at a time, in float64 (no logarithm of these sizes is near a whole number but those
    /// that are one).
    fn slowly(
        weights: &[f32],
        heads: usize,
        max: usize,
        one_sided: bool,
        head: usize,
        query: usize,
        key: usize,
    ) -> f32 {
        let all = weights.len() / heads;
        let mut bucket = 0;
        let mut n = all;
        let mut distance = query as f64 - key as f64;
        if one_sided {
            distance = distance.max(0.0);
        } else {
            n /= 2;
            if key > query {
                bucket += n;
            }
            distance = distance.abs();
        }
        let exact = (n / 2) as f64;
        bucket += if distance < exact {
            distance as usize
        } else {
            let share = (distance / exact).ln() / (max as f64 / exact).ln();
            let farther = (share * (n as f64 - exact) + 1e-9).floor();
            ((exact + farther) as usize).min(n - 1)
        };
        weights[bucket * heads + head]
    }

    #[test]
    fn every_distance_has_its_buckets_bias() {
        for (buckets, heads, max_distance) in [(32, 4, 128), (32, 1, 20), (8, 3, 128), (7, 2, 64), (4, 2, 3)] {
            let weights: Vec<f32> = (0..buckets * heads).map(|i| i as f32).collect();
            for one_sided in [false, true] {
                let bias = RelativeBias::spread(&weights, heads, max_distance, one_sided);
                let (reach, width) = (bias.reach as i64, 2 * bias.reach + 1);
                assert_eq!(bias.table.len(), heads * width);
                for (query, key) in (0..200).flat_map(|q| [0, 1, q / 2, q, q + 1, 199].map(|k| (q, k))) {
                    let entry = (key as i64 - query as i64).clamp(-reach, reach) + reach;
                    for head in 0..heads {
                        let found = bias.table[head * width + entry as usize];
                        let wanted = slowly(&weights, heads, max_distance, one_sided, head, query, key);
                        assert_eq!(
                            found, wanted,
                            "{buckets} buckets, head {head}, query {query}, key {key}"
                        );
                    }
                }
            }
        }
    }
}
