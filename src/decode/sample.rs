//! Sampling: the next token is drawn from the model's distribution, warped as Hugging Face's `generate` does it:
//! temperature, then top-k, then top-p, then min-p.

use super::random::uniform;
use crate::device::{exp_slice, log_sum_exp, Cpu, Linear, Tops};
use anyhow::{ensure, Result};

/// The most outputs the head is asked for; sorting whole rows of logits is faster from about there on.
const MOST_OFFERED: usize = 64;
/// Tokens whose weights are in hand at a time.
const CHUNK: usize = 1024;

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; above 0.
    pub temperature: f32,
    /// Only so many of the likeliest tokens are kept, of equal ones those with lower ids; 0 keeps all.
    pub top_k: usize,
    /// Of those, the fewest likeliest whose probabilities come to this much, one at least; 1 keeps all.
    pub top_p: f32,
    /// Of those, the ones at least this probable, in parts of the likeliest one's probability; 0 keeps all.
    pub min_p: f32,
    /// Of outputs that have none of their own. Draws differ with it, the output's key and the position, and nothing else.
    pub seed: u64,
}

/// What was drawn for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// [`log_sum_exp`] of the row's logits, ruled out ones included; NaN if they hold one, and then the rest says nothing.
    pub log_sum: f32,
    /// The drawn token's logit and the token. Its log-probability is that of the model, `logit - log_sum`, not that of
    /// the distribution it was drawn from: scores of greedy and sampled outputs compare.
    pub best: (f32, u32),
}

/// Buffers that keep their memory.
#[derive(Debug, Default)]
pub struct Room {
    tops: Tops,
    logits: Vec<f32>,
}

/// A token that may be drawn.
struct Kept {
    logit: f32,
    token: u32,
    /// Its probability in parts of the likeliest token's, at the temperature.
    weight: f32,
}

impl Sampling {
    /// These settings, if they make sense; nothing at temperature 0, which is greedy search.
    ///
    /// # Errors
    /// A setting is out of its range: the flag, and what it takes.
    pub fn checked(self) -> Result<Option<Sampling>> {
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "--temperature {}: expected 0 (greedy search) or more",
            self.temperature
        );
        ensure!(
            self.top_p > 0.0 && self.top_p <= 1.0,
            "--top-p {}: expected a probability above 0; 1 keeps all tokens",
            self.top_p
        );
        ensure!(
            (0.0..=1.0).contains(&self.min_p),
            "--min-p {}: expected 0 to 1; 0 keeps all tokens",
            self.min_p
        );
        Ok(Some(self).filter(|s| s.temperature > 0.0))
    }

    /// Draws a token for each row of hidden states `x` `[rows, d_model]` with the head `w` `[vocabulary, d_model]`.
    /// `ruled_out(row)` names tokens, ascending, that are not drawn; `place(row)` is the seed and the key of the row's output,
    /// and the position of the token to draw.
    pub fn draw_rows<'r>(
        &self,
        device: &Cpu,
        (x, w): (&[f32], &Linear),
        ruled_out: impl Fn(usize) -> &'r [u32] + Sync,
        place: impl Fn(usize) -> (u64, u64, u64) + Sync,
        room: &mut Room,
    ) -> Vec<Drawn> {
        let number = |row| {
            let (seed, key, position) = place(row);
            uniform(seed, key, position)
        };
        let Room { tops, logits } = room;
        let draw = |row, log_sum: f32, from: &dyn Fn(f64) -> (f32, u32)| {
            let best = if log_sum.is_nan() {
                (log_sum, 0)
            } else {
                from(number(row))
            };
            Drawn { log_sum, best }
        };
        if (1..=MOST_OFFERED).contains(&self.top_k) {
            device.head(x, w, self.top_k, ruled_out, tops);
            let found = &*tops;
            let row = |row| draw(row, found.log_sum(row), &|u| self.draw(found.best(row), u));
            return (0..x.len() / w.inputs()).map(row).collect();
        }
        device.logits(x, w, logits, |row, logits| {
            let log_sum = log_sum_exp(logits);
            let inside = ruled_out(row).iter().filter(|&&t| (t as usize) < w.outputs());
            inside.for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
            draw(row, log_sum, &|u| self.draw_of_row(logits, u))
        })
    }

    /// Draws from the `top_k` likeliest tokens, in any order, by a number from 0 on and below 1.
    fn draw(&self, best: &[(f32, u32)], number: f64) -> (f32, u32) {
        let max = best.iter().map(|b| b.0).fold(f32::NEG_INFINITY, f32::max);
        let mut weights: Vec<f32> = best.iter().map(|b| b.0).collect();
        self.weigh(max, &mut weights);
        let kept = best.iter().zip(weights);
        self.draw_of(
            kept.map(|(&(logit, token), weight)| Kept { logit, token, weight })
                .collect(),
            None,
            number,
        )
    }

    /// Draws from a whole row of logits by a number from 0 on and below 1: the one that [`Sampling::draw`] gives, without
    /// sorting more than it must.
    fn draw_of_row(&self, row: &[f32], number: f64) -> (f32, u32) {
        if (1..row.len()).contains(&self.top_k) {
            let mut best: Vec<(f32, u32)> = row.iter().copied().zip(0..).collect();
            best.select_nth_unstable_by(self.top_k - 1, |a, b| order(*a, *b));
            return self.draw(&best[..self.top_k], number);
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let chunk = |c: &[f32]| {
            let mut weights = c.to_vec();
            self.weigh(max, &mut weights);
            weights
        };
        if self.top_p < 1.0 {
            let total: f64 = row.chunks(CHUNK).map(|c| sum(&chunk(c))).sum();
            // All tokens below come to less than what top-p leaves out, by half: none of them is kept.
            let least = 0.5 * (1.0 - f64::from(self.top_p)) * total / row.len() as f64;
            let weighed = row.chunks(CHUNK).flat_map(chunk).zip(row.iter().zip(0..));
            let kept = weighed
                .filter(|(weight, _)| f64::from(*weight) >= least)
                .map(|(weight, (&logit, token))| Kept { logit, token, weight })
                .collect();
            return self.draw_of(kept, Some(total), number);
        }
        let likely = |c: &[f32]| {
            let mut weights = chunk(c);
            weights.iter_mut().filter(|w| **w < self.min_p).for_each(|w| *w = 0.0);
            weights
        };
        let sums: Vec<f64> = row.chunks(CHUNK).map(|c| sum(&likely(c))).collect();
        let (c, rest) = pick(&sums, number * sums.iter().sum::<f64>());
        let chunk = &row[c * CHUNK..row.len().min((c + 1) * CHUNK)];
        let weights: Vec<f64> = likely(chunk).into_iter().map(f64::from).collect();
        let token = c * CHUNK + pick(&weights, rest).0;
        (row[token], token as u32)
    }

    /// Draws from what is left of `kept` by top-p and min-p, tokens in the order of their ids; `total` is the sum of all
    /// weights where tokens are missing that top-p won't keep.
    fn draw_of(&self, mut kept: Vec<Kept>, total: Option<f64>, number: f64) -> (f32, u32) {
        kept.sort_unstable_by(|a, b| order((a.logit, a.token), (b.logit, b.token)));
        if self.top_p < 1.0 {
            let total = total.unwrap_or_else(|| kept.iter().map(|k| f64::from(k.weight)).sum());
            let enough = f64::from(self.top_p) * total;
            let mut before = 0.0;
            let of_nucleus = kept.iter().take_while(|k| {
                let inside = before < enough;
                before += f64::from(k.weight);
                inside
            });
            let count = of_nucleus.count();
            kept.truncate(count.max(1));
        }
        kept.retain(|k| k.weight >= self.min_p);
        kept.sort_unstable_by_key(|k| k.token);
        let weights: Vec<f64> = kept.iter().map(|k| f64::from(k.weight)).collect();
        let drawn = &kept[pick(&weights, number * weights.iter().sum::<f64>()).0];
        (drawn.logit, drawn.token)
    }

    /// From logits to weights, `max` being the largest logit: the likeliest weigh 1.
    fn weigh(&self, max: f32, logits: &mut [f32]) {
        for x in &mut *logits {
            // The largest may be infinite, or a temperature too small to divide by.
            *x = if *x == max { 0.0 } else { (*x - max) / self.temperature };
        }
        exp_slice(logits);
    }
}

/// The likeliest first, of equal ones the lower token; zeros of both signs are equal.
fn order(a: (f32, u32), b: (f32, u32)) -> std::cmp::Ordering {
    (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1))
}

fn sum(weights: &[f32]) -> f64 {
    weights.iter().map(|&w| f64::from(w)).sum()
}

/// Where `point` falls on the line that the weights make up, laid end to end, and how far into that weight. What rounding
/// puts beyond the end falls on the last weight that is one.
fn pick(weights: &[f64], point: f64) -> (usize, f64) {
    let (mut rest, mut last) = (point, (0, 0.0));
    for (i, &weight) in weights.iter().enumerate().filter(|w| *w.1 > 0.0) {
        last = (i, rest);
        if rest < weight {
            break;
        }
        rest -= weight;
    }
    last
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
