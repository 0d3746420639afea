//! The slots at work: what [`residency`](super::residency) plans is loaded and run.

use super::fetch::{Fetched, Fetcher, Job};
use super::residency::{Eviction, Load, Pass, Prefetch, Residency, Scope, Shelf, Use, Visit};
use super::source::{read_into, rooms, slot_bytes, ExpertSource};
use crate::comm::crash::fail_point;
use crate::metrics::meter::{Meter, Phase};
use crate::moe::layer::Expert;
use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Instant;

/// Experts that run as one product at least, so that its threads are worth waking, before a load is begun that waits for one
/// of them.
const WAVE: usize = 4;

/// Part of the time that is spent waiting from which on more is fetched ahead.
const WAITING: f64 = 0.05;

/// How a rank keeps its experts.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// Experts that fit into memory.
    pub slots: usize,
    /// Who makes room.
    pub eviction: Eviction,
    /// What is fetched early.
    pub prefetch: Prefetch,
    /// The busiest experts of each layer, so many, that stay.
    pub pin: usize,
    /// Threads that read.
    pub readers: usize,
}

impl Plan {
    /// Who may use which slots: the paper's policies know those of one layer only.
    pub fn scope(&self) -> Scope {
        match self.eviction {
            Eviction::Lookahead => Scope::Rank,
            _ => Scope::Layer,
        }
    }
}

/// What a buffer has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Experts that were needed, visit by visit.
    pub uses: u64,
    /// Of these, those that were in a slot or on their way to one.
    pub found: u64,
    /// Experts that were loaded.
    pub loads: u64,
    /// Of these, ahead of the visit that was to need them.
    pub ahead: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Time that reading took, on threads of its own.
    pub reading: f64,
    /// Time that nothing could be done but wait.
    pub waited: f64,
    /// Ways through the encoder (or of prompts), and loads on them.
    pub encode: [u64; 2],
    /// Ways through the decoder, and loads on them.
    pub decode: [u64; 2],
}

/// The experts of a rank, some of them in memory.
pub struct Buffer {
    plan: Plan,
    shelf: Shelf,
    residency: Residency,
    fetcher: Fetcher,
    /// Number of the rank's first expert among all of the model.
    first: usize,
    source: Arc<dyn ExpertSource>,
    slots: Vec<Slot>,
    visit: Visit,
    /// Turns of the visit that are over.
    over: Vec<bool>,
    /// Loads that are planned and not asked for yet.
    pending: Vec<Load>,
    fetched: Vec<Fetched>,
    tally: Tally,
    idling: Idling,
    /// It is of no use any more.
    broken: bool,
    failure: Option<anyhow::Error>,
}

/// The part of the time that was lately spent waiting.
struct Idling {
    /// When it was last asked, and what had been waited by then.
    last: (Instant, f64),
    /// Seconds and seconds waited, older ones counting less.
    lately: [f64; 2],
}

impl Default for Idling {
    fn default() -> Self {
        Idling {
            last: (Instant::now(), 0.0),
            lately: [0.0; 2],
        }
    }
}

impl Idling {
    /// The part, when `waited` seconds have been waited in all.
    fn of(&mut self, waited: f64) -> f64 {
        let now = Instant::now();
        let (then, before) = std::mem::replace(&mut self.last, (now, waited));
        let new = [(now - then).as_secs_f64(), (waited - before).max(0.0)];
        for (sum, new) in self.lately.iter_mut().zip(new) {
            *sum = 0.9 * *sum + new;
        }
        self.lately[1] / self.lately[0].max(1e-9)
    }
}

/// A place for an expert.
struct Slot {
    /// Nothing while it is read into.
    memory: Option<Expert>,
    /// Which load its content is of.
    generation: u32,
}

/// Whether the turns of a layer's visit have all been taken.
enum Turn {
    /// These may run now.
    Ready,
    /// The next one is still being read.
    Wait,
    /// All are over.
    Over,
}

fn named(layer: usize, expert: usize) -> String {
    format!("expert {expert} of MoE layer {layer}")
}

/// Whether a visit needs what a load brings.
fn wanted(visit: &Visit, load: &Load) -> bool {
    let of = |u: &Use| (u.slot, u.generation) == (load.slot, load.generation);
    visit.uses.iter().any(of)
}

impl Buffer {
    /// Slots for some of the experts `first..` of a rank, read from `source`.
    ///
    /// # Errors
    /// When memory or threads cannot be had.
    pub fn new(plan: Plan, shelf: Shelf, first: usize, source: Arc<dyn ExpertSource>) -> Result<Buffer> {
        let empty = |memory| Slot {
            memory: Some(memory),
            generation: 0,
        };
        let rooms = rooms(source.as_ref(), shelf.experts.len(), plan.slots)?;
        Ok(Buffer {
            residency: Residency::new(shelf.clone(), plan.slots, plan.eviction, plan.scope(), plan.pin),
            fetcher: Fetcher::start(&source, plan.readers)?,
            plan,
            shelf,
            first,
            source,
            slots: rooms.into_iter().map(empty).collect(),
            visit: Visit::default(),
            over: Vec::new(),
            pending: Vec::new(),
            fetched: Vec::new(),
            tally: Tally::default(),
            idling: Idling::default(),
            broken: false,
            failure: None,
        })
    }

    /// Fills the slots before the first visit, from a source of the same experts that may use all threads: there is nothing
    /// else for them to do.
    ///
    /// # Errors
    /// As [`ExpertSource::read`].
    pub fn fill(&mut self, from: &dyn ExpertSource) -> Result<()> {
        self.residency.fill(&mut self.visit);
        for load in self.visit.ahead.drain(..) {
            let slot = &mut self.slots[load.slot as usize];
            let (layer, expert) = (load.layer as usize, self.first + load.expert as usize);
            if let Some(memory) = &mut slot.memory {
                let read = fail_point("expert-read").and_then(|()| read_into(from, layer, expert, memory));
                read.with_context(|| named(layer, expert))?;
            }
            slot.generation = load.generation;
        }
        Ok(())
    }

    /// What it has done so far.
    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Experts that there are, on this rank.
    pub fn experts(&self) -> usize {
        self.shelf.experts.iter().sum()
    }

    /// Experts that it holds at most, and bytes of their memory.
    pub fn held(&self) -> (usize, u64) {
        let slot = slot_bytes(self.source.as_ref(), self.shelf.experts.len());
        (self.plan.slots, self.plan.slots as u64 * slot)
    }

    /// Bytes that reading takes besides the slots.
    pub fn staging(&self) -> u64 {
        self.plan.readers as u64 * self.source.staging()
    }

    /// Whether experts of the next layer are guessed from this layer's input.
    pub fn asks_gates(&self) -> bool {
        self.plan.prefetch == Prefetch::Gate
    }

    /// Plans a layer's visit and begins to load what it lacks. `rows` of each of the rank's experts, `[experts]`; `expected`,
    /// where they are guessed, those of the next layer's.
    pub fn begin(&mut self, pass: Pass, layer: usize, rows: &[u32], expected: Option<&[u32]>) {
        if self.broken {
            return;
        }
        self.settle();
        self.residency.visit(pass, layer, rows, &mut self.visit);
        if self.plan.prefetch != Prefetch::Off && self.plan.eviction == Eviction::Lookahead {
            let next = self.residency.next(pass, layer);
            // Converting takes the processor from the work, and more of it would be converted.
            let eager = self.source.staging() == 0 && self.idling.of(self.tally.waited) > WAITING;
            self.residency.ahead(next, expected, eager, &mut self.visit);
        }
        self.count(pass, layer);
        self.over.clear();
        self.over.resize(self.visit.uses.len(), false);
        let loads = self.visit.uses.iter().filter_map(|u| u.load);
        let loads = loads.chain(self.visit.ahead.iter().copied());
        // What earlier visits planned for these slots, has not begun and is not needed now either is given up.
        let taken = |old: &Load| loads.clone().any(|load| load.slot == old.slot);
        self.pending.retain(|old| wanted(&self.visit, old) || !taken(old));
        // What is needed now goes before what earlier visits planned ahead.
        self.pending.sort_by_key(|old| !wanted(&self.visit, old));
        let ahead = self.pending.partition_point(|old| wanted(&self.visit, old));
        self.pending
            .splice(ahead..ahead, self.visit.uses.iter().filter_map(|u| u.load));
        self.pending.extend(self.visit.ahead.iter().copied());
        self.ask();
    }

    fn count(&mut self, pass: Pass, layer: usize) {
        let (of, layers) = match pass {
            Pass::Encode => (&mut self.tally.encode, &self.shelf.encode),
            Pass::Decode => (&mut self.tally.decode, &self.shelf.decode),
        };
        of[0] += u64::from(layer == layers.start);
        let loads = self.visit.uses.iter().filter(|u| u.load.is_some()).count() as u64;
        let ahead = self.visit.ahead.len() as u64;
        of[1] += loads + ahead;
        self.tally.uses += self.visit.uses.len() as u64;
        self.tally.found += self.visit.uses.len() as u64 - loads;
        self.tally.loads += loads + ahead;
        self.tally.ahead += ahead;
    }

    /// Runs the visit that was begun: calls `compute` with experts that are in memory (numbers among the rank's of the layer)
    /// until each has had its turn, waiting where none is there.
    ///
    /// # Errors
    /// When an expert could not be read; the buffer is of no use then.
    pub fn run(&mut self, meter: &mut Meter, mut compute: impl FnMut(&mut Meter, &[(usize, &Expert)])) -> Result<()> {
        let mut wave = Vec::new();
        loop {
            self.settle();
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            if self.broken {
                return Ok(());
            }
            self.ask();
            match self.next(&mut wave) {
                Turn::Over => return Ok(()),
                Turn::Ready => {
                    let expert = |&turn: &usize| {
                        let of = &self.visit.uses[turn];
                        let memory = self.slots[of.slot as usize].memory.as_ref();
                        (of.expert as usize, memory.expect("a slot that is ready"))
                    };
                    let experts: Vec<(usize, &Expert)> = wave.iter().map(expert).collect();
                    compute(meter, &experts);
                    wave.iter().for_each(|&turn| self.over[turn] = true);
                }
                Turn::Wait => {
                    meter.lap(Phase::Experts);
                    self.fetcher.wait(&mut self.fetched);
                    if self.fetched.is_empty() {
                        self.broken = true;
                        bail!("the buffer of experts waits for what nobody reads: this is a mistake in the program");
                    }
                    self.tally.waited += meter.lap(Phase::Copies);
                }
            }
        }
    }

    /// The turns that come next among those whose experts are there.
    fn next(&self, wave: &mut Vec<usize>) -> Turn {
        wave.clear();
        let (mut left, mut awaited) = (false, false);
        for (turn, of) in self.visit.uses.iter().enumerate() {
            if self.over[turn] {
                continue;
            }
            left = true;
            let slot = &self.slots[of.slot as usize];
            if slot.memory.is_none() || slot.generation != of.generation {
                continue;
            }
            wave.push(turn);
            awaited |= self.pending.iter().any(|load| load.after == Some(turn as u32));
            if wave.len() >= WAVE && awaited {
                break;
            }
        }
        match (left, wave.is_empty()) {
            (false, _) => Turn::Over,
            (true, false) => Turn::Ready,
            (true, true) => Turn::Wait,
        }
    }

    /// Asks for the loads whose slots are free.
    fn ask(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        pending.retain_mut(|load| {
            if load.after.is_some_and(|turn| !self.over[turn as usize]) {
                return true;
            }
            // It may wait for its slot until the visit is over, whose turns mean nothing to the next one.
            load.after = None;
            let slot = &mut self.slots[load.slot as usize];
            let memory = slot.memory.take().or_else(|| {
                let cancelled = self.fetcher.cancel(load.slot)?;
                Some(cancelled.memory)
            });
            let Some(memory) = memory else { return true };
            slot.generation = load.generation;
            self.fetcher.request(Job {
                load: *load,
                expert: self.first + load.expert as usize,
                memory,
            });
            false
        });
        self.pending = pending;
        // Loads whose slots were taken until now may be asked for behind some that nobody needs yet.
        self.fetcher.hurry(|load| wanted(&self.visit, load));
    }

    /// Puts what has been read into its slots.
    fn settle(&mut self) {
        self.fetcher.collect(&mut self.fetched);
        for fetched in self.fetched.drain(..) {
            let load = fetched.load;
            self.slots[load.slot as usize].memory = Some(fetched.memory);
            self.tally.reading += fetched.seconds;
            match fetched.result {
                Ok(bytes) => self.tally.bytes += bytes,
                Err(error) => {
                    self.broken = true;
                    let (layer, expert) = (load.layer as usize, self.first + load.expert as usize);
                    self.failure.get_or_insert(error.context(named(layer, expert)));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
