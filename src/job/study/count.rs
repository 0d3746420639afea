//! A trace through the policies: loads by placement, policy and number of slots, on all processors.

use super::memory::capacity;
use super::placement::Placement;
use super::recorded::{Recorded, Span};
use super::report::{Cell, Placed};
use crate::cli::study::{Policy, Pool, PrefetchName};
use crate::moe::buffer::replay::{minimum, replay, Replayed, Trace};
use crate::moe::buffer::residency::{Prefetch, Scope, Shelf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// How to go through a trace.
pub struct Plan<'a> {
    /// Policies; the minimum comes behind them.
    pub policies: &'a [Policy],
    /// Slots per layer and rank.
    pub slots: &'a [usize],
    /// Who shares them.
    pub pool: Pool,
    /// What *lookahead* fetches before it is needed.
    pub prefetch: PrefetchName,
}

/// What one policy, or the minimum, did on one rank with one number of slots.
struct Run {
    column: usize,
    slots: usize,
    rank: usize,
    replayed: Replayed,
}

impl Plan<'_> {
    /// Goes through the whole trace under a placement: each start and group with empty slots, each rank by itself.
    pub fn count(&self, recorded: &Recorded, placement: Placement) -> Placed {
        let (ranks, layers) = (placement.ranks, recorded.layers.len());
        let cell = Cell {
            by_rank: vec![0; ranks],
            by_layer: vec![0; layers],
            ..Cell::default()
        };
        let mut cells = vec![vec![cell; self.slots.len()]; self.policies.len() + 1];
        let (mut accesses_by_rank, mut accesses_by_layer) = (vec![0; ranks], vec![0; layers]);
        for span in &recorded.spans {
            let traces = cut(recorded, span, &placement);
            for (rank, trace) in traces.iter().enumerate() {
                for (_, layer, rows) in &trace.visits {
                    let needed = rows.iter().filter(|&&tokens| tokens > 0).count() as u64;
                    accesses_by_rank[rank] += needed;
                    accesses_by_layer[*layer] += needed;
                }
            }
            for run in self.replay(&traces) {
                let cell = &mut cells[run.column][run.slots];
                cell.loads += run.replayed.total.loads;
                cell.ahead += run.replayed.total.ahead;
                cell.by_rank[run.rank] += run.replayed.total.loads;
                let layers = cell.by_layer.iter_mut().zip(&run.replayed.by_layer);
                layers.for_each(|(sum, layer)| *sum += layer.loads);
            }
        }
        Placed {
            placement,
            accesses: accesses_by_rank.iter().sum(),
            accesses_by_rank,
            accesses_by_layer,
            cells,
            experts: None,
        }
    }

    /// Every rank's trace with every policy and number of slots.
    fn replay(&self, traces: &[Trace]) -> Vec<Run> {
        let columns = self.policies.len() + 1;
        let runs = traces.len() * columns * self.slots.len();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let run = next.fetch_add(1, Ordering::Relaxed);
                if run >= runs {
                    return done;
                }
                // The ones with many slots first: their searches take longest.
                let (slots, rest) = (run / (columns * traces.len()), run % (columns * traces.len()));
                let (slots, column, rank) = (self.slots.len() - 1 - slots, rest / traces.len(), rest % traces.len());
                if traces[rank].shelf.experts.iter().any(|&held| held > 0) {
                    let replayed = self.one(&traces[rank], column, self.slots[slots]);
                    done.push(Run {
                        column,
                        slots,
                        rank,
                        replayed,
                    });
                }
            }
        };
        let threads = thread::available_parallelism().map_or(1, usize::from).min(runs.max(1));
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Vec<Run>>| match thread.join() {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().flat_map(join).collect()
        })
    }

    fn one(&self, trace: &Trace, column: usize, slots: usize) -> Replayed {
        let slots = capacity(self.pool, &trace.shelf.experts, slots);
        let scope = match self.pool {
            Pool::Layer => Scope::Layer,
            Pool::Rank => Scope::Rank,
        };
        let Some(policy) = self.policies.get(column) else {
            return minimum(trace, slots, scope);
        };
        // Only lookahead has an idea of what comes next.
        let prefetch = match policy {
            Policy::Lookahead => self.prefetch.prefetch(),
            _ => Prefetch::Off,
        };
        replay(trace, slots, policy.eviction(), scope, prefetch, 0)
    }
}

/// The traces of a group's ranks.
fn cut(recorded: &Recorded, span: &Span, placement: &Placement) -> Vec<Trace> {
    let shelf = Shelf {
        experts: vec![recorded.experts; recorded.layers.len()],
        encode: recorded.encode.clone(),
        decode: recorded.decode.clone(),
    };
    Trace::cut(&span.visits, &placement.owners, &shelf)
}
