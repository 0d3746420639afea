//! The ledger of slots: which expert is where, since when, and until which turn of the visit in hand.

use super::residency::{Load, Scope, Shelf, Use};
use std::ops::Range;

/// No slot, no expert, no turn.
pub(super) const NONE: u32 = u32::MAX;

/// Slots and what is in them. An expert has a key: its place among all of the rank, layer by layer.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Key of each layer's first expert, then the number of keys, `[layers + 1]`.
    pub first: Vec<usize>,
    /// Layer of each key.
    pub layer: Vec<u32>,
    /// Slots that each layer may use, `[layers]`.
    pub pools: Vec<Range<usize>>,
    /// Slot of each key, or [`NONE`].
    pub place: Vec<u32>,
    /// Key in each slot, or [`NONE`].
    pub held: Vec<u32>,
    /// Loads into each slot so far.
    pub generation: Vec<u32>,
    /// When each slot was loaded, in loads of all slots.
    pub loaded: Vec<u64>,
    /// When each slot was last used, in uses of all slots.
    pub used: Vec<u64>,
    /// The last turn of the visit in hand that computes in each slot, or [`NONE`].
    pub turn: Vec<u32>,
    /// Loads so far.
    pub loads: u64,
    /// Uses so far.
    pub uses: u64,
}

impl Slots {
    /// Empty slots; fewer than the scope can do with count as the fewest that will do.
    pub fn new(shelf: &Shelf, slots: usize, scope: Scope) -> Slots {
        let mut first = vec![0];
        for n in &shelf.experts {
            first.push(first[first.len() - 1] + n);
        }
        let keys = first[first.len() - 1];
        let slots = slots.max(scope.least(shelf)).min(keys);
        let pools = match scope {
            Scope::Rank => vec![0..slots; shelf.experts.len()],
            Scope::Layer => shares(&shelf.experts, slots),
        };
        let layers = shelf.experts.iter().enumerate();
        Slots {
            layer: layers.flat_map(|(l, &n)| vec![l as u32; n]).collect(),
            first,
            pools,
            place: vec![NONE; keys],
            held: vec![NONE; slots],
            generation: vec![0; slots],
            loaded: vec![0; slots],
            used: vec![0; slots],
            turn: vec![NONE; slots],
            loads: 0,
            uses: 0,
        }
    }

    /// Puts an expert into a slot, in place of what it holds. The slot's turns stay: they are what the load waits for.
    pub fn load(&mut self, key: usize, slot: usize) -> Load {
        if self.held[slot] != NONE {
            self.place[self.held[slot] as usize] = NONE;
        }
        self.held[slot] = key as u32;
        self.place[key] = slot as u32;
        self.generation[slot] += 1;
        self.loads += 1;
        self.loaded[slot] = self.loads;
        let layer = self.layer[key];
        Load {
            layer,
            expert: (key - self.first[layer as usize]) as u32,
            slot: slot as u32,
            generation: self.generation[slot],
            after: (self.turn[slot] != NONE).then_some(self.turn[slot]),
        }
    }

    /// The next turn of a visit: an expert that is in a slot.
    pub fn run(&mut self, key: usize, load: Option<Load>, uses: &mut Vec<Use>) {
        let slot = self.place[key] as usize;
        self.turn[slot] = uses.len() as u32;
        self.uses += 1;
        self.used[slot] = self.uses;
        uses.push(Use {
            expert: (key - self.first[self.layer[key] as usize]) as u32,
            slot: slot as u32,
            generation: self.generation[slot],
            load,
        });
    }
}

/// Slots in equal shares, none larger than its layer: one more to each layer in turn as long as there are any.
fn shares(experts: &[usize], slots: usize) -> Vec<Range<usize>> {
    let mut sizes = vec![0; experts.len()];
    let mut left = slots.min(experts.iter().sum());
    while left > 0 {
        for (size, &n) in sizes.iter_mut().zip(experts) {
            if left > 0 && *size < n {
                *size += 1;
                left -= 1;
            }
        }
    }
    let mut start = 0;
    let mut share = |size| {
        start += size;
        start - size..start
    };
    sizes.into_iter().map(&mut share).collect()
}
