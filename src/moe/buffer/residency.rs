//! Which experts are in which slots, visit by visit. Pure: a recorded trace is replayed through the same code as a run.

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
