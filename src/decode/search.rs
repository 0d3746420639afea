//! Search settings, and what greedy search, sampling and beam search have in common.

use super::beam::Beams;
use super::candidates::Candidate;
use super::greedy::Greedy;
use super::sample::Sampling;

/// When beam search ends (Hugging Face's `early_stopping`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When no running beam is likely to get better than the worst finished one.
    False,
    /// As soon as there are as many finished hypotheses as beams.
    True,
    /// When no running beam can get better.
    Never,
}

/// How to search. Names and defaults are Hugging Face's; lengths count the decoder's start token.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Beams; 1 is greedy search, or sampling.
    pub beams: usize,
    /// Tokens of the longest output there may be, the start token included; an output's own [`Bounds`] may be tighter.
    pub max_length: usize,
    /// Below this length no end of sentence is allowed, the start token included.
    pub min_length: usize,
    /// Exponent on the length that divides a beam's score.
    pub length_penalty: f32,
    /// When beam search ends.
    pub early_stopping: EarlyStopping,
    /// The token that an output ends with when it reaches its full length, whatever the model says.
    pub forced_eos: Option<u32>,
    /// No sequence of this many tokens comes twice; 0 is off.
    pub no_repeat_ngram: usize,
    /// The decoder's start token, the first of every output of an encoder-decoder model.
    pub start: u32,
    /// Tokens that end a sentence.
    pub eos: Vec<u32>,
    /// How tokens are drawn; nothing where the likeliest are taken. For one beam only.
    pub sampling: Option<Sampling>,
}

/// Where one output begins and how long it may be. Lengths count from the start token on, itself included; in
/// decoder-only models that is the prompt's last token, so a length is one more than the tokens that are generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Its first token: the decoder's start token, or the prompt's last one.
    pub start: u32,
    /// The token that must come second, whatever the model says (the target language).
    pub forced: Option<u32>,
    /// Tokens of the output when it ends at the latest; at most [`Settings::max_length`], which the caches have room for.
    pub max_length: usize,
    /// Below this length no end of sentence is allowed.
    pub min_length: usize,
}

/// Whether an output ends for a reason of its own (a stop string): is given the tokens generated before, without the
/// start token, and the one that comes now.
pub type Stop<'a> = dyn FnMut(&[u32], u32) -> bool + 'a;

impl Settings {
    /// The bounds of an output that has none of its own, behind the decoder's start token.
    pub fn bounds(&self, forced: Option<u32>) -> Bounds {
        Bounds {
            start: self.start,
            forced,
            max_length: self.max_length,
            min_length: self.min_length,
        }
    }

    /// Cache rows of an output at full length: one for each token that is read, for each beam.
    pub fn slot_rows(&self) -> usize {
        self.max_length.saturating_sub(1).max(1).saturating_mul(self.beams)
    }

    /// Candidates that each row must offer: enough that `beams` unfinished ones remain.
    pub fn candidates(&self) -> usize {
        match self.beams {
            1 => 1,
            n => n * (1 + self.eos.len()).max(2),
        }
    }
}

#[cfg(test)]
impl Settings {
    /// A search without extras, from token 0 to token 1.
    pub fn plain(beams: usize, max_length: usize) -> Settings {
        Settings {
            beams,
            max_length,
            min_length: 0,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            no_repeat_ngram: 0,
            forced_eos: None,
            start: 0,
            eos: vec![1],
            sampling: None,
        }
    }
}

/// A finished output.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Tokens, the start token first.
    pub ids: Vec<u32>,
    /// Log-probability of each token after the start token; 0 for a forced one.
    pub logprobs: Vec<f32>,
    /// Greedy and sampled: the sum of log-probabilities. Beam: that sum over length to the power of the length penalty.
    pub score: f32,
    /// Which row of the step each token came from: the token at `ids[i]` was read by row `path[i]` of step `i`.
    pub path: Vec<u32>,
}

/// One sentence's search.
#[derive(Debug)]
pub enum Search {
    /// One hypothesis, always the likeliest token, or the one that was drawn.
    Greedy(Greedy),
    /// Several hypotheses side by side.
    Beam(Beams),
}

impl Search {
    /// A search that has only the start token.
    pub fn new(settings: &Settings, bounds: Bounds) -> Search {
        match settings.beams {
            1 => Search::Greedy(Greedy::new(bounds)),
            _ => Search::Beam(Beams::new(bounds)),
        }
    }

    /// Where the output begins and how long it may be.
    pub fn bounds(&self) -> &Bounds {
        match self {
            Search::Greedy(g) => g.bounds(),
            Search::Beam(b) => b.bounds(),
        }
    }

    /// Hypotheses that need a decoding step.
    pub fn rows(&self) -> usize {
        match self {
            Search::Greedy(_) => 1,
            Search::Beam(b) => b.rows(),
        }
    }

    /// Tokens of a hypothesis so far.
    pub fn ids(&self, row: usize) -> &[u32] {
        match self {
            Search::Greedy(g) => g.ids(),
            Search::Beam(b) => b.ids(row),
        }
    }

    /// Which row of each earlier step a hypothesis stems from.
    pub fn path(&self, row: usize) -> &[u32] {
        match self {
            Search::Greedy(g) => g.path(),
            Search::Beam(b) => b.path(row),
        }
    }

    /// The token that must come next, whatever the model says.
    pub fn forced(&self) -> Option<u32> {
        self.bounds().forced.filter(|_| self.ids(0).len() == 1)
    }

    /// Takes each row's candidates, best first; the result once the search has ended.
    pub fn advance(&mut self, settings: &Settings, candidates: &[&[Candidate]], stop: &mut Stop) -> Option<Hypothesis> {
        match self {
            Search::Greedy(g) => g.advance(settings, candidates[0][0], stop),
            Search::Beam(b) => b.advance(settings, candidates, stop),
        }
    }
}
