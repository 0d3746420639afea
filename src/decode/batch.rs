//! The running batch of one rank: sentences are encoded once, decoded step by step side by side, and make room for
//! others as they end.

use super::candidates::{candidates, ruled_out, Candidate};
use super::limits::Limits;
use super::lockstep::portions;
use super::sample;
use super::search::{Bounds, Hypothesis, Search, Settings};
use super::slots::{Place, Slots};
use super::stop::Stops;
use super::trace::{Trace, Visit};
use crate::device::{KeyRows, Tops};
use crate::metrics::meter::Phase;
use crate::model::cache::{Caches, DecodeRow, SourceRow};
use crate::model::Model;
use crate::moe::Context;
use std::collections::VecDeque;
use std::ops::Range;
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
    /// Tokens it may come to at most, where that is less than for all ([`Settings::max_length`]).
    pub most: Option<usize>,
    /// Tokens before which it may not end, where that is more than for all ([`Settings::min_length`]).
    pub least: usize,
    /// Strings that end it.
    pub stops: Option<Arc<Stops>>,
    /// What its draws begin with, where that is not the job's ([`Sampling::seed`](super::sample::Sampling::seed)).
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

/// One output in the making.
struct Decoding {
    output: Output,
    search: Search,
    own: usize,
    /// Its source, by number.
    source: usize,
    trace: Option<Trace>,
}

/// Source rows that several outputs may share.
struct SourceInUse {
    rows: Range<usize>,
    /// The prompt without its last token, for a decoder-only model.
    prompt: Vec<u32>,
    users: usize,
}

/// Lists of different lengths, one behind the other.
struct Lists<T> {
    all: Vec<T>,
    ends: Vec<usize>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists {
            all: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl<T> Lists<T> {
    fn row(&self, row: usize) -> &[T] {
        let first = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.all[first..self.ends[row]]
    }

    fn clear(&mut self) {
        self.all.clear();
        self.ends.clear();
    }
}

/// What goes into the head and comes out of it in a step; the buffers keep their memory.
#[derive(Default)]
struct Head {
    /// Hidden states, `[rows, d_model]`.
    rows: Vec<f32>,
    /// Whose they are: number among the active outputs, hypothesis.
    wanted: Vec<(usize, usize)>,
    ruled_out: Lists<u32>,
    tops: Tops,
    offered: Lists<Candidate>,
}

impl Head {
    fn clear(&mut self) {
        self.rows.clear();
        self.wanted.clear();
        self.ruled_out.clear();
        self.offered.clear();
    }

    /// Asks for the candidates to follow `before` and `ids`, whose hidden state is `row`.
    fn want(
        &mut self,
        whose: (usize, usize),
        row: &[f32],
        settings: &Settings,
        bounds: &Bounds,
        [before, ids]: [&[u32]; 2],
    ) {
        self.wanted.push(whose);
        self.rows.extend_from_slice(row);
        ruled_out(settings, bounds, before, ids, &mut self.ruled_out.all);
        self.ruled_out.ends.push(self.ruled_out.all.len());
    }
}

/// What becomes of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reading {
    /// It is encoded, into the cross caches.
    Encoder,
    /// But for its last token, it goes into the cache of the decoder's own tokens, behind this row; the last token is
    /// the start of its outputs.
    Prompt(usize),
}

impl Reading {
    /// Tokens of a source that are read ahead of decoding.
    fn ahead(self, ids: &[u32]) -> &[u32] {
        match self {
            Reading::Encoder => ids,
            Reading::Prompt(_) => &ids[..ids.len().saturating_sub(1)],
        }
    }

    /// Where the rows of a span begin.
    fn first(self, span: &Range<usize>) -> usize {
        match self {
            Reading::Encoder => span.start,
            Reading::Prompt(behind) => behind + span.start,
        }
    }
}

/// The running batch.
pub struct Batch {
    settings: Settings,
    limits: Limits,
    /// Where sources lie.
    reading: Reading,
    /// Rows for sources that there are: the budget, or one longer source.
    capacity: usize,
    slots: Slots,
    caches: Caches,
    d_model: usize,
    /// Tokenized, without a place yet.
    queue: VecDeque<Request>,
    /// With a place, to be encoded.
    placed: Vec<(Request, Place)>,
    sources: Vec<SourceInUse>,
    active: Vec<Decoding>,
    /// Mean tokens of a sentence so far, to guess how many rows fill the room.
    mean: f64,
    head: Head,
    draws: sample::Room,
    text: Option<TextOf>,
}

impl Batch {
    /// An empty batch for a model.
    pub fn new(settings: Settings, limits: Limits, model: &dyn Model) -> Batch {
        let (shape, slot) = (model.shape(), settings.slot_rows());
        let own = limits.outputs * slot;
        let (reading, own_rows) = match shape.encoder {
            true => (Reading::Encoder, own),
            false => (Reading::Prompt(own), own + limits.tokens),
        };
        Batch {
            reading,
            slots: Slots::new(limits.outputs, slot, limits.tokens),
            caches: Caches::new(model.cache_type(), shape, own_rows, limits.tokens),
            d_model: shape.d_model,
            settings,
            capacity: limits.tokens,
            limits,
            queue: VecDeque::new(),
            placed: Vec::new(),
            sources: Vec::new(),
            active: Vec::new(),
            mean: 32.0,
            head: Head::default(),
            draws: sample::Room::default(),
            text: None,
        }
    }

    /// The same batch, for sources of about `mean` tokens.
    pub fn with_mean(self, mean: usize) -> Batch {
        Batch {
            mean: mean.max(1) as f64,
            ..self
        }
    }

    /// The same batch, for outputs with stop strings.
    pub fn with_text(self, text: TextOf) -> Batch {
        Batch {
            text: Some(text),
            ..self
        }
    }

    /// Takes a sentence on.
    pub fn push(&mut self, request: Request) {
        self.mean += 0.01 * (request.ids.len() as f64 - self.mean);
        self.queue.push_back(request);
        self.place();
    }

    /// Sentences to ask for: as many as the free room is likely to hold, none while some still wait for a place.
    pub fn wants(&self) -> u32 {
        if !self.queue.is_empty() {
            return 0;
        }
        let free = self.limits.tokens.saturating_sub(self.in_flight());
        let sentences = (self.slots.free() / self.limits.per_sentence).min((free as f64 / self.mean) as usize);
        sentences.max(self.is_idle() as usize) as u32
    }

    /// Source tokens of all sentences that have a place.
    fn in_flight(&self) -> usize {
        let encoded = self.sources.iter().filter(|s| s.users > 0).map(|s| s.rows.len());
        encoded.sum::<usize>() + self.waiting()
    }

    fn is_idle(&self) -> bool {
        self.active.is_empty() && self.placed.is_empty()
    }

    /// Source tokens that wait to be encoded.
    pub fn waiting(&self) -> usize {
        self.placed.iter().map(|(r, _)| r.ids.len()).sum()
    }

    /// Outputs being decoded.
    pub fn active(&self) -> usize {
        self.active.len()
    }

    /// The room for source tokens: the budget, or what the slots are likely to hold where they are the tighter bound.
    pub fn budget(&self) -> usize {
        let sentences = (self.limits.outputs / self.limits.per_sentence) as f64;
        self.limits.tokens.min((sentences * self.mean) as usize)
    }

    /// Gives places to queued sentences, in order, as far as there is room.
    fn place(&mut self) {
        while let Some(request) = self.queue.front() {
            let (tokens, outputs) = (self.reading.ahead(&request.ids).len(), request.outputs.len());
            if self.is_idle() {
                if tokens > self.capacity {
                    self.widen(tokens);
                }
            } else if self.in_flight() + tokens > self.limits.tokens {
                return;
            }
            let Some(place) = self.slots.take(tokens, outputs) else {
                return;
            };
            let request = self.queue.pop_front().expect("there is a front");
            self.placed.push((request, place));
        }
    }

    /// Room for a single source longer than the budget; nothing is in flight now.
    fn widen(&mut self, tokens: usize) {
        let slot = self.settings.slot_rows();
        self.capacity = tokens;
        self.slots = Slots::new(self.limits.outputs, slot, tokens);
        match self.reading {
            Reading::Encoder => self.caches.replace_cross(tokens),
            Reading::Prompt(behind) => self.caches.replace_own(behind + tokens),
        }
    }

    /// Encodes what waits, in `calls` portions of about as many tokens; collective, with nothing where nothing waits, as
    /// often on every rank. `step` numbers the group's steps.
    pub fn encode(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, calls: usize) {
        if calls == 0 {
            return;
        }
        let mut placed = std::mem::take(&mut self.placed);
        let lengths: Vec<usize> = placed.iter().map(|(r, _)| r.ids.len()).collect();
        for portion in portions(&lengths, calls) {
            let rest = placed.split_off(portion.len());
            self.encode_portion(ctx, model, step, placed);
            placed = rest;
        }
    }

    fn encode_portion(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, placed: Vec<(Request, Place)>) {
        let sources: Vec<SourceRow> = placed
            .iter()
            .map(|(r, p)| SourceRow {
                ids: self.reading.ahead(&r.ids),
                first: self.reading.first(&p.source),
            })
            .collect();
        model.read(ctx, &sources, &mut self.caches);
        let layers = match self.reading {
            Reading::Encoder => model.shape().encoder_moe.len(),
            Reading::Prompt(_) => model.shape().decoder_moe.len(),
        };
        let mut first = 0;
        for (mut request, place) in placed {
            let tokens = self.reading.ahead(&request.ids).len();
            let routes = ctx.routes.as_deref().filter(|_| ctx.failure.is_none());
            let visit = routes.map(|r| Visit::of(step, &r[..layers], first, tokens));
            first += tokens;
            let start = match self.reading {
                Reading::Encoder => None,
                Reading::Prompt(_) => request.ids.pop(),
            };
            let prompt = if start.is_some() { request.ids } else { Vec::new() };
            let source = self.add_source(place.source, prompt, request.outputs.len());
            for (output, own) in request.outputs.into_iter().zip(place.own) {
                let search = Search::new(&self.settings, self.bounds(&output, start));
                let credits_source = output.credits_source;
                let trace = visit.clone().map(|encoder| Trace {
                    credits_source,
                    encoder,
                    decoder: Vec::new(),
                });
                self.active.push(Decoding {
                    output,
                    search,
                    own,
                    source,
                    trace,
                });
            }
        }
    }

    /// Where an output begins and how long it may be.
    fn bounds(&self, output: &Output, start: Option<u32>) -> Bounds {
        let all = self.settings.bounds(output.forced);
        let max_length = output.most.map_or(all.max_length, |most| all.max_length.min(most + 1));
        Bounds {
            start: start.unwrap_or(all.start),
            max_length,
            min_length: all.min_length.max(output.least + 1).min(max_length),
            ..all
        }
    }

    fn add_source(&mut self, rows: Range<usize>, prompt: Vec<u32>, users: usize) -> usize {
        let source = SourceInUse { rows, prompt, users };
        match self.sources.iter().position(|s| s.users == 0) {
            Some(free) => {
                self.sources[free] = source;
                free
            }
            None => {
                self.sources.push(source);
                self.sources.len() - 1
            }
        }
    }

    /// Decodes every sentence one token further; collective, with nothing where there is nothing. Returns what ended.
    pub fn step(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64) -> Vec<Finished> {
        let beams = self.settings.beams;
        let tables = self.tables();
        let mut rows = Vec::new();
        let mut tables_left = tables.iter();
        for d in &self.active {
            let source = &self.sources[d.source].rows;
            let source = (self.reading.first(source), source.len());
            for r in 0..d.search.rows() {
                let ids = d.search.ids(r);
                let last = ids.len() - 1;
                let (position, keys) = match (self.reading, beams) {
                    (Reading::Encoder, 1) => (last, KeyRows::Range(d.own, ids.len())),
                    (Reading::Encoder, _) => (last, KeyRows::Table(tables_left.next().expect("a table a row"))),
                    (Reading::Prompt(_), 1) => {
                        let keys = KeyRows::Joined {
                            first: source.0,
                            count: source.1,
                            then: d.own,
                            more: ids.len(),
                        };
                        (source.1 + last, keys)
                    }
                    (Reading::Prompt(_), _) => {
                        let keys = KeyRows::Table(tables_left.next().expect("a table a row"));
                        (source.1 + last, keys)
                    }
                };
                rows.push(DecodeRow {
                    token: ids[last],
                    position,
                    row: d.own + last * beams + r,
                    keys,
                    source,
                });
            }
        }
        let hidden = model.decode(ctx, &rows, &mut self.caches);
        let (width, total) = (self.d_model, rows.len());
        // Rows whose next token is given need no logits.
        let mut at = 0;
        self.head.clear();
        for (i, d) in self.active.iter().enumerate() {
            for r in 0..d.search.rows() {
                if d.search.forced().is_none() {
                    let row = &hidden[at * width..(at + 1) * width];
                    self.head.want(
                        (i, r),
                        row,
                        &self.settings,
                        d.search.bounds(),
                        [&self.sources[d.source].prompt, d.search.ids(r)],
                    );
                }
                at += 1;
            }
        }
        debug_assert_eq!(at, total);
        self.offers(ctx, model);
        ctx.meter.lap(Phase::Head);
        if ctx.failure.is_some() {
            return Vec::new();
        }
        self.keep_routes(ctx, model, step);
        self.advance(ctx)
    }

    /// Cache rows of every hypothesis' tokens behind those of its prompt, the one about to be decoded last; none for greedy
    /// search, whose rows lie side by side.
    fn tables(&self) -> Vec<Vec<u32>> {
        let beams = self.settings.beams;
        if beams == 1 {
            return Vec::new();
        }
        let table = |d: &Decoding, r: usize| -> Vec<u32> {
            let prompt = match self.reading {
                Reading::Encoder => 0..0,
                Reading::Prompt(behind) => {
                    let rows = &self.sources[d.source].rows;
                    (behind + rows.start) as u32..(behind + rows.end) as u32
                }
            };
            let path = d.search.path(r).iter().copied().chain([r as u32]);
            let own = path.enumerate().map(|(i, row)| (d.own + i * beams) as u32 + row);
            prompt.chain(own).collect()
        };
        self.active
            .iter()
            .flat_map(|d| (0..d.search.rows()).map(move |r| table(d, r)))
            .collect()
    }

    /// Finds the candidates of each wanted row, in order.
    fn offers(&mut self, ctx: &mut Context, model: &dyn Model) {
        let head = &mut self.head;
        let (ruled_out, wanted) = (&head.ruled_out, &head.wanted);
        let drawn = self.settings.sampling.map(|sampling| {
            let place = |row: usize| {
                let (output, search) = (&self.active[wanted[row].0].output, &self.active[wanted[row].0].search);
                let position = search.ids(0).len() as u64;
                match output.seed {
                    Some(seed) => (seed, 0, position),
                    None => (sampling.seed, output.key, position),
                }
            };
            let from = (&head.rows[..], model.head());
            sampling.draw_rows(ctx.device, from, |row| ruled_out.row(row), place, &mut self.draws)
        });
        if drawn.is_none() {
            let k = self.settings.candidates();
            ctx.device
                .head(&head.rows, model.head(), k, |row| ruled_out.row(row), &mut head.tops);
        }
        for (i, &(d, r)) in head.wanted.iter().enumerate() {
            let decoding = &self.active[d];
            let (ids, offered) = (decoding.search.ids(r), &mut head.offered.all);
            let (log_sum, best) = match &drawn {
                Some(drawn) => (drawn[i].log_sum, std::slice::from_ref(&drawn[i].best)),
                None => (head.tops.log_sum(i), head.tops.best(i)),
            };
            let found = candidates(&self.settings, decoding.search.bounds(), ids, log_sum, best, offered);
            head.offered.ends.push(head.offered.all.len());
            let row = decoding.output.key / self.limits.per_sentence as u64;
            if let Err(error) = found {
                ctx.failure
                    .get_or_insert_with(|| error.context(format!("row {row} of the input, counted from 0")));
            }
        }
    }

    fn keep_routes(&mut self, ctx: &Context, model: &dyn Model, step: u64) {
        let Some(routes) = &ctx.routes else { return };
        let decoder = &routes[model.shape().encoder_moe.len()..];
        let mut first = 0;
        for d in &mut self.active {
            if let Some(trace) = &mut d.trace {
                trace.decoder.push(Visit::of(step, decoder, first, d.search.rows()));
            }
            first += d.search.rows();
        }
    }

    /// Lets every search choose, and clears away those that ended.
    fn advance(&mut self, ctx: &mut Context) -> Vec<Finished> {
        let mut next = 0;
        let mut finished = Vec::new();
        let mut still = Vec::with_capacity(self.active.len());
        for mut d in std::mem::take(&mut self.active) {
            let (text, stops) = (self.text.as_deref(), d.output.stops.as_deref());
            let mut stop = |ids: &[u32], next: u32| {
                let (Some(text), Some(stops)) = (text, stops) else {
                    return false;
                };
                stops.reached(ids, next, text).unwrap_or_else(|error| {
                    ctx.failure.get_or_insert(error);
                    false
                })
            };
            let ended = match d.search.forced() {
                Some(token) => {
                    let given = [Candidate { token, logprob: 0.0 }];
                    d.search.advance(&self.settings, &[&given], &mut stop)
                }
                None => {
                    let rows = next..next + d.search.rows();
                    next = rows.end;
                    let choices: Vec<&[Candidate]> = rows.map(|row| self.head.offered.row(row)).collect();
                    d.search.advance(&self.settings, &choices, &mut stop)
                }
            };
            match ended {
                None => still.push(d),
                Some(hypothesis) => {
                    self.slots.give_back_own(d.own);
                    let source = &mut self.sources[d.source];
                    source.users -= 1;
                    if source.users == 0 {
                        self.slots.give_back_source(source.rows.clone());
                    }
                    finished.push(Finished {
                        key: d.output.key,
                        hypothesis,
                        trace: d.trace,
                    });
                }
            }
        }
        self.active = still;
        self.place();
        finished
    }
}
