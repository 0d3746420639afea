//! Any figure that compares a text with references.

use anyhow::{bail, Result};
use serde_json::{json, Map, Value};

use super::bleu::{BleuOptions, BleuStats};
use super::chrf::ChrfStats;
use super::rouge::{self, RougeStats};
use super::ter::{TerOptions, TerStats};

/// One of the measures, with what it has seen so far.
#[derive(Clone, Debug, PartialEq)]
pub enum Measure {
    /// BLEU.
    Bleu(BleuStats),
    /// chrF or chrF++.
    Chrf(ChrfStats),
    /// TER.
    Ter(TerStats),
    /// ROUGE-1, -2, -L and -Lsum.
    Rouge(RougeStats),
}

/// A figure over all rows, and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// Its name, sacreBLEU's where it has one: `BLEU`, `chrF2`, `chrF2++`, `TER`, `ROUGE-1`, ...
    pub name: String,
    /// The figure in percent.
    pub score: f64,
    /// What it depends on.
    pub signature: String,
    /// Its parts, by sacreBLEU's names where it has them.
    pub parts: Map<String, Value>,
}

impl Measure {
    /// BLEU with these options.
    pub fn bleu(options: BleuOptions) -> Measure {
        Measure::Bleu(BleuStats::new(options))
    }

    /// chrF (word order 0) or chrF++ (2).
    pub fn chrf(word_order: usize, lowercase: bool) -> Measure {
        Measure::Chrf(ChrfStats::with_word_order(word_order).lowercase(lowercase))
    }

    /// TER with these options.
    pub fn ter(options: TerOptions) -> Measure {
        Measure::Ter(TerStats::new(options))
    }

    /// ROUGE, of stems or words.
    pub fn rouge(stem: bool) -> Measure {
        Measure::Rouge(RougeStats::new(stem))
    }

    /// Adds a segment: the system's text and its references.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        match self {
            Measure::Bleu(stats) => stats.add(hyp, refs),
            Measure::Chrf(stats) => stats.add(hyp, refs),
            Measure::Ter(stats) => stats.add(hyp, refs),
            Measure::Rouge(stats) => stats.add(hyp, refs),
        }
    }

    /// Adds the segments of another of the same measure and options.
    ///
    /// # Errors
    /// It is another measure, or has other options.
    pub fn merge(&mut self, other: &Measure) -> Result<()> {
        match (self, other) {
            (Measure::Bleu(stats), Measure::Bleu(other)) => stats.merge(other),
            (Measure::Chrf(stats), Measure::Chrf(other)) => stats.merge(other),
            (Measure::Ter(stats), Measure::Ter(other)) => stats.merge(other),
            (Measure::Rouge(stats), Measure::Rouge(other)) => stats.merge(other),
            (one, other) => bail!("{other:?} cannot be added to {one:?}"),
        }
    }

    /// The figures over all segments added: four for ROUGE, else one.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |name: String, score, signature, parts| Figure {
            name,
            score,
            signature,
            parts: match parts {
                Value::Object(parts) => parts,
                _ => Map::new(),
            },
        };
        match self {
            Measure::Bleu(stats) => {
                let bleu = stats.score();
                let parts = json!({
                    "verbose_score": bleu.verbose(), "counts": bleu.counts, "totals": bleu.totals,
                    "precisions": bleu.precisions, "bp": bleu.bp, "ratio": bleu.ratio,
                    "sys_len": bleu.sys_len, "ref_len": bleu.ref_len,
                });
                vec![figure("BLEU".to_owned(), bleu.score, stats.signature(), parts)]
            }
            Measure::Chrf(stats) => {
                let chrf = stats.score();
                vec![figure(chrf.name(), chrf.score, stats.signature(), json!({}))]
            }
            Measure::Ter(stats) => {
                let ter = stats.score();
                let parts = json!({"num_edits": ter.edits, "ref_length": ter.ref_len});
                vec![figure("TER".to_owned(), ter.score, stats.signature(), parts)]
            }
            Measure::Rouge(stats) => {
                let of = |(name, shared): (&&str, rouge::Shared)| {
                    let parts = json!({"precision": shared.precision, "recall": shared.recall});
                    figure((*name).to_owned(), shared.fmeasure, stats.signature(), parts)
                };
                rouge::NAMES.iter().zip(stats.score()).map(of).collect()
            }
        }
    }
}
