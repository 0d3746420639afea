//! What a batch is asked for, and what it gives.

use crate::decode::search::Hypothesis;
use crate::decode::stop::Stops;
use crate::decode::trace::Trace;
use std::sync::Arc;

/// A source to go on from, with one or several outputs: a sentence to translate, or a prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// Source tokens, specials included; for a decoder-only model the prompt, of one token at least.
    pub ids: Vec<u32>,
    /// What is wanted of it.
    pub outputs: Vec<Output>,
}

/// An output of a source.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// The caller's number for it.
    pub key: u64,
    /// First token of the output, if it is given (the target language).
    pub forced: Option<u32>,
    /// Tokens it may come to at most, where that is less than for all ([`Settings::max_length`](crate::decode::search::Settings::max_length)).
    pub most: Option<usize>,
    /// Tokens before which it may not end, where that is more than for all ([`Settings::min_length`](crate::decode::search::Settings::min_length)).
    pub least: usize,
    /// Strings that end it.
    pub stops: Option<Arc<Stops>>,
    /// What its draws begin with, where that is not the job's ([`Sampling::seed`](crate::decode::sample::Sampling::seed)).
    pub seed: Option<u64>,
    /// Whether the routes of the source are credited to this output.
    pub credits_source: bool,
}

/// Makes text of ids, to look for stop strings.
pub type TextOf = Arc<dyn Fn(&[u32]) -> anyhow::Result<String> + Send + Sync>;

/// A finished output.
#[derive(Debug)]
pub struct Finished {
    /// The caller's number.
    pub key: u64,
    /// What the search found.
    pub hypothesis: Hypothesis,
    /// What the experts did, where it is kept.
    pub trace: Option<Trace>,
}
