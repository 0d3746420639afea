//! What runs measure. How good a translation or text is: BLEU, chrF and TER, figure for figure as sacreBLEU 2.x computes
//! them, ROUGE as `rouge-score` does; how sure a model was of a text: [`perplexity`]. Where time and memory went: [`meter`],
//! [`memory`]. What a machine is called and has room for: [`host`], [`disk`].
//!
//! Every figure comes of sums over segments: rows are added to a [`bleu::BleuStats`], [`perplexity::Sums`] and so on, stats
//! are merged in any order with the same result to the last bit (whole numbers, or [`sum::FixedSum`]), and the score is
//! computed once at the end. [`measure::Measure`] is any of those that compare a text with references.

pub mod bleu;
pub mod chrf;
pub mod disk;
pub mod edit_distance;
mod edit_rate;
pub mod host;
pub mod measure;
pub mod memory;
pub mod meter;
mod ngram;
pub mod perplexity;
mod porter;
pub mod rouge;
pub mod sum;
pub mod ter;
pub mod tokenize;

use std::borrow::Cow;

/// Python's `str.isspace`: Unicode's white space, and the four ASCII separators that Unicode leaves out.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Python's `str.split()`: the pieces between runs of white space.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|w| !w.is_empty())
}

/// The text, in lower case if asked for.
fn case(text: &str, lowercase: bool) -> Cow<'_, str> {
    if lowercase {
        Cow::Owned(text.to_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

/// How a signature writes a switch.
fn yes_no(switch: bool) -> &'static str {
    if switch {
        "yes"
    } else {
        "no"
    }
}

/// How many references the segments had: sacreBLEU's `nrefs`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum References {
    /// No segment yet.
    #[default]
    None,
    /// As many for each.
    Each(usize),
    /// More for some than for others.
    Varying,
}

impl References {
    fn add(&mut self, count: usize) {
        self.merge(&References::Each(count));
    }

    fn merge(&mut self, other: &References) {
        *self = match (&*self, other) {
            (a, References::None) => a.clone(),
            (References::None, b) => b.clone(),
            (References::Each(a), References::Each(b)) if a == b => References::Each(*a),
            _ => References::Varying,
        };
    }

    fn signature(&self) -> String {
        match self {
            References::None => "0".to_owned(),
            References::Each(count) => count.to_string(),
            References::Varying => "var".to_owned(),
        }
    }
}

/// The last key of a signature. The figures are sacreBLEU's; who computed them is said truly.
fn version() -> String {
    format!("version:sluice-{}", env!("CARGO_PKG_VERSION"))
}

/// Checks that each reference file has a line for each line of the system.
fn same_length(hyps: usize, refs: &[Vec<&str>]) -> anyhow::Result<()> {
    if refs.is_empty() {
        anyhow::bail!("no reference to compare {hyps} lines with: give one or more");
    }
    for (i, reference) in refs.iter().enumerate() {
        if reference.len() != hyps {
            anyhow::bail!(
                "reference {} has {} lines, while the output has {hyps}: they must belong together line by line",
                i + 1,
                reference.len()
            );
        }
    }
    Ok(())
}
