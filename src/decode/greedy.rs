//! Greedy search: the likeliest token, step by step.

use super::candidates::Candidate;
use super::search::{Hypothesis, Settings};

/// The one hypothesis of a greedy search.
#[derive(Debug)]
pub struct Greedy {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    path: Vec<u32>,
    forced: Option<u32>,
}

impl Greedy {
    /// A search that has only the start token.
    pub fn new(settings: &Settings, forced: Option<u32>) -> Greedy {
        Greedy {
            ids: vec![settings.start],
            logprobs: Vec::new(),
            path: Vec::new(),
            forced,
        }
    }

    /// Tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Always row 0.
    pub fn path(&self) -> &[u32] {
        &self.path
    }

    /// The token that must come next.
    pub fn forced(&self) -> Option<u32> {
        self.forced.filter(|_| self.ids.len() == 1)
    }

    /// Appends a token; the result if that was the last one.
    pub fn advance(&mut self, settings: &Settings, next: Candidate) -> Option<Hypothesis> {
        self.ids.push(next.token);
        self.logprobs.push(next.logprob);
        self.path.push(0);
        let done = settings.eos.contains(&next.token) || self.ids.len() >= settings.max_length;
        done.then(|| Hypothesis {
            score: self.logprobs.iter().sum(),
            ids: std::mem::take(&mut self.ids),
            logprobs: std::mem::take(&mut self.logprobs),
            path: std::mem::take(&mut self.path),
        })
    }
}
