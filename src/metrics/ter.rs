//! TER over a corpus (Snover et al., 2006), as sacreBLEU computes it: edits and shifts of words over the references'
//! average length.

use super::edit_rate::edits;
use super::ngram::Numbers;
use super::sum::FixedSum;
use super::tokenize::tercom;
use super::{version, words, yes_no, References};

pub use super::tokenize::tercom::TerOptions;

/// A TER score: less is better.
#[derive(Clone, Debug, PartialEq)]
pub struct Ter {
    /// The score in percent, 0 or more; above 100 where more is to be mended than the references have words.
    pub score: f64,
    /// Insertions, deletions, substitutions and shifts.
    pub edits: u64,
    /// Words of the references, of each segment the average of its references.
    pub ref_len: f64,
}

/// What TER needs to know of segments: sums that add up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TerStats {
    options: TerOptions,
    edits: u64,
    ref_len: FixedSum,
    references: References,
}

impl TerStats {
    /// For TER with these options; none of its segments yet.
    pub fn new(options: TerOptions) -> TerStats {
        TerStats {
            options,
            ..TerStats::default()
        }
    }

    /// Adds a segment: the system's line and its references, of which the one with the fewest edits counts.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        self.references.add(refs.len());
        let hyp = tercom::tokenize(hyp, self.options);
        let refs: Vec<String> = refs.iter().map(|r| tercom::tokenize(r, self.options)).collect();
        let mut numbers = Numbers::default();
        let hyp = numbers.of(words(&hyp));
        let refs: Vec<Vec<u32>> = refs.iter().map(|r| numbers.of(words(r))).collect();
        self.edits += refs.iter().map(|r| edits(&hyp, r)).min().unwrap_or(0);
        if !refs.is_empty() {
            let length: usize = refs.iter().map(Vec::len).sum();
            self.ref_len.add(length as f64 / refs.len() as f64);
        }
    }

    /// Adds the segments of another with the same options.
    ///
    /// # Errors
    /// The options differ.
    pub fn merge(&mut self, other: &TerStats) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.options == other.options,
            "TER with {:?} cannot be added to one with {:?}",
            other.options,
            self.options
        );
        self.edits += other.edits;
        self.ref_len.merge(other.ref_len);
        self.references.merge(&other.references);
        Ok(())
    }

    /// The score of all segments added.
    pub fn score(&self) -> Ter {
        let ref_len = self.ref_len.value();
        let rate = if ref_len > 0.0 {
            self.edits as f64 / ref_len
        } else if self.edits > 0 {
            1.0
        } else {
            0.0
        };
        Ter {
            score: 100.0 * rate,
            edits: self.edits,
            ref_len,
        }
    }

    /// sacreBLEU's signature of this score.
    pub fn signature(&self) -> String {
        format!(
            "nrefs:{}|case:{}|tok:tercom|norm:{}|punct:{}|asian:{}|{}",
            self.references.signature(),
            if self.options.case_sensitive { "mixed" } else { "lc" },
            yes_no(self.options.normalized),
            yes_no(!self.options.no_punct),
            yes_no(self.options.asian_support),
            version()
        )
    }
}
