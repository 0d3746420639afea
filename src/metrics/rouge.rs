//! ROUGE (Lin, 2004), as the package `rouge-score` computes it: F-measures of n-grams and of longest common subsequences,
//! averaged over rows.

use std::collections::HashMap;

use super::ngram::{count, shared, Numbers};
pub use super::porter::stem;
use super::sum::FixedSum;
use super::{version, yes_no, References};

/// The figures, in the order of [`RougeStats::score`].
pub const NAMES: [&str; 4] = ["ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum"];

/// What two texts share. Fractions, 0 to 1; in [`RougeStats::score`] percent, 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shared {
    /// Of the system's.
    pub precision: f64,
    /// Of the reference's.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub fmeasure: f64,
}

impl Shared {
    /// `shared` of `hyp` in the system's line and of `reference` in the reference; 0 where either has none.
    fn of(shared: u64, hyp: usize, reference: usize) -> Shared {
        let of = |all: usize| shared as f64 / all.max(1) as f64;
        let (precision, recall) = (of(hyp), of(reference));
        let fmeasure = if precision + recall > 0.0 {
            2.0 * precision * recall / (precision + recall)
        } else {
            0.0
        };
        Shared {
            precision,
            recall,
            fmeasure,
        }
    }
}

/// Sums of [`Shared`] over rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    precision: FixedSum,
    recall: FixedSum,
    fmeasure: FixedSum,
}

/// What ROUGE needs to know of segments: sums that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RougeStats {
    stems: bool,
    rows: u64,
    sums: [Sums; NAMES.len()],
    references: References,
}

impl RougeStats {
    /// Without segments yet. `stems`: words longer than three letters count by their stem (English), `use_stemmer` of
    /// `rouge-score`.
    pub fn new(stems: bool) -> RougeStats {
        RougeStats {
            stems,
            ..RougeStats::default()
        }
    }

    /// Adds a segment: the system's line and its references, of which for each figure the one with the best F-measure
    /// counts.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        self.references.add(refs.len());
        self.rows += 1;
        let mut best: [Option<Shared>; NAMES.len()] = [None; NAMES.len()];
        for reference in refs {
            for (best, found) in best.iter_mut().zip(compare(hyp, reference, self.stems)) {
                if best.is_none_or(|best| found.fmeasure > best.fmeasure) {
                    *best = Some(found);
                }
            }
        }
        for (sums, best) in self.sums.iter_mut().zip(best) {
            let best = best.unwrap_or_default();
            sums.precision.add(best.precision);
            sums.recall.add(best.recall);
            sums.fmeasure.add(best.fmeasure);
        }
    }

    /// Adds the segments of another.
    ///
    /// # Errors
    /// One counts stems, the other words.
    pub fn merge(&mut self, other: &RougeStats) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.stems == other.stems,
            "ROUGE of stems cannot be added to ROUGE of words"
        );
        self.rows += other.rows;
        for (sums, other) in self.sums.iter_mut().zip(&other.sums) {
            sums.precision.merge(other.precision);
            sums.recall.merge(other.recall);
            sums.fmeasure.merge(other.fmeasure);
        }
        self.references.merge(&other.references);
        Ok(())
    }

    /// The means over all rows in percent, in the order of [`NAMES`].
    pub fn score(&self) -> [Shared; NAMES.len()] {
        let mean = |sum: FixedSum| 100.0 * sum.value() / self.rows.max(1) as f64;
        self.sums.map(|sums| Shared {
            precision: mean(sums.precision),
            recall: mean(sums.recall),
            fmeasure: mean(sums.fmeasure),
        })
    }

    /// What the figures depend on, written like sacreBLEU's signatures.
    pub fn signature(&self) -> String {
        let nrefs = self.references.signature();
        format!("nrefs:{nrefs}|case:lc|stem:{}|{}", yes_no(self.stems), version())
    }
}

/// What a line shares with one reference, in the order of [`NAMES`].
pub fn compare(hyp: &str, reference: &str, stems: bool) -> [Shared; NAMES.len()] {
    let mut numbers = Numbers::default();
    let mut tokens = |text: &str| tokens(text, stems, &mut numbers);
    let mut sentences = |text: &str| -> Vec<Vec<u32>> { text.split('\n').map(&mut tokens).collect() };
    let (hyp_sentences, ref_sentences) = (sentences(hyp), sentences(reference));
    let (hyp, reference) = (hyp_sentences.concat(), ref_sentences.concat());
    let longest = longest_common(&hyp, &reference);
    let l = Shared::of(longest, hyp.len(), reference.len());
    let lsum = if hyp_sentences.len() == 1 && ref_sentences.len() == 1 {
        l
    } else {
        let hits = union_hits(&ref_sentences, &hyp_sentences);
        Shared::of(hits, hyp.len(), reference.len())
    };
    let [one, two] = ngrams(&hyp, &reference);
    [one, two, l, lsum]
}

/// The tokens of a text as numbers: runs of a to z and 0 to 9, in lower case.
fn tokens(text: &str, stems: bool, numbers: &mut Numbers<String>) -> Vec<u32> {
    let lower = text.to_lowercase();
    let tokens = lower.split(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit());
    let stemmed = |token: &str| match stems && token.len() > 3 {
        true => stem(token),
        false => token.to_owned(),
    };
    numbers.of(tokens.filter(|token| !token.is_empty()).map(stemmed))
}

/// What two texts share of n-grams, of order 1 and 2.
fn ngrams(hyp: &[u32], reference: &[u32]) -> [Shared; 2] {
    let mut found = [Shared::default(); 2];
    count(&[hyp, reference], found.len(), |order, counts| {
        let of = |tokens: &[u32]| (tokens.len() + 1).saturating_sub(order);
        found[order - 1] = Shared::of(shared(&counts[0], &counts[1]), of(hyp), of(reference));
    });
    found
}

/// How long the longest common subsequence is.
fn longest_common(a: &[u32], b: &[u32]) -> u64 {
    let mut row = vec![0u32; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let longest = if x == y { diagonal + 1 } else { row[j].max(row[j + 1]) };
            diagonal = row[j + 1];
            row[j + 1] = longest;
        }
    }
    u64::from(row[b.len()])
}

/// Tokens of the reference's sentences that are in the longest common subsequence with any sentence of the system, none
/// counted more often than the system has it.
fn union_hits(reference: &[Vec<u32>], hyp: &[Vec<u32>]) -> u64 {
    let mut left: HashMap<u32, u64> = HashMap::new();
    hyp.iter()
        .flatten()
        .for_each(|token| *left.entry(*token).or_default() += 1);
    let mut hits = 0;
    for sentence in reference {
        let mut common = vec![false; sentence.len()];
        hyp.iter().for_each(|other| mark_common(sentence, other, &mut common));
        for (token, _) in sentence.iter().zip(common).filter(|(_, common)| *common) {
            if let Some(count) = left.get_mut(token).filter(|count| **count > 0) {
                *count -= 1;
                hits += 1;
            }
        }
    }
    hits
}

/// Marks one longest common subsequence, of several the one that `rouge-score` reads out.
fn mark_common(reference: &[u32], hyp: &[u32], common: &mut [bool]) {
    let width = hyp.len() + 1;
    let mut longest = vec![0u32; (reference.len() + 1) * width];
    for (i, x) in reference.iter().enumerate() {
        for (j, y) in hyp.iter().enumerate() {
            longest[(i + 1) * width + j + 1] = if x == y {
                longest[i * width + j] + 1
            } else {
                longest[i * width + j + 1].max(longest[(i + 1) * width + j])
            };
        }
    }
    let (mut i, mut j) = (reference.len(), hyp.len());
    while i > 0 && j > 0 {
        if reference[i - 1] == hyp[j - 1] {
            (i, j) = (i - 1, j - 1);
            common[i] = true;
        } else if longest[i * width + j - 1] > longest[(i - 1) * width + j] {
            j -= 1;
        } else {
            i -= 1;
        }
    }
}
