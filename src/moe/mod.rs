//! The paper: a Mixture-of-Experts layer over ranks, with dynamic gating.
//!
//! [`gate`] chooses experts, [`dispatch`] plans who computes what, [`layer`] does it: the sizes are exchanged, then
//! exactly those rows (`exchange`, in the form of `rows`); each rank's experts run as one grouped operation over sorted
//! rows; outputs go home and are summed there in the order of the gate's choices (`combine`). A [`shared`] expert has no
//! part in that: it runs where the tokens are.

pub mod buffer;
mod combine;
pub mod dispatch;
mod exchange;
pub mod gate;
pub mod layer;
mod rows;
pub mod shared;

use crate::comm::Comm;
use crate::device::Cpu;
use crate::metrics::meter::Meter;
use gate::Routes;

/// What a model computes with: the device, the ranks beside it, and the books that are kept on the way.
pub struct Context<'a> {
    /// Where it computes.
    pub device: &'a Cpu,
    /// The ranks that hold the model together.
    pub comm: &'a dyn Comm,
    /// Time by phase.
    pub meter: Meter,
    /// Tokens of this rank by MoE layer (encoder first) and expert, since the start.
    pub loads: Vec<Vec<u64>>,
    /// Routes of the step in hand by MoE layer, where they are wanted.
    pub routes: Option<Vec<Routes>>,
    /// Whether every token's routes are wanted, not only their sums.
    pub routes_by_token: bool,
    /// What went wrong on this rank in the step in hand: told to the others before the next one.
    pub failure: Option<anyhow::Error>,
}

impl<'a> Context<'a> {
    /// A context for a model with `layers` MoE layers of `experts` experts; `keep_routes` has [`routes`](Self::routes) filled.
    pub fn new(device: &'a Cpu, comm: &'a dyn Comm, layers: usize, experts: usize, keep_routes: bool) -> Context<'a> {
        let routes = keep_routes.then(|| vec![Routes::default(); layers]);
        Context {
            device,
            comm,
            meter: Meter::default(),
            loads: vec![vec![0; experts]; layers],
            routes,
            routes_by_token: false,
            failure: None,
        }
    }

    fn record(&mut self, layer: usize, routes: &Routes) {
        for &e in &routes.experts {
            self.loads[layer][e as usize] += 1;
        }
        if let Some(kept) = &mut self.routes {
            kept[layer].clone_from(routes);
        }
    }
}
