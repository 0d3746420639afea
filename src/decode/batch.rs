//! The running batch of one rank: sentences are encoded once, decoded step by step side by side, and make room for
//! others as they end.

use super::candidates::{candidates, ruled_out, Candidate};
use super::limits::Limits;
use super::lockstep::portions;
use super::search::{Hypothesis, Search, Settings};
use super::slots::{Place, Slots};
use super::trace::{Trace, Visit};
use crate::device::{KeyRows, Tops};
use crate::metrics::meter::Phase;
use crate::model::cache::{Caches, DecodeRow, SourceRow};
use crate::model::Model;
use crate::moe::Context;
use std::collections::VecDeque;
use std::ops::Range;

/// A sentence to translate, into one or several outputs.
#[derive(Clone, Debug)]
pub struct Request {
    /// Source tokens, specials included.
    pub ids: Vec<u32>,
    /// What is wanted of it.
    pub outputs: Vec<Output>,
}

/// An output of a sentence.
#[derive(Clone, Debug)]
pub struct Output {
    /// The caller's number for it.
    pub key: u64,
    /// First token of the output, if it is given (the target language).
    pub forced: Option<u32>,
    /// Whether the routes of the source are credited to this output.
    pub credits_source: bool,
}

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

    /// Asks for the candidates to follow `ids`, whose hidden state is `row`.
    fn want(&mut self, whose: (usize, usize), row: &[f32], settings: &Settings, ids: &[u32]) {
        self.wanted.push(whose);
        self.rows.extend_from_slice(row);
        ruled_out(settings, ids, &mut self.ruled_out.all);
        self.ruled_out.ends.push(self.ruled_out.all.len());
    }
}

/// The running batch.
pub struct Batch {
    settings: Settings,
    limits: Limits,
    /// Cross rows that there are: the budget, or one longer sentence.
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
}

impl Batch {
    /// An empty batch for a model.
    pub fn new(settings: Settings, limits: Limits, model: &dyn Model) -> Batch {
        let (shape, slot) = (model.shape(), settings.slot_rows());
        Batch {
            slots: Slots::new(limits.outputs, slot, limits.tokens),
            caches: Caches::new(model.cache_type(), shape, limits.outputs * slot, limits.tokens),
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
            let (tokens, outputs) = (request.ids.len(), request.outputs.len());
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

    /// Room for a single sentence longer than the budget; nothing is in flight now.
    fn widen(&mut self, tokens: usize) {
        let slot = self.settings.slot_rows();
        self.capacity = tokens;
        self.slots = Slots::new(self.limits.outputs, slot, tokens);
        self.caches.replace_cross(tokens);
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
                ids: &r.ids,
                first: p.source.start,
            })
            .collect();
        model.read(ctx, &sources, &mut self.caches);
        let layers = model.shape().encoder_moe.len();
        let mut first = 0;
        for (request, place) in placed {
            let tokens = request.ids.len();
            let routes = ctx.routes.as_deref().filter(|_| ctx.failure.is_none());
            let visit = routes.map(|r| Visit::of(step, &r[..layers], first, tokens));
            first += tokens;
            let source = self.add_source(place.source, request.outputs.len());
            for (output, own) in request.outputs.into_iter().zip(place.own) {
                let search = Search::new(&self.settings, output.forced);
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

    fn add_source(&mut self, rows: Range<usize>, users: usize) -> usize {
        let source = SourceInUse { rows, users };
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
            for r in 0..d.search.rows() {
                let ids = d.search.ids(r);
                let position = ids.len() - 1;
                let keys = match beams {
                    1 => KeyRows::Range(d.own, ids.len()),
                    _ => KeyRows::Table(tables_left.next().expect("a table a row")),
                };
                let row = d.own + position * beams + r;
                let source = (source.start, source.len());
                rows.push(DecodeRow {
                    token: ids[position],
                    position,
                    row,
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
                    self.head.want((i, r), row, &self.settings, d.search.ids(r));
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
        self.advance()
    }

    /// Cache rows of every hypothesis' tokens, the one about to be decoded last; none for greedy search, whose rows
    /// lie side by side.
    fn tables(&self) -> Vec<Vec<u32>> {
        let beams = self.settings.beams;
        if beams == 1 {
            return Vec::new();
        }
        let table = |d: &Decoding, r: usize| -> Vec<u32> {
            let path = d.search.path(r).iter().copied().chain([r as u32]);
            path.enumerate()
                .map(|(i, row)| (d.own + i * beams) as u32 + row)
                .collect()
        };
        self.active
            .iter()
            .flat_map(|d| (0..d.search.rows()).map(move |r| table(d, r)))
            .collect()
    }

    /// Finds the candidates of each wanted row, in order.
    fn offers(&mut self, ctx: &mut Context, model: &dyn Model) {
        let head = &mut self.head;
        let (k, ruled_out) = (self.settings.candidates(), &head.ruled_out);
        let tops = &mut head.tops;
        ctx.device
            .head(&head.rows, model.head(), k, |row| ruled_out.row(row), tops);
        for (i, &(d, r)) in head.wanted.iter().enumerate() {
            let decoding = &self.active[d];
            let (ids, offered) = (decoding.search.ids(r), &mut head.offered.all);
            let found = candidates(&self.settings, ids, tops.log_sum(i), tops.best(i), offered);
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
    fn advance(&mut self) -> Vec<Finished> {
        let mut next = 0;
        let mut finished = Vec::new();
        let mut still = Vec::with_capacity(self.active.len());
        for mut d in std::mem::take(&mut self.active) {
            let ended = match d.search.forced() {
                Some(token) => d
                    .search
                    .advance(&self.settings, &[&[Candidate { token, logprob: 0.0 }]]),
                None => {
                    let rows = next..next + d.search.rows();
                    next = rows.end;
                    let choices: Vec<&[Candidate]> = rows.map(|row| self.head.offered.row(row)).collect();
                    d.search.advance(&self.settings, &choices)
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
