//! What a study of the buffer found.

use super::memory::{Experts, Weights};
use super::placement::Placement;
use std::path::PathBuf;

/// The name of Belady's rule beside those of the policies.
pub const MIN: &str = "min";

/// Loads of one policy with one number of slots.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cell {
    /// Experts loaded, those ahead of their use included.
    pub loads: u64,
    /// Those loaded ahead of their use.
    pub ahead: u64,
    /// By rank, over all groups.
    pub by_rank: Vec<u64>,
    /// By layer.
    pub by_layer: Vec<u64>,
}

/// What a placement makes of the trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    /// Which rank has which expert.
    pub placement: Placement,
    /// Experts needed, each once a visit of its layer on its rank.
    pub accesses: u64,
    /// By rank, over all groups.
    pub accesses_by_rank: Vec<u64>,
    /// By layer.
    pub accesses_by_layer: Vec<u64>,
    /// `[columns][slots]`, in the order of [`Report::columns`].
    pub cells: Vec<Vec<Cell>>,
    /// Bytes of experts, where they are known.
    pub experts: Option<Experts>,
}

/// All that was found, and of what.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The run's file.
    pub trace: PathBuf,
    /// Its job: `translate`, ...
    pub job: String,
    /// Digest of its checkpoint.
    pub model_sha256: String,
    /// Names of its MoE layers.
    pub layers: Vec<String>,
    /// Experts of each layer.
    pub layer_experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Starts and groups that left visits.
    pub spans: usize,
    /// Their steps.
    pub steps: u64,
    /// Turns of layers.
    pub visits: u64,
    /// Experts that a visit needs, as a share of the layer's.
    pub active_share: f64,
    /// Ranks that share a copy of the experts.
    pub ranks: usize,
    /// Where that number comes from.
    pub ranks_from: &'static str,
    /// `rank` or `layer`: who shares slots.
    pub pool: &'static str,
    /// `off` or `trace`.
    pub prefetch: &'static str,
    /// Slots per layer and rank.
    pub slots: Vec<usize>,
    /// Numbers asked for that are above a rank's experts.
    pub left_out: Vec<usize>,
    /// The policies' names, and at last [`MIN`].
    pub columns: Vec<&'static str>,
    /// Bytes, where they are known.
    pub weights: Option<Weights>,
    /// By placement.
    pub placed: Vec<Placed>,
}

impl Report {
    /// Index of a column.
    pub fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|column| *column == name)
    }
}

impl Placed {
    /// Share of the accesses that had to be loaded, of a column and number of slots.
    pub fn share(&self, column: usize, slots: usize) -> f64 {
        self.cells[column][slots].loads as f64 / self.accesses.max(1) as f64
    }
}
