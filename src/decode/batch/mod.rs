//! The running batch of one rank: sentences are encoded once, decoded step by step side by side, and make room for
//! others as they end.

mod head;
mod places;
mod request;

use super::candidates::Candidate;
use super::limits::Limits;
use super::lockstep::Portions;
use super::reading::Reading;
use super::search::{Bounds, Search, Settings};
use super::trace::{Pass, Trace, Visits};
use super::workload::OfRow;
use crate::device::KeyRows;
use crate::metrics::meter::Phase;
use crate::model::cache::DecodeRow;
use crate::model::Model;
use crate::moe::Context;
use head::Head;
use places::{Placed, Places};
pub use request::{Finished, Output, Request, TextOf};
use std::sync::Arc;

/// Portions of prompts that are read in a step at most.
const PROMPT_PORTIONS: usize = 16;

/// One output in the making.
struct Decoding {
    output: Output,
    search: Search,
    own: usize,
    /// Its source, by number.
    source: usize,
    trace: Option<Trace>,
}

/// The running batch.
pub struct Batch {
    settings: Settings,
    limits: Limits,
    places: Places,
    active: Vec<Decoding>,
    d_model: usize,
    /// Mean tokens of a sentence so far, to guess how many rows fill the room.
    mean: f64,
    head: Head,
    text: Option<TextOf>,
}

impl Batch {
    /// An empty batch for a model.
    pub fn new(settings: Settings, limits: Limits, model: &dyn Model) -> Batch {
        Batch {
            places: Places::new(&settings, limits, model),
            d_model: model.shape().d_model,
            settings,
            limits,
            active: Vec::new(),
            mean: 32.0,
            head: Head::default(),
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
        self.places.push(request);
    }

    /// Sentences to ask for: as many as the free room is likely to hold, none while some still wait for a place.
    pub fn wants(&self) -> u32 {
        if self.places.full() {
            return 0;
        }
        let free = self.limits.tokens.saturating_sub(self.places.in_flight());
        let slots = self.places.free_slots() / self.limits.per_sentence;
        let sentences = slots.min((free as f64 / self.mean) as usize);
        sentences.max(self.places.is_idle() as usize) as u32
    }

    /// Source tokens that wait: to be read, or, a prompt's last, to be decoded behind those.
    pub fn waiting(&self) -> usize {
        self.places.waiting()
    }

    /// How much it takes on at once.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Bytes of its caches.
    #[cfg(test)]
    pub fn cache_bytes(&self) -> u64 {
        self.places.caches.bytes()
    }

    /// How it reads what waits. An encoder reads all of it in a step; of prompts only so much that a step ends soon.
    pub fn portions(&self) -> Portions {
        Portions {
            tokens: self.limits.portion,
            part: self.limits.part,
            most: match self.places.reading {
                Reading::Encoder => usize::MAX,
                Reading::Prompt(_) => PROMPT_PORTIONS,
            },
        }
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

    /// Reads what waits, or the first of it, in `calls` portions; collective, with nothing where nothing waits, as often on
    /// every rank. `step` numbers the group's steps.
    pub fn encode(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, calls: usize) {
        let most = self.places.all_unread().min(calls.saturating_mul(self.limits.portion));
        for _ in 0..calls {
            let read = self.places.read(ctx, model, step, most.div_ceil(calls));
            let traced = ctx.routes.is_some();
            read.into_iter().for_each(|placed| self.activate(placed, traced));
        }
    }

    /// Has decoding begin behind a source that is read.
    fn activate(&mut self, placed: Placed, traced: bool) {
        let Placed {
            mut request,
            place,
            visits,
            ..
        } = placed;
        let start = match self.places.reading {
            Reading::Encoder => None,
            Reading::Prompt(_) => request.ids.pop(),
        };
        let prompt = if start.is_some() { request.ids } else { Vec::new() };
        let source = self.places.hold(place.source, prompt, request.outputs.len());
        let visits = Arc::new(visits);
        for (output, own) in request.outputs.into_iter().zip(place.own) {
            let search = Search::new(&self.settings, self.bounds(&output, start));
            let trace = traced.then(|| Trace {
                credits_source: output.credits_source,
                source: visits.clone(),
                decoder: Visits::default(),
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

    /// Decodes every sentence one token further; collective, with nothing where there is nothing. Returns what ended.
    pub fn step(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64) -> Vec<Finished> {
        let (beams, reading) = (self.settings.beams, self.places.reading);
        let tables = self.tables();
        let mut rows = Vec::new();
        let mut tables_left = tables.iter();
        for d in &self.active {
            let source = self.places.rows(d.source);
            for r in 0..d.search.rows() {
                let ids = d.search.ids(r);
                let last = ids.len() - 1;
                let (position, keys) = match (reading, beams) {
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
        let hidden = model.decode(ctx, &rows, &mut self.places.caches);
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
                        [&self.places.source(d.source).prompt, d.search.ids(r)],
                    );
                }
                at += 1;
            }
        }
        debug_assert_eq!(at, total);
        self.head.offer(ctx, model, &self.settings, &self.active);
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
            let prompt = match self.places.reading {
                Reading::Encoder => 0..0,
                Reading::Prompt(_) => {
                    let (first, count) = self.places.rows(d.source);
                    first as u32..(first + count) as u32
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

    fn keep_routes(&mut self, ctx: &Context, model: &dyn Model, step: u64) {
        let shape = model.shape();
        let Some(pass) = Pass::of(ctx, step, shape.encoder_moe.len()..shape.moe_layers()) else {
            return;
        };
        let mut first = 0;
        for d in &mut self.active {
            let rows = first..first + d.search.rows();
            first = rows.end;
            if let Some(trace) = &mut d.trace {
                trace.decoder.add(&pass, rows);
            }
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
                stops.reached(ids, next, text).unwrap_or_else(|why| {
                    let key = d.output.key;
                    ctx.failure.get_or_insert_with(|| OfRow { key, why }.into());
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
                    let choices: Vec<&[Candidate]> = rows.map(|row| self.head.offered(row)).collect();
                    d.search.advance(&self.settings, &choices, &mut stop)
                }
            };
            match ended {
                None => still.push(d),
                Some(hypothesis) => {
                    self.places.give_back(d.own, d.source);
                    finished.push(Finished {
                        key: d.output.key,
                        hypothesis,
                        trace: d.trace,
                    });
                }
            }
        }
        self.active = still;
        self.places.place();
        finished
    }
}
