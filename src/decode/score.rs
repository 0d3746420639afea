//! Scoring: the log-probability of every token of given texts, window by window, many windows in one go.
//!
//! No token waits for the one before it, so a portion of windows runs through the model layer by layer: every expert meets
//! all its rows at once (the paper, section 3). What is read is looked back on within its own window only.

mod plan;
#[cfg(test)]
mod tests;

use super::lockstep::{run, Portions, PART};
use super::trace::{Pass, Trace, Visits};
use super::windows::{any, windows, Cut, Prefix, Window, Windows};
use super::workload::{OfRow, Workload};
use crate::device::{KeyRows, Scored, Want};
use crate::metrics::meter::Phase;
use crate::model::cache::{Caches, DecodeRow, SourceRow};
use crate::model::{Model, Shape};
use crate::moe::Context;
use std::collections::VecDeque;
use std::sync::Arc;

pub use plan::{Costs, Plan, PORTION, PORTION_BUFFERED};

/// Portions that are asked for, and read in a step at most: enough to cut them evenly, and few enough to listen in between.
const PORTIONS: usize = 4;
/// How often a token's scores are held on their way: as they come, as a row, and as the columns of a segment.
const COPIES: u64 = 3;

/// How to score.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Windows of long texts.
    pub cut: Cut,
    /// What stands before a text.
    pub prefix: Prefix,
    /// What is wanted beside log-probabilities.
    pub want: Want,
}

impl Settings {
    /// Whether a text of `tokens` tokens has any that is scored.
    pub fn scores_any(&self, tokens: usize) -> bool {
        any(tokens, self.cut, self.prefix)
    }
}

/// A text to score, with at least one token that is ([`Settings::scores_any`]).
#[derive(Clone, Debug)]
pub struct Request {
    /// The caller's number for it.
    pub key: u64,
    /// For a model with an encoder, what the text is to follow.
    pub source: Vec<u32>,
    /// The text.
    pub ids: Vec<u32>,
}

/// A scored text.
#[derive(Debug)]
pub struct Finished {
    /// The caller's number.
    pub key: u64,
    /// The text.
    pub ids: Vec<u32>,
    /// What the model makes of it.
    pub scores: Scores,
    /// What the experts did, where it is kept.
    pub trace: Option<Trace>,
}

/// Scores of a text's tokens, in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// Log-probability of each, `[scored]`, in nats.
    pub logprobs: Vec<f32>,
    /// Rank of each among all tokens, 1 the likeliest; `[scored]` where wanted.
    pub ranks: Vec<u32>,
    /// The likeliest tokens in place of each with their log-probabilities, `[scored, top]` where wanted.
    pub top: Vec<(u32, f32)>,
}

/// A text under way.
struct Text {
    request: Request,
    /// Windows that are still to be read.
    left: usize,
    scores: Scores,
    trace: Option<Trace>,
}

/// The running batch of a scoring job.
pub struct Scorer {
    settings: Settings,
    plan: Plan,
    caches: Caches,
    /// Rows that there are for the decoder's tokens, and for the encoder's.
    rows: [usize; 2],
    texts: Vec<Option<Text>>,
    /// Texts with windows that are to be read, and those.
    queue: VecDeque<(usize, Windows)>,
    /// Tokens of those windows.
    waiting: usize,
    /// Mean tokens of a text so far.
    mean: f64,
    hidden: Vec<f32>,
    targets: Vec<u32>,
    scored: Scored,
}

impl Scorer {
    /// Nothing under way yet, for texts of about `mean` tokens.
    pub fn new(settings: Settings, plan: Plan, mean: usize, model: &dyn Model) -> Scorer {
        Scorer {
            settings,
            plan,
            caches: Caches::passing(model.cache_type(), model.shape(), 0, 0),
            rows: [0; 2],
            texts: Vec::new(),
            queue: VecDeque::new(),
            waiting: 0,
            mean: mean.max(1) as f64,
            hidden: Vec::new(),
            targets: Vec::new(),
            scored: Scored::default(),
        }
    }

    /// How much is read in one go, and what there is memory for.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Bytes of the caches' rows.
    #[cfg(test)]
    fn cache_bytes(&self) -> u64 {
        self.caches.bytes()
    }

    /// Takes the next windows from the queue: about an equal part of what waits for each of `calls` runs.
    fn next_run(&mut self, calls: usize) -> Vec<(usize, Window)> {
        let windows = self.queue.iter().flat_map(|(text, windows)| {
            let source = source_of(&self.texts, *text).len();
            windows.clone().map(move |window| window.tokens() + source)
        });
        let enough = self.waiting.div_ceil(calls).min(self.plan.portion);
        let count = run(windows, enough, self.plan.most);
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            let Some((text, windows)) = self.queue.front_mut() else {
                break;
            };
            match windows.next() {
                Some(window) => taken.push((*text, window)),
                None => drop(self.queue.pop_front()),
            }
        }
        self.waiting -= taken.iter().map(|next| self.tokens_of(next)).sum::<usize>();
        taken
    }

    fn tokens_of(&self, (text, window): &(usize, Window)) -> usize {
        window.tokens() + source_of(&self.texts, *text).len()
    }

    /// Reads and scores some windows; collective. What has come to its end.
    fn read_portion(
        &mut self,
        ctx: &mut Context,
        model: &mut dyn Model,
        step: u64,
        portion: &[(usize, Window)],
    ) -> Vec<Finished> {
        self.make_room(portion);
        let source_visits = self.read_sources(ctx, model, step, portion);
        let rows = rows_of(&self.texts, portion, self.settings.prefix, model.shape());
        let width = model.shape().d_model;
        let hidden = model.decode(ctx, &rows, &mut self.caches);
        self.hidden.clear();
        self.targets.clear();
        let mut first = 0;
        for (text, window) in portion {
            let ids = &text_of(&self.texts, *text).request.ids;
            let at = first + window.scores_at(window.scored.start);
            self.hidden
                .extend_from_slice(&hidden[at * width..(at + window.scored.len()) * width]);
            self.targets.extend_from_slice(&ids[window.scored.clone()]);
            first += window.tokens();
        }
        let want = self.settings.want;
        ctx.device
            .score(&self.hidden, model.head(), &self.targets, want, &mut self.scored);
        ctx.meter.lap(Phase::Head);
        if ctx.failure.is_some() {
            return Vec::new();
        }
        let shape = model.shape();
        let pass = Pass::of(ctx, step, shape.encoder_moe.len()..shape.moe_layers());
        let (mut first, mut scored) = (0, 0);
        let (mut finished, mut damaged) = (Vec::new(), None);
        for (i, (number, window)) in portion.iter().enumerate() {
            let Some(text) = &mut self.texts[*number] else { continue };
            if let Some(pass) = &pass {
                let trace = text.trace.get_or_insert_with(|| Trace {
                    credits_source: shape.encoder,
                    source: source_visits.get(i).cloned().unwrap_or_default(),
                    decoder: Visits::default(),
                });
                trace.decoder.add(pass, first..first + window.tokens());
            }
            first += window.tokens();
            for row in scored..scored + window.scored.len() {
                text.scores.add(&self.scored, row, want);
            }
            scored += window.scored.len();
            let before = text.scores.logprobs.len() - window.scored.len();
            if text.scores.logprobs[before..].iter().any(|p| p.is_nan()) {
                let why = anyhow::anyhow!(
                    "the logits of its tokens hold a NaN: the weights or the hidden states are damaged"
                );
                let key = text.request.key;
                damaged = damaged.or(Some(OfRow { key, why }.into()));
                continue;
            }
            text.left -= 1;
            if text.left == 0 {
                finished.extend(self.texts[*number].take().map(Text::finish));
            }
        }
        ctx.failure = damaged;
        finished
    }

    /// Rows for all that a portion reads.
    fn make_room(&mut self, portion: &[(usize, Window)]) {
        let own: usize = portion.iter().map(|(_, w)| w.tokens()).sum();
        let all: usize = portion.iter().map(|p| self.tokens_of(p)).sum();
        if own > self.rows[0] || all - own > self.rows[1] {
            let grown = [own.max(self.rows[0]), (all - own).max(self.rows[1])];
            self.rows = match grown[0] + grown[1] <= self.plan.most {
                true => grown,
                false => [own, all - own],
            };
            self.caches.replace(self.rows[0], self.rows[1]);
        }
    }

    /// Has the encoder read what a portion's texts are to follow; what its experts did for each.
    fn read_sources(
        &mut self,
        ctx: &mut Context,
        model: &mut dyn Model,
        step: u64,
        portion: &[(usize, Window)],
    ) -> Vec<Arc<Visits>> {
        if !model.shape().encoder {
            return Vec::new();
        }
        let mut first = 0;
        let mut sources = Vec::new();
        for (text, _) in portion {
            let ids = &text_of(&self.texts, *text).request.source[..];
            sources.push(SourceRow { ids, before: 0, first });
            first += ids.len();
        }
        model.read(ctx, &sources, &mut self.caches);
        let Some(pass) = Pass::of(ctx, step, 0..model.shape().encoder_moe.len()) else {
            return Vec::new();
        };
        let visits = |s: &SourceRow| {
            let mut visits = Visits::default();
            visits.add(&pass, s.first..s.first + s.ids.len());
            Arc::new(visits)
        };
        sources.iter().map(visits).collect()
    }
}

fn source_of(texts: &[Option<Text>], number: usize) -> &[u32] {
    texts[number].as_ref().map_or(&[], |t| &t.request.source)
}

fn text_of(texts: &[Option<Text>], number: usize) -> &Text {
    texts[number].as_ref().expect("a text with windows left is kept")
}

/// The rows of some windows, side by side in the cache.
fn rows_of<'a>(
    texts: &[Option<Text>],
    portion: &[(usize, Window)],
    prefix: Prefix,
    shape: &Shape,
) -> Vec<DecodeRow<'a>> {
    let (mut first, mut source) = (0, 0);
    let mut rows = Vec::new();
    for (text, window) in portion {
        let request = &text_of(texts, *text).request;
        let before = match prefix {
            Prefix::Token(token) if window.prefix => Some(token),
            _ => None,
        };
        let tokens = before
            .into_iter()
            .chain(request.ids[window.read.clone()].iter().copied());
        let mut position = 0;
        for (i, token) in tokens.enumerate() {
            rows.push(DecodeRow {
                token,
                position,
                row: first + i,
                keys: KeyRows::Range(first, i + 1),
                source: (source, request.source.len()),
            });
            position += (Some(token) != shape.unnumbered || i == 0) as usize;
        }
        first += window.tokens();
        source += request.source.len();
    }
    rows
}

impl Text {
    fn finish(self) -> Finished {
        Finished {
            key: self.request.key,
            ids: self.request.ids,
            scores: self.scores,
            trace: self.trace,
        }
    }
}

impl Scores {
    /// Bytes that the scores of a token take on their way into the file.
    pub fn bytes(want: Want) -> u64 {
        let rank = if want.ranks { size_of::<u32>() } else { 0 };
        COPIES * (size_of::<f32>() + rank + want.top * size_of::<(u32, f32)>()) as u64
    }

    fn add(&mut self, scored: &Scored, row: usize, want: Want) {
        self.logprobs.push(scored.log_probability(row));
        if want.ranks {
            self.ranks.extend(scored.rank(row).or(Some(0)));
        }
        if want.top > 0 {
            let log_sum = scored.log_sum(row);
            let best = scored.best(row).iter().map(|&(logit, token)| (token, logit - log_sum));
            self.top.extend(best);
        }
    }
}

impl Workload for Scorer {
    type Request = Request;
    type Finished = Finished;

    fn push(&mut self, request: Request) {
        let all = windows(request.ids.len(), self.settings.cut, self.settings.prefix);
        self.mean += 0.01 * (request.ids.len() as f64 - self.mean);
        let number = self.texts.iter().position(Option::is_none).unwrap_or(self.texts.len());
        let text = Text {
            request,
            left: all.clone().count(),
            scores: Scores::default(),
            trace: None,
        };
        if number == self.texts.len() {
            self.texts.push(None);
        }
        self.texts[number] = Some(text);
        let waiting: usize = all.clone().map(|window| self.tokens_of(&(number, window))).sum();
        self.waiting += waiting;
        self.queue.push_back((number, all));
    }

    fn wants(&self) -> u32 {
        let free = (PORTIONS * self.plan.portion).saturating_sub(self.waiting);
        let texts = (free as f64 / self.mean) as usize;
        texts.max((self.waiting == 0) as usize) as u32
    }

    fn waiting(&self) -> usize {
        self.waiting
    }

    fn active(&self) -> usize {
        0
    }

    fn budget(&self) -> usize {
        PORTIONS * self.plan.portion
    }

    fn portions(&self) -> Portions {
        Portions {
            tokens: self.plan.portion,
            most: PORTIONS,
            part: PART,
        }
    }

    fn read(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, calls: usize) -> Vec<Finished> {
        let mut finished = Vec::new();
        for left in (1..=calls).rev() {
            let next = self.next_run(left);
            finished.extend(self.read_portion(ctx, model, step, &next));
        }
        finished
    }

    fn step(&mut self, _: &mut Context, _: &mut dyn Model, _: u64) -> Vec<Finished> {
        Vec::new()
    }
}
