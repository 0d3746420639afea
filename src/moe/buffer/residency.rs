//! Which experts are in which slots, visit by visit. Pure: a recorded trace is replayed through the same code as a run.

use super::forecast::Forecast;
use super::policy::Planner;
use super::slots::{Slots, NONE};
use std::ops::Range;

/// Which way tokens go through the layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Sources through the encoder, or prompts through a decoder-only model.
    Encode,
    /// Tokens through the decoder: a step of decoding, or a portion of texts that are scored.
    Decode,
}

/// What there is to keep: the experts of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Shelf {
    /// Experts of this rank in each MoE layer, encoder first, `[layers]`.
    pub experts: Vec<usize>,
    /// MoE layers that an [`Pass::Encode`] goes through, in order.
    pub encode: Range<usize>,
    /// MoE layers that a [`Pass::Decode`] goes through, in order.
    pub decode: Range<usize>,
}

/// How many slots more than the one in use a run of loads should go round in, so that one is filled while another computes.
const CHURN: usize = 2;

/// What may be fetched ahead at a time, so that a wrong guess turns little over.
const WINDOW: usize = 4;

/// Part of the way to an expert's use after the coming one that makes room for it when the disk would idle.
const EAGER: f64 = 0.5;

/// How likely a use must be to fetch for it ahead.
const LIKELY: f64 = 0.8;

/// Who may use which slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Each layer has slots of its own, an equal share (the first ones one more where it does not come out even), as in
    /// the paper.
    Layer,
    /// All layers of the rank share all slots.
    Rank,
}

impl Scope {
    /// The fewest slots that will do.
    pub fn least(self, shelf: &Shelf) -> usize {
        let layers = shelf.experts.iter().filter(|&&n| n > 0).count();
        match self {
            Scope::Layer => layers,
            Scope::Rank => layers.min(1),
        }
    }
}

/// Who makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Eviction {
    /// The paper's: first an expert that this visit does not need, else the one loaded last.
    Lifo,
    /// The one loaded last, needed or not.
    PlainLifo,
    /// The one loaded first.
    Fifo,
    /// The one not used for longest.
    Lru,
    /// The one used in the fewest visits.
    Lfu,
    /// The one whose next use is expected latest: resident experts run first, and what is known of the schedule and of each
    /// expert's activity tells when a use is to be expected.
    Lookahead,
}

impl Eviction {
    /// All of them.
    pub const ALL: [Eviction; 6] = [
        Eviction::Lifo,
        Eviction::PlainLifo,
        Eviction::Fifo,
        Eviction::Lru,
        Eviction::Lfu,
        Eviction::Lookahead,
    ];
}

/// What is fetched before it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Prefetch {
    /// Nothing.
    Off,
    /// What the next layer is likely to need, by what it needed before.
    Trace,
    /// What the next layer's gate chooses on this layer's input.
    Gate,
}

/// One expert's turn in a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Among the rank's experts of the layer.
    pub expert: u32,
    /// Where it is, or will be when its load is done.
    pub slot: u32,
    /// Which content of the slot is meant: counts the loads into it.
    pub generation: u32,
    /// How it gets there, if it is not there (or on its way) already.
    pub load: Option<Load>,
}

/// A load into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// MoE layer.
    pub layer: u32,
    /// Among the rank's experts of the layer.
    pub expert: u32,
    /// Slot.
    pub slot: u32,
    /// What the slot's content will count as.
    pub generation: u32,
    /// The turn (index into [`Visit::uses`]) that must be over before the slot may be written to; none: at once.
    pub after: Option<u32>,
}

/// What one layer's visit does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Visit {
    /// Every expert with rows, once, in the order in which they run. Loads are started in this order too.
    pub uses: Vec<Use>,
    /// Loads for visits to come, started after those of `uses`.
    pub ahead: Vec<Load>,
}

/// The slots of one rank from visit to visit. The same visits give the same plans, on every machine.
#[derive(Clone, Debug)]
pub struct Residency {
    shelf: Shelf,
    eviction: Eviction,
    /// Experts of each layer that never make room: as many of `pin` as leave [`CHURN`] slots to the others.
    pins: Vec<usize>,
    slots: Slots,
    forecast: Forecast,
    planner: Planner,
    /// Rows of each key so far.
    rows: Vec<u64>,
    /// Visits that needed each key.
    visits: Vec<u32>,
    pinned: Vec<bool>,
    /// Keys that a visit needs or that are worth fetching.
    keys: Vec<u32>,
}

impl Residency {
    /// Nothing is in a slot yet. `slots`: of all layers together ([`Residency::slots`] is at least [`Scope::least`] and at
    /// most the experts there are). `pin`: experts of each layer, those with the most rows so far, that make no room for
    /// others where enough slots remain.
    pub fn new(shelf: Shelf, slots: usize, eviction: Eviction, scope: Scope, pin: usize) -> Residency {
        let slots = Slots::new(&shelf, slots, scope);
        let layers = shelf.experts.len();
        let pins = (0..layers).map(|l| match scope {
            Scope::Layer => pin.min(slots.pools[l].len().saturating_sub(CHURN)),
            Scope::Rank => pin.min(slots.pools[l].len().saturating_sub(CHURN) / layers),
        });
        let keys = slots.place.len();
        Residency {
            pins: pins.collect(),
            forecast: Forecast::new(&shelf),
            shelf,
            planner: Planner::default(),
            rows: vec![0; keys],
            visits: vec![0; keys],
            pinned: vec![false; keys],
            keys: Vec::new(),
            eviction,
            slots,
        }
    }

    /// Loads for empty slots before the first visit: the first experts of every layer, those layers first that tokens go
    /// through first.
    pub fn fill(&mut self, out: &mut Visit) {
        out.uses.clear();
        out.ahead.clear();
        let (encode, decode) = (self.shelf.encode.clone(), self.shelf.decode.clone());
        let decode = decode.filter(|l| !encode.contains(l)).collect::<Vec<_>>();
        let most = self.shelf.experts.iter().copied().max().unwrap_or(0);
        for stack in [encode.collect(), decode] {
            for (expert, &layer) in (0..most).flat_map(|e| stack.iter().map(move |l| (e, l))) {
                let pool = self.slots.pools[layer].clone();
                let empty = pool.clone().find(|&slot| self.slots.held[slot] == NONE);
                if let (Some(slot), true) = (empty, expert < self.shelf.experts[layer]) {
                    out.ahead.push(self.slots.load(self.slots.first[layer] + expert, slot));
                }
            }
        }
    }

    /// Plans a layer's visit. `rows`: tokens for each of the rank's experts of the layer.
    pub fn visit(&mut self, pass: Pass, layer: usize, rows: &[u32], out: &mut Visit) {
        out.uses.clear();
        out.ahead.clear();
        let first = self.slots.first[layer];
        self.keys.clear();
        let needed = rows.iter().enumerate().filter(|(_, &n)| n > 0);
        self.keys.extend(needed.map(|(e, _)| (first + e) as u32));
        for (sum, &n) in self.rows[first..].iter_mut().zip(rows) {
            *sum += u64::from(n);
        }
        self.pin(layer);
        self.forecast.visit(pass, layer, rows);
        self.slots.turn.fill(NONE);
        let (keys, pinned) = (&self.keys, &self.pinned);
        match self.eviction {
            Eviction::Lookahead => {
                let forecast = &self.forecast;
                let until = |key: usize| {
                    if pinned[key] {
                        0.0
                    } else {
                        forecast.until(key)
                    }
                };
                self.planner
                    .resident_first(&mut self.slots, layer, keys, CHURN, until, &mut out.uses);
            }
            eviction => self.planner.ascending(
                &mut self.slots,
                layer,
                keys,
                eviction,
                pinned,
                &mut self.visits,
                &mut out.uses,
            ),
        }
    }

    /// Adds what is worth loading for the visit to come, `next`, beside the one just planned into `out`. `expected`: rows
    /// that the layer's gate gives each expert on what is known of its input; none: what the layer needed before tells.
    /// An expert is fetched only if it is likely to be used and something can make room that is needed later: later than the
    /// expert's use after the coming one, so that no more is loaded in all; or, where that is worth it (`eager`: the rank
    /// waits for its disk, which idles meanwhile), later than half as far, and more of them.
    pub fn ahead(&mut self, next: (Pass, usize), expected: Option<&[u32]>, eager: bool, out: &mut Visit) {
        let (_, layer) = next;
        let (first, end) = (self.slots.first[layer], self.slots.first[layer + 1]);
        let pool = self.slots.pools[layer].clone();
        let (slots, forecast, pinned) = (&mut self.slots, &self.forecast, &self.pinned);
        let likely = |key: usize| match expected {
            Some(rows) => f64::from(rows[key - first].min(1)),
            None => forecast.at(next, key).0,
        };
        let wanted = |key: usize| (first..end).contains(&key) && likely(key) >= LIKELY;
        self.keys.clear();
        let missing = (first..end).filter(|&key| slots.place[key] == NONE && wanted(key));
        self.keys.extend(missing.map(|key| key as u32));
        let chance = |key: u32| (likely(key as usize), forecast.at(next, key as usize).0);
        self.keys.sort_unstable_by(|&a, &b| {
            let ((a1, a2), (b1, b2)) = (chance(a), chance(b));
            b1.total_cmp(&a1).then(b2.total_cmp(&a2)).then(a.cmp(&b))
        });
        self.keys.truncate(match eager {
            true => (pool.len() / 3).max(1),
            false => WINDOW.min(pool.len().div_ceil(8)),
        });
        for &key in &self.keys {
            let victim = pool.clone().filter_map(|slot| match slots.held[slot] {
                NONE => Some((f64::INFINITY, slot)),
                held if pinned[held as usize] || wanted(held as usize) => None,
                held => Some((forecast.until(held as usize), slot)),
            });
            let latest = victim.max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
            let again = 1.0 + forecast.at(next, key as usize).1;
            match latest {
                Some((until, slot)) if until > again * if eager { EAGER } else { 1.0 } => {
                    out.ahead.push(slots.load(key as usize, slot))
                }
                _ => break,
            }
        }
    }

    /// The visit that most likely follows.
    pub fn next(&self, pass: Pass, layer: usize) -> (Pass, usize) {
        self.forecast.next(pass, layer)
    }

    /// Slots of all layers together.
    pub fn slots(&self) -> usize {
        self.slots.held.len()
    }

    /// Layer and expert (among the rank's of the layer) in each slot, or on its way there, `[slots]`.
    pub fn resident(&self) -> impl Iterator<Item = Option<(usize, usize)>> + '_ {
        let place = |&key: &u32| {
            (key != NONE).then(|| {
                let layer = self.slots.layer[key as usize] as usize;
                (layer, key as usize - self.slots.first[layer])
            })
        };
        self.slots.held.iter().map(place)
    }

    /// Chooses the layer's experts that make no room.
    fn pin(&mut self, layer: usize) {
        if self.pins[layer] == 0 {
            return;
        }
        let keys = self.slots.first[layer]..self.slots.first[layer + 1];
        self.pinned[keys.clone()].fill(false);
        for _ in 0..self.pins[layer] {
            let free = keys.clone().filter(|&key| !self.pinned[key] && self.rows[key] > 0);
            if let Some(most) = free.max_by_key(|&key| (self.rows[key], std::cmp::Reverse(key))) {
                self.pinned[most] = true;
            }
        }
    }
}
