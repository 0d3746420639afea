//! BLEU over a corpus (Papineni et al., 2002), as sacreBLEU computes it by default: 13a tokens, mixed case, n-grams up to
//! 4, exponential smoothing, no effective order.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::{same_length, tokenize_13a, version, words, References};

/// The longest n-gram that is counted.
pub const MAX_ORDER: usize = 4;

/// A BLEU score and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
    /// The score, 0 to 100.
    pub score: f64,
    /// Smoothed n-gram precisions in percent, `[order]`.
    pub precisions: [f64; MAX_ORDER],
    /// Brevity penalty, 0 to 1.
    pub bp: f64,
    /// `sys_len / ref_len`, or 0.
    pub ratio: f64,
    /// Tokens of the system.
    pub sys_len: u64,
    /// Tokens of the references, of each segment the one closest in length.
    pub ref_len: u64,
}

/// What BLEU needs to know of segments: whole numbers that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BleuStats {
    correct: [u64; MAX_ORDER],
    total: [u64; MAX_ORDER],
    sys_len: u64,
    ref_len: u64,
    references: References,
}

impl BleuStats {
    /// Adds a segment: the system's line and its references.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        self.references.add(refs.len());
        let hyp = tokenize_13a::tokenize(hyp);
        let refs: Vec<String> = refs.iter().map(|r| tokenize_13a::tokenize(r)).collect();
        let hyp: Vec<&str> = words(&hyp).collect();
        let refs: Vec<Vec<&str>> = refs.iter().map(|r| words(r).collect()).collect();
        self.sys_len += hyp.len() as u64;
        // Of two references equally close the shorter one counts.
        let closest = refs
            .iter()
            .map(Vec::len)
            .min_by_key(|len| (len.abs_diff(hyp.len()), *len));
        self.ref_len += closest.unwrap_or(0) as u64;
        for order in 1..=MAX_ORDER {
            let mut allowed: HashMap<&[&str], u64> = HashMap::new();
            for reference in &refs {
                for (ngram, count) in counts(reference, order) {
                    let most = allowed.entry(ngram).or_default();
                    *most = count.max(*most);
                }
            }
            for (ngram, count) in counts(&hyp, order) {
                self.total[order - 1] += count;
                self.correct[order - 1] += count.min(allowed.get(ngram).copied().unwrap_or(0));
            }
        }
    }

    /// Adds the segments of another.
    pub fn merge(&mut self, other: &BleuStats) {
        for order in 0..MAX_ORDER {
            self.correct[order] += other.correct[order];
            self.total[order] += other.total[order];
        }
        self.sys_len += other.sys_len;
        self.ref_len += other.ref_len;
        self.references.merge(&other.references);
    }

    /// The score of all segments added.
    pub fn score(&self) -> Bleu {
        let (sys, reference) = (self.sys_len as f64, self.ref_len as f64);
        let bp = match self.sys_len {
            sys_len if sys_len >= self.ref_len => 1.0,
            0 => 0.0,
            _ => (1.0 - reference / sys).exp(),
        };
        let precisions = self.precisions();
        // An order without any n-gram, or no match at all, makes the score 0.
        let score = if precisions.contains(&0.0) {
            0.0
        } else {
            bp * (precisions.iter().map(|p| p.ln()).sum::<f64>() / MAX_ORDER as f64).exp()
        };
        let ratio = if self.ref_len > 0 { sys / reference } else { 0.0 };
        Bleu {
            score,
            precisions,
            bp,
            ratio,
            sys_len: self.sys_len,
            ref_len: self.ref_len,
        }
    }

    /// Precisions in percent. The first order without a match counts as half a match, the next as a quarter, and so on
    /// (NIST's smoothing, sacreBLEU's `exp`).
    fn precisions(&self) -> [f64; MAX_ORDER] {
        let mut precisions = [0.0; MAX_ORDER];
        if self.correct.iter().all(|c| *c == 0) {
            return precisions;
        }
        let mut smoothing = 1.0;
        for (precision, (correct, total)) in precisions.iter_mut().zip(self.correct.iter().zip(self.total)) {
            if total == 0 {
                break;
            }
            *precision = if *correct == 0 {
                smoothing *= 2.0;
                100.0 / (smoothing * total as f64)
            } else {
                100.0 * *correct as f64 / total as f64
            };
        }
        precisions
    }

    /// sacreBLEU's signature of this score.
    pub fn signature(&self) -> String {
        format!(
            "nrefs:{}|case:mixed|eff:no|tok:13a|smooth:exp|{}",
            self.references.signature(),
            version()
        )
    }
}

/// BLEU of the lines `hyps` against the reference files `refs`: `refs[r][i]` is reference r of line i.
///
/// # Errors
/// There is no reference, or one has another number of lines.
pub fn corpus_bleu(hyps: &[&str], refs: &[Vec<&str>]) -> anyhow::Result<Bleu> {
    same_length(hyps.len(), refs)?;
    let mut stats = BleuStats::default();
    for (i, hyp) in hyps.iter().enumerate() {
        stats.add(hyp, &refs.iter().map(|r| r[i]).collect::<Vec<_>>());
    }
    Ok(stats.score())
}

fn counts<'a, 'b>(tokens: &'b [&'a str], order: usize) -> HashMap<&'b [&'a str], u64> {
    let mut counts = HashMap::new();
    for ngram in tokens.windows(order) {
        *counts.entry(ngram).or_insert(0) += 1;
    }
    counts
}
