//! Who makes room: a visit's turns and loads under each policy.

use super::residency::{Eviction, Use};
use super::slots::{Slots, NONE};
use std::cmp::Reverse;

/// Plans visits; its lists keep their memory from one to the next.
#[derive(Clone, Debug, Default)]
pub(super) struct Planner {
    /// Needed and in a slot.
    resident: Vec<u32>,
    /// Needed and not in a slot, with its next use after this visit.
    missing: Vec<(f64, u32)>,
    /// What could make room: next use after this visit, whether this visit needs it, slot.
    candidates: Vec<(f64, bool, u32)>,
    /// Slots that loads go into, in the order in which they become free.
    targets: Vec<u32>,
}

impl Planner {
    /// The paper's order (PAPER.md, section 2): ascending; whoever is missing makes one room when its turn comes. `keys`:
    /// the experts needed, ascending. `visits`: how many visits needed each key.
    #[allow(clippy::too_many_arguments)]
    pub fn ascending(
        &mut self,
        slots: &mut Slots,
        layer: usize,
        keys: &[u32],
        eviction: Eviction,
        pinned: &[bool],
        visits: &mut [u32],
        uses: &mut Vec<Use>,
    ) {
        let pool = slots.pools[layer].clone();
        for &key in keys {
            let key = key as usize;
            let load = (slots.place[key] == NONE).then(|| {
                let free = pool.clone().find(|&slot| slots.held[slot] == NONE);
                let slot = free.unwrap_or_else(|| {
                    let held = |slot: usize| slots.held[slot] as usize;
                    let others = pool.clone().filter(|&slot| !pinned[held(slot)]);
                    let first = |rank: &dyn Fn(usize) -> (u64, Reverse<u64>)| {
                        others.clone().min_by_key(|&slot| rank(slot)).unwrap_or(pool.start)
                    };
                    let last = Reverse;
                    match eviction {
                        Eviction::Lifo => {
                            first(&|slot| (u64::from(needs(slots, layer, keys, slot)), last(slots.loaded[slot])))
                        }
                        Eviction::PlainLifo => first(&|slot| (0, last(slots.loaded[slot]))),
                        Eviction::Fifo => first(&|slot| (slots.loaded[slot], last(0))),
                        Eviction::Lru => first(&|slot| (slots.used[slot], last(0))),
                        Eviction::Lfu | Eviction::Lookahead => {
                            let since = |slot: usize| u64::MAX - slots.loaded[slot];
                            first(&|slot| (u64::from(visits[held(slot)]), last(since(slot))))
                        }
                    }
                });
                slots.load(key, slot)
            });
            visits[key] += 1;
            slots.run(key, load, uses);
        }
    }

    /// Runs what is resident first, then what is missing. Which of them all are in slots afterwards is free, but that of
    /// those loaded the last must be: those stay whose next use, `until`, is soonest (in whatever unit; the sooner the
    /// smaller). Loads go round in the slots of those that leave, at least `churn` of them where it costs nothing, so that a
    /// load waits for a product as far back as possible; what leaves runs first, what stays is loaded last.
    pub fn resident_first(
        &mut self,
        slots: &mut Slots,
        layer: usize,
        keys: &[u32],
        churn: usize,
        until: impl Fn(usize) -> f64,
        uses: &mut Vec<Use>,
    ) {
        self.resident.clear();
        self.missing.clear();
        for &key in keys {
            match slots.place[key as usize] {
                NONE => self.missing.push((until(key as usize), key)),
                _ => self.resident.push(key),
            }
        }
        self.targets.clear();
        if !self.missing.is_empty() {
            self.missing
                .sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            self.choose(slots, layer, keys, churn, until);
        }
        let leaves = |key: &u32| self.targets.contains(&slots.place[*key as usize]);
        self.resident.sort_by_key(|key| !leaves(key));
        for &key in &self.resident {
            slots.run(key as usize, None, uses);
        }
        // What this visit does not need makes room at once, the rest in the order of its turns.
        self.targets
            .sort_by_key(|&slot| slots.turn[slot as usize].wrapping_add(1));
        for (i, &(_, key)) in self.missing.iter().enumerate() {
            let slot = self.targets[i % self.targets.len()] as usize;
            let load = slots.load(key as usize, slot);
            slots.run(key as usize, Some(load), uses);
        }
    }

    /// Chooses the slots that the missing experts are loaded into.
    fn choose(&mut self, slots: &Slots, layer: usize, keys: &[u32], churn: usize, until: impl Fn(usize) -> f64) {
        self.candidates.clear();
        for slot in slots.pools[layer].clone() {
            match slots.held[slot] {
                NONE => self.targets.push(slot as u32),
                key => {
                    let needed = needs(slots, layer, keys, slot);
                    self.candidates.push((until(key as usize), needed, slot as u32));
                }
            }
        }
        self.targets.truncate(self.missing.len());
        let latest =
            |a: &(f64, bool, u32), b: &(f64, bool, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.cmp(&b.2));
        self.candidates.sort_unstable_by(latest);
        for &(next, _, slot) in &self.candidates {
            let taken = self.targets.len();
            if taken == self.missing.len() {
                break;
            }
            // The one to stay beside those that have a slot already: the soonest are last in the list.
            let stays = self.missing[self.missing.len() - 1 - taken].0;
            if taken > 0 && (next < stays || (next == stays && taken >= churn)) {
                break;
            }
            self.targets.push(slot);
        }
    }
}

/// Whether a visit needs what a full slot holds.
fn needs(slots: &Slots, layer: usize, keys: &[u32], slot: usize) -> bool {
    let key = slots.held[slot];
    slots.layer[key as usize] as usize == layer && keys.binary_search(&key).is_ok()
}
