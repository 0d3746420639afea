//! Recorded traces through the policies, and the fewest loads that any policy could have had.

use super::policy::Planner;
use super::residency::{Eviction, Pass, Prefetch, Residency, Scope, Shelf, Visit};
use super::slots::{Slots, NONE};
use crate::moe::dispatch::Owners;

/// The visits of one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What the rank holds.
    pub shelf: Shelf,
    /// Pass, MoE layer, rows for each of the rank's experts of the layer.
    pub visits: Vec<(Pass, usize, Vec<u32>)>,
}

/// Experts needed and loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Experts that visits needed.
    pub accesses: u64,
    /// Experts loaded, ahead or not.
    pub loads: u64,
    /// Of them, those loaded ahead.
    pub ahead: u64,
}

impl Tally {
    /// Loads for each expert needed; those ahead count, whether they were used or not.
    pub fn misses(&self) -> f64 {
        self.loads as f64 / self.accesses.max(1) as f64
    }

    fn add(&mut self, other: &Tally) {
        self.accesses += other.accesses;
        self.loads += other.loads;
        self.ahead += other.ahead;
    }
}

/// What became of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// All layers together.
    pub total: Tally,
    /// Each MoE layer, `[layers]`. A load ahead counts for the layer it is for.
    pub by_layer: Vec<Tally>,
}

impl Replayed {
    fn of(by_layer: Vec<Tally>) -> Replayed {
        let mut total = Tally::default();
        by_layer.iter().for_each(|layer| total.add(layer));
        Replayed { total, by_layer }
    }
}

impl Trace {
    /// Cuts a group's trace into its ranks' traces. `visits`: pass, MoE layer, rows for each expert of the layer;
    /// `owners`: who holds the layer's experts, `[layers]`; `encode` and `decode` as in [`Shelf`].
    pub fn cut(visits: &[(Pass, usize, Vec<u32>)], owners: &[Owners], shelf: &Shelf) -> Vec<Trace> {
        let ranks = owners.first().map_or(0, |o| o.ranks);
        let cut = |rank: usize| {
            let mine = |o: &Owners| o.rank.iter().filter(|&&r| r as usize == rank).count();
            let shelf = Shelf {
                experts: owners.iter().map(mine).collect(),
                ..shelf.clone()
            };
            let local = |(pass, layer, rows): &(Pass, usize, Vec<u32>)| {
                let mut own = vec![0; shelf.experts[*layer]];
                for (e, &n) in rows.iter().enumerate() {
                    if owners[*layer].rank[e] as usize == rank {
                        own[owners[*layer].local[e] as usize] = n;
                    }
                }
                (*pass, *layer, own)
            };
            Trace {
                visits: visits.iter().map(local).collect(),
                shelf,
            }
        };
        (0..ranks).map(cut).collect()
    }
}

/// A trace under a policy. A trace has no gates' inputs: [`Prefetch::Gate`] counts as [`Prefetch::Trace`].
pub fn replay(
    trace: &Trace,
    slots: usize,
    eviction: Eviction,
    scope: Scope,
    prefetch: Prefetch,
    pin: usize,
) -> Replayed {
    let mut residency = Residency::new(trace.shelf.clone(), slots, eviction, scope, pin);
    let mut by_layer = vec![Tally::default(); trace.shelf.experts.len()];
    let mut visit = Visit::default();
    for (pass, layer, rows) in &trace.visits {
        residency.visit(*pass, *layer, rows, &mut visit);
        by_layer[*layer].accesses += visit.uses.len() as u64;
        by_layer[*layer].loads += visit.uses.iter().filter(|u| u.load.is_some()).count() as u64;
        if prefetch != Prefetch::Off {
            let next = residency.next(*pass, *layer);
            residency.ahead(next, None, false, &mut visit);
            by_layer[next.1].loads += visit.ahead.len() as u64;
            by_layer[next.1].ahead += visit.ahead.len() as u64;
        }
    }
    Replayed::of(by_layer)
}

/// Belady's MIN: the fewest loads of any policy that fetches nothing ahead, whatever the order in which it runs a visit's
/// experts. What is used again last makes room; within a visit, what is resident runs first.
pub fn minimum(trace: &Trace, slots: usize, scope: Scope) -> Replayed {
    let mut slots = Slots::new(&trace.shelf, slots, scope);
    let keys = |(_, layer, rows): &(Pass, usize, Vec<u32>)| -> Vec<u32> {
        let needed = rows.iter().enumerate().filter(|(_, &n)| n > 0);
        needed.map(|(e, _)| (slots.first[*layer] + e) as u32).collect()
    };
    let needed: Vec<Vec<u32>> = trace.visits.iter().map(keys).collect();
    // Backwards: the next use of each key after each visit that needs it. Of two that the same visit uses next, the one
    // that is missing then is loaded last and stays: so the one to make room is the one that is used sooner after that.
    let mut until = vec![f64::INFINITY; slots.place.len()];
    let mut after: Vec<Vec<f64>> = Vec::new();
    for (v, keys) in needed.iter().enumerate().rev() {
        after.push(keys.iter().map(|&key| until[key as usize]).collect());
        let mut latest = keys.clone();
        latest.sort_by(|&a, &b| until[b as usize].total_cmp(&until[a as usize]));
        for (rank, &key) in latest.iter().enumerate() {
            until[key as usize] = v as f64 + 0.5 * rank as f64 / keys.len() as f64;
        }
    }
    let mut by_layer = vec![Tally::default(); trace.shelf.experts.len()];
    let (mut planner, mut turns) = (Planner::default(), Vec::new());
    for ((_, layer, _), (keys, after)) in trace.visits.iter().zip(needed.iter().zip(after.iter().rev())) {
        for (&key, &next) in keys.iter().zip(after) {
            until[key as usize] = next;
        }
        turns.clear();
        slots.turn.fill(NONE);
        planner.resident_first(&mut slots, *layer, keys, 1, |key| until[key], &mut turns);
        by_layer[*layer].accesses += keys.len() as u64;
        by_layer[*layer].loads += turns.iter().filter(|u| u.load.is_some()).count() as u64;
    }
    Replayed::of(by_layer)
}
