//! Where sources and outputs lie, and which sources wait.

use super::request::Request;
use crate::decode::limits::Limits;
use crate::decode::reading::Reading;
use crate::decode::search::Settings;
use crate::decode::slots::{Place, Slots};
use crate::decode::trace::{Pass, Visits};
use crate::model::cache::{Caches, SourceRow};
use crate::model::Model;
use crate::moe::Context;
use std::collections::VecDeque;
use std::ops::Range;

/// Rows of the caches, handed out to sources in the order in which they come.
pub(super) struct Places {
    pub caches: Caches,
    /// Where sources lie.
    pub reading: Reading,
    limits: Limits,
    /// Rows of an output's slot.
    slot: usize,
    /// Rows for sources that there are: the budget, or one longer source.
    capacity: usize,
    slots: Slots,
    /// Tokenized, without a place yet.
    queue: VecDeque<Request>,
    /// With a place, to be read; of the first one a part may be.
    placed: VecDeque<Placed>,
    in_use: Vec<SourceInUse>,
}

/// A source with a place, to be read.
pub(super) struct Placed {
    pub request: Request,
    pub place: Place,
    /// Tokens of it that are in the caches.
    read: usize,
    pub visits: Visits,
}

/// Source rows that several outputs may share.
pub(super) struct SourceInUse {
    pub rows: Range<usize>,
    /// The prompt without its last token, for a decoder-only model.
    pub prompt: Vec<u32>,
    users: usize,
}

impl Places {
    /// Room for what a model works on at once, nothing of which is taken.
    pub fn new(settings: &Settings, limits: Limits, model: &dyn Model) -> Places {
        let (shape, slot) = (model.shape(), settings.slot_rows());
        let own = limits.outputs * slot;
        let (reading, own_rows) = match shape.encoder {
            true => (Reading::Encoder, own),
            false => (Reading::Prompt(own), own + limits.tokens),
        };
        Places {
            caches: Caches::new(model.cache_type(), shape, own_rows, limits.tokens),
            reading,
            limits,
            slot,
            capacity: limits.tokens,
            slots: Slots::new(limits.outputs, slot, limits.tokens),
            queue: VecDeque::new(),
            placed: VecDeque::new(),
            in_use: Vec::new(),
        }
    }

    /// Takes a source on, which has a place at once if there is room.
    pub fn push(&mut self, request: Request) {
        self.queue.push_back(request);
        self.place();
    }

    /// Whether sources wait for a place.
    pub fn full(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Whether no source has a place.
    pub fn is_idle(&self) -> bool {
        self.placed.is_empty() && self.in_use.iter().all(|s| s.users == 0)
    }

    /// Outputs that there are slots for.
    pub fn free_slots(&self) -> usize {
        self.slots.free()
    }

    /// Source tokens of all sentences that have a place.
    pub fn in_flight(&self) -> usize {
        let encoded = self.in_use.iter().filter(|s| s.users > 0).map(|s| s.rows.len());
        encoded.sum::<usize>() + self.placed.iter().map(|p| p.place.source.len()).sum::<usize>()
    }

    /// Source tokens that wait: to be read, or, a prompt's last, to be decoded behind those.
    pub fn waiting(&self) -> usize {
        self.placed.iter().map(|p| p.request.ids.len() - p.read).sum()
    }

    /// Tokens of a placed source that are still to be read ahead of decoding.
    fn unread(&self, placed: &Placed) -> usize {
        self.reading.ahead(&placed.request.ids).len() - placed.read
    }

    /// Tokens of all placed sources that are to be read.
    pub fn all_unread(&self) -> usize {
        self.placed.iter().map(|p| self.unread(p)).sum()
    }

    /// Gives places to queued sentences, in order, as far as there is room.
    pub fn place(&mut self) {
        while let Some(request) = self.queue.front() {
            let (tokens, outputs) = (self.reading.ahead(&request.ids).len(), request.outputs.len());
            if self.is_idle() {
                self.make_room(tokens);
            } else if self.in_flight() + tokens > self.limits.tokens {
                return;
            }
            let Some(place) = self.slots.take(tokens, outputs) else {
                return;
            };
            let request = self.queue.pop_front().expect("there is a front");
            self.placed.push_back(Placed {
                request,
                place,
                read: 0,
                visits: Visits::default(),
            });
        }
    }

    /// Room for the budget of source tokens, or for a single longer source; nothing is in flight now. What the caches held
    /// is given back to the system, so that a long source doesn't come on top of the outputs before it, nor they after it.
    fn make_room(&mut self, tokens: usize) {
        let capacity = tokens.max(self.limits.tokens);
        if capacity == self.capacity {
            return;
        }
        // A source beyond the budget is alone until it ends, and memory is counted on for its own outputs only.
        let outputs = match capacity > self.limits.tokens {
            true => self.limits.per_sentence,
            false => self.limits.outputs,
        };
        let own = outputs * self.slot;
        self.capacity = capacity;
        self.slots = Slots::new(outputs, self.slot, capacity);
        match &mut self.reading {
            Reading::Encoder => self.caches.replace(own, capacity),
            Reading::Prompt(behind) => {
                *behind = own;
                self.caches.replace(own + capacity, 0);
            }
        }
    }

    /// Reads about `most` tokens of the first sources that wait, in one go; those that are read to their end.
    pub fn read(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, most: usize) -> Vec<Placed> {
        let reading = self.reading;
        let parts = reading.portion(self.placed.iter().map(|p| self.unread(p)), most);
        let sources: Vec<SourceRow> = self
            .placed
            .iter()
            .zip(&parts)
            .map(|(p, &tokens)| SourceRow {
                ids: &p.request.ids[p.read..p.read + tokens],
                before: p.read,
                first: reading.first(&p.place.source),
            })
            .collect();
        model.read(ctx, &sources, &mut self.caches);
        let layers = match reading {
            Reading::Encoder => model.shape().encoder_moe.len(),
            Reading::Prompt(_) => model.shape().decoder_moe.len(),
        };
        let pass = Pass::of(ctx, step, 0..layers);
        let mut first = 0;
        for (placed, tokens) in self.placed.iter_mut().zip(parts) {
            if let Some(pass) = &pass {
                placed.visits.add(pass, first..first + tokens);
            }
            placed.read += tokens;
            first += tokens;
        }
        let read = self.placed.iter().take_while(|p| self.unread(p) == 0).count();
        self.placed.drain(..read).collect()
    }

    /// Keeps a source's rows for `users` outputs; its number.
    pub fn hold(&mut self, rows: Range<usize>, prompt: Vec<u32>, users: usize) -> usize {
        let source = SourceInUse { rows, prompt, users };
        match self.in_use.iter().position(|s| s.users == 0) {
            Some(free) => {
                self.in_use[free] = source;
                free
            }
            None => {
                self.in_use.push(source);
                self.in_use.len() - 1
            }
        }
    }

    /// A source that is held.
    pub fn source(&self, number: usize) -> &SourceInUse {
        &self.in_use[number]
    }

    /// First row in its cache and number of rows of a source that is held.
    pub fn rows(&self, number: usize) -> (usize, usize) {
        let rows = &self.in_use[number].rows;
        (self.reading.first(rows), rows.len())
    }

    /// Gives back the slot of an output that begins at row `own`, and, with its last output, the source.
    pub fn give_back(&mut self, own: usize, source: usize) {
        self.slots.give_back_own(own);
        let source = &mut self.in_use[source];
        source.users -= 1;
        if source.users == 0 {
            self.slots.give_back_source(source.rows.clone());
        }
    }
}
