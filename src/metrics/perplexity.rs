//! Perplexity of texts under a model: `exp` of the negative mean of log-probabilities, by token, word or byte.
//!
//! Only sums and counts are kept. Files, shards and ranks add theirs up; averages of perplexities would weigh a short shard
//! like a long one.

use super::sum::FixedSum;
use super::words;
use anyhow::{ensure, Result};

/// Log-probabilities from here on in size are none that a model gives.
const BEYOND: f32 = 1e12;

/// What was scored: counts, and the sum of log-probabilities. Any order of adding gives the same to the last bit
/// ([`FixedSum`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Tokens with a log-probability.
    pub tokens: u64,
    /// Words between white space.
    pub words: u64,
    /// Bytes of UTF-8, line ends left out.
    pub bytes: u64,
    /// Tokens whose log-probability is minus infinity; the perplexity is infinite then.
    pub impossible: u64,
    logprob: FixedSum,
}

impl Sums {
    /// Adds a text and the log-probabilities of its tokens (nat).
    ///
    /// # Errors
    /// One is not a number, or infinite: no model gives that. Then nothing is added.
    pub fn add(&mut self, text: &str, logprobs: &[f32]) -> Result<()> {
        self.add_logprobs(logprobs)?;
        self.words += words(text).count() as u64;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// Adds log-probabilities (nat) of tokens alone, such as a part of a text that was added already.
    ///
    /// # Errors
    /// See [`add`](Sums::add).
    pub fn add_logprobs(&mut self, logprobs: &[f32]) -> Result<()> {
        for (token, logprob) in logprobs.iter().enumerate() {
            ensure!(
                *logprob < BEYOND,
                "scored token {token} has a log-probability of {logprob}, which no model gives"
            );
        }
        self.tokens += logprobs.len() as u64;
        for logprob in logprobs {
            if *logprob > -BEYOND {
                self.logprob.add(f64::from(*logprob));
            } else {
                self.impossible += 1;
            }
        }
        Ok(())
    }

    /// Adds what another has seen.
    pub fn merge(&mut self, other: &Sums) {
        self.tokens += other.tokens;
        self.words += other.words;
        self.bytes += other.bytes;
        self.impossible += other.impossible;
        self.logprob.merge(other.logprob);
    }

    /// The sum of all log-probabilities (nat).
    pub fn logprob(&self) -> f64 {
        if self.impossible > 0 {
            f64::NEG_INFINITY
        } else {
            self.logprob.value()
        }
    }

    /// Perplexity by token; none without tokens.
    pub fn token_perplexity(&self) -> Option<f64> {
        self.mean(self.tokens).map(f64::exp)
    }

    /// Perplexity by word; none without words or tokens.
    pub fn word_perplexity(&self) -> Option<f64> {
        self.mean(self.words).map(f64::exp)
    }

    /// Perplexity by byte; none without bytes or tokens.
    pub fn byte_perplexity(&self) -> Option<f64> {
        self.mean(self.bytes).map(f64::exp)
    }

    /// Bits that a byte takes; none without bytes or tokens.
    pub fn bits_per_byte(&self) -> Option<f64> {
        self.mean(self.bytes).map(|nats| nats / std::f64::consts::LN_2)
    }

    /// Negative log-probability (nat) for each of `count`, never -0. Where no token was scored, words and bytes say nothing.
    fn mean(&self, count: u64) -> Option<f64> {
        (count > 0 && self.tokens > 0).then(|| (0.0 - self.logprob()) / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::Sums;

    #[test]
    fn the_definition() {
        let mut sums = Sums::default();
        sums.add(" two words ", &[-1.0, -2.5, -0.25]).expect("added");
        sums.add("", &[]).expect("added");
        assert_eq!((sums.tokens, sums.words, sums.bytes), (3, 2, 11));
        assert_eq!(sums.logprob(), -3.75);
        assert_eq!(sums.token_perplexity(), Some(1.25f64.exp()));
        assert_eq!(sums.word_perplexity(), Some(1.875f64.exp()));
        assert_eq!(sums.byte_perplexity(), Some((3.75f64 / 11.0).exp()));
        assert_eq!(sums.bits_per_byte(), Some(3.75 / 11.0 / 2f64.ln()));
    }

    #[test]
    fn nothing_has_no_perplexity() {
        let mut sums = Sums::default();
        for text in ["", "one word and more"] {
            sums.add(text, &[]).expect("added");
            assert_eq!((sums.token_perplexity(), sums.word_perplexity()), (None, None));
            assert_eq!((sums.byte_perplexity(), sums.bits_per_byte()), (None, None));
        }
        sums.add("", &[0.0]).expect("added");
        assert_eq!(sums.token_perplexity(), Some(1.0));
        assert_eq!(sums.bits_per_byte().map(f64::to_bits), Some(0));
    }

    #[test]
    fn shards_add_up_to_the_whole_to_the_last_bit() {
        let rows: Vec<(String, Vec<f32>)> = (0..300usize)
            .map(|i| {
                let tokens = if i % 50 == 7 { 900 } else { i % 7 };
                let logprob = |t: usize| ((i * 31 + t * 17) % 101) as f32 / -7.0 - 1e-6;
                ("à b ".repeat(i % 4), (0..tokens).map(logprob).collect())
            })
            .collect();
        let of = |rows: &[(String, Vec<f32>)]| {
            let mut sums = Sums::default();
            for (text, logprobs) in rows {
                sums.add(text, logprobs).expect("added");
            }
            sums
        };
        let whole = of(&rows);
        for cut in [0, 1, 8, 150, 300] {
            let mut parts = of(&rows[cut..]);
            parts.merge(&of(&rows[..cut]));
            assert_eq!(parts, whole);
            assert_eq!(parts.logprob().to_bits(), whole.logprob().to_bits());
        }
        let naive: f64 = rows.iter().flat_map(|(_, l)| l).map(|l| f64::from(*l)).sum();
        assert!((whole.logprob() - naive).abs() < 1e-9 * naive.abs());
    }

    #[test]
    fn what_is_impossible_is_said() {
        let mut sums = Sums::default();
        sums.add("a b", &[-1.0, f32::NEG_INFINITY]).expect("added");
        assert_eq!((sums.tokens, sums.impossible), (2, 1));
        assert_eq!(sums.logprob(), f64::NEG_INFINITY);
        assert_eq!(sums.token_perplexity(), Some(f64::INFINITY));
    }

    #[test]
    fn what_no_model_gives_is_refused() {
        let mut sums = Sums::default();
        sums.add("a", &[-1.0]).expect("added");
        for (wrong, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (1e13, "1000")] {
            let before = sums;
            let error = sums.add("a b", &[-1.0, f32::NEG_INFINITY, wrong]).expect_err("refused");
            let start = format!("scored token 2 has a log-probability of {said}");
            assert!(error.to_string().starts_with(&start), "{error}");
            assert_eq!(sums, before);
        }
    }
}
