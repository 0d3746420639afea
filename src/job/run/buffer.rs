//! Which experts a rank keeps in memory: from the options to slots.

use super::packing;
use super::plan::{dtype_name, Opened};
use crate::checkpoint::packed as file;
use crate::cli::buffer::{Budget, BufferArgs, Eviction, Prefetch, Share};
use crate::comm::{agree, Comm};
use crate::metrics::memory::size;
use crate::model::packed::{self, PackedExperts, Packer};
use crate::moe::buffer::link::Link;
use crate::moe::buffer::pool::{Buffer, Plan};
use crate::moe::buffer::residency::{self, Shelf};
use crate::moe::buffer::source::{slot_bytes, ExpertSource};
use crate::moe::dispatch::Owners;
use anyhow::{bail, ensure, Result};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Slots that let an expert be read while another runs.
const LEAST: usize = 2;

/// What experts take, on one rank.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Needs {
    /// Experts of all layers.
    experts: usize,
    /// MoE layers that have some.
    layers: usize,
    /// Bytes of a slot.
    slot: u64,
    /// Bytes that reading takes besides.
    staging: u64,
    /// Slots that the policy cannot do without.
    least: usize,
}

impl Needs {
    /// Slots within a budget.
    fn slots(&self, budget: Budget) -> Result<usize> {
        let least = self.least.max(LEAST).min(self.experts);
        let bytes = |slots: usize| slots as u64 * self.slot + self.staging;
        let (slots, said) = match budget {
            Budget::SlotsOfLayer(n) => (n.saturating_mul(self.layers), format!("--expert-slots {n}")),
            Budget::Memory(share) => {
                let memory = match share {
                    Share::Bytes(bytes) => bytes,
                    Share::Percent(percent) => {
                        let all = self.experts as u64 * self.slot;
                        // What it is of a whole number of experts is meant as that.
                        (all as f64 * percent / 100.0).round() as u64
                    }
                };
                // All in memory need no room to be read into later.
                let fit = match memory >= self.experts as u64 * self.slot {
                    true => self.experts,
                    false => (memory.saturating_sub(self.staging) / self.slot.max(1)) as usize,
                };
                (fit, format!("--expert-memory {share} ({})", size(memory)))
            }
        };
        ensure!(
            slots >= least,
            "{said} holds {slots} experts of {} and what reading takes ({}), but {least} is the least that does: give \
             --expert-memory {} or more",
            size(self.slot),
            size(self.staging),
            bytes(least).div_ceil(1 << 20).max(1).to_string() + "M"
        );
        Ok(slots.min(self.experts))
    }
}

/// What rank `rank` of a group of `ranks` is to hold.
struct Planned {
    plan: Plan,
    shelf: Shelf,
    needs: Needs,
    own: Range<usize>,
    source: Arc<dyn ExpertSource>,
}

/// Makes sure, before anything is done, that the budget does on rank `rank` of a group of `ranks`.
///
/// # Errors
/// When it does not.
pub fn check(args: &BufferArgs, opened: &Opened, ranks: usize, rank: usize) -> Result<()> {
    if let (Some(Planned { source, .. }), Some(dir)) = (planned(args, opened, ranks, rank)?, &args.cache_dir) {
        let wanted = Packed::of(opened, source.as_ref())?;
        packing::check(dir, &wanted.name, &wanted.identity, &wanted.lengths)?;
    }
    Ok(())
}

fn planned(args: &BufferArgs, opened: &Opened, ranks: usize, rank: usize) -> Result<Option<Planned>> {
    let Some(budget) = args.budget() else {
        return Ok(None);
    };
    let shape = opened.architecture.shape();
    let layers = shape.moe_layers();
    if layers == 0 {
        bail!("--expert-memory, --expert-slots: this model has no experts");
    }
    let own = Owners::block(shape.experts, ranks, rank);
    let decode = shape.encoder_moe.len()..layers;
    let shelf = Shelf {
        experts: vec![own.len(); layers],
        encode: if shape.encoder { 0..decode.start } else { decode.clone() },
        decode,
    };
    let source = opened.architecture.experts(&opened.checkpoint, opened.dtype, 1);
    let eviction = match args.eviction {
        Eviction::Lifo => residency::Eviction::Lifo,
        Eviction::Lru => residency::Eviction::Lru,
        Eviction::Fifo => residency::Eviction::Fifo,
        Eviction::Lfu => residency::Eviction::Lfu,
        Eviction::Lookahead => residency::Eviction::Lookahead,
    };
    let mut plan = Plan {
        slots: 0,
        eviction,
        prefetch: match args.prefetch {
            Prefetch::Off => residency::Prefetch::Off,
            Prefetch::Trace => residency::Prefetch::Trace,
            Prefetch::Gate => residency::Prefetch::Gate,
        },
        pin: args.pin.map_or(0, |pin| pin.hot),
        readers: 1,
    };
    let slot = slot_bytes(source.as_ref(), layers);
    let direct = args.simulate_link.is_some() || args.cache_dir.is_some();
    let needs = Needs {
        experts: own.len() * layers,
        layers: if own.is_empty() { 0 } else { layers },
        slot,
        staging: if direct {
            0
        } else {
            plan.readers as u64 * source.staging()
        },
        least: plan.scope().least(&shelf),
    };
    plan.slots = needs.slots(budget)?;
    Ok(Some(Planned {
        plan,
        shelf,
        needs,
        own,
        source,
    }))
}

/// The buffer of this rank of the group `comm`, where not all experts are to be in memory; collective over all ranks.
///
/// # Errors
/// When the budget does not do, or memory, threads or the experts of a simulated link cannot be had.
pub fn of(
    args: &BufferArgs,
    opened: &Opened,
    threads: usize,
    world: &dyn Comm,
    comm: &dyn Comm,
) -> Result<Option<Buffer>> {
    let Some(Planned {
        plan,
        shelf,
        needs,
        own,
        source,
    }) = agree(world, planned(args, opened, comm.size(), comm.rank()))?
    else {
        return Ok(None);
    };
    if world.rank() == 0 {
        log::info!(
            "rank 0 holds {} of {} experts, {} each: {} of {}, and {} for reading",
            plan.slots,
            needs.experts,
            size(needs.slot),
            size(plan.slots as u64 * needs.slot),
            size(needs.experts as u64 * needs.slot),
            size(needs.staging)
        );
    }
    // Before the work there is nothing else for the threads to do.
    let quick = opened.architecture.experts(&opened.checkpoint, opened.dtype, threads);
    let below: Option<Arc<dyn ExpertSource>> = match (args.simulate_link, &args.cache_dir) {
        (Some(bytes_per_second), _) => {
            let link = Link::new(quick.clone(), shelf.experts.len(), own.clone(), bytes_per_second);
            Some(Arc::new(agree(world, link)?))
        }
        (None, Some(dir)) => Some(Arc::new(in_file(dir, opened, quick.clone(), world)?)),
        (None, None) => None,
    };
    let first = below.clone().unwrap_or(quick);
    let buffer = Buffer::new(plan, shelf, own.start, below.unwrap_or(source));
    let mut buffer = agree(world, buffer)?;
    agree(world, buffer.fill(first.as_ref()))?;
    Ok(Some(buffer))
}

/// The file of a model's experts.
struct Packed {
    name: String,
    identity: String,
    lengths: Vec<usize>,
}

impl Packed {
    fn of(opened: &Opened, source: &dyn ExpertSource) -> Result<Packed> {
        let (shape, sha256) = (opened.architecture.shape(), opened.checkpoint.sha256()?);
        let dtype = dtype_name(opened.dtype);
        Ok(Packed {
            name: file::name(&sha256, dtype),
            identity: file::identity(&sha256, dtype),
            lengths: packed::lengths(source, shape.moe_layers(), shape.experts),
        })
    }
}

/// The experts as a file in `dir`, which is made where it isn't (collective).
fn in_file(dir: &Path, opened: &Opened, source: Arc<dyn ExpertSource>, world: &dyn Comm) -> Result<PackedExperts> {
    let shape = opened.architecture.shape();
    let wanted = agree(world, Packed::of(opened, source.as_ref()))?;
    let packer = Packer::new(source.as_ref(), shape.moe_layers(), shape.experts);
    let mut packer = agree(world, packer)?;
    let mut said = Instant::now();
    let file = packing::ensure(
        world,
        dir,
        &wanted.name,
        &wanted.identity,
        &wanted.lengths,
        &mut |record, into| packer.pack(record, into),
        &mut |packed, of| {
            if world.rank() == 0 && said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                log::info!("packing experts into {}: {packed} of {of}", dir.display());
            }
        },
    )?;
    if !file.is_direct() && world.rank() == 0 {
        log::warn!(
            "--cache-dir {}: this file system takes no reads past the system's cache, which will hold experts beside those that \
             the budget allows",
            dir.display()
        );
    }
    Ok(PackedExperts::new(file, source, shape.experts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_slots_or_a_refusal_with_the_least_that_does() {
        let needs = Needs {
            experts: 100,
            layers: 4,
            slot: 10 << 20,
            staging: 5 << 20,
            least: 1,
        };
        let memory = |share| needs.slots(Budget::Memory(share));
        assert_eq!(memory(Share::Bytes(105 << 20)).unwrap(), 10);
        assert_eq!(memory(Share::Bytes((105 << 20) - 1)).unwrap(), 9);
        assert_eq!(
            memory(Share::Percent(50.0)).unwrap(),
            49,
            "what reading takes is within it"
        );
        assert_eq!(memory(Share::Percent(100.0)).unwrap(), 100, "nothing is read then");
        assert_eq!(memory(Share::Bytes(1 << 40)).unwrap(), 100);
        assert_eq!(needs.slots(Budget::SlotsOfLayer(3)).unwrap(), 12);
        assert_eq!(needs.slots(Budget::SlotsOfLayer(usize::MAX)).unwrap(), 100);
        let refused = memory(Share::Bytes(24 << 20)).unwrap_err().to_string();
        assert!(
            refused.contains("holds 1 experts") && refused.contains("--expert-memory 25M"),
            "{refused}"
        );
        assert_eq!(memory(Share::Bytes(25 << 20)).unwrap(), 2);
        let by_layer = Needs { least: 4, ..needs };
        let refused = by_layer
            .slots(Budget::Memory(Share::Bytes(30 << 20)))
            .unwrap_err()
            .to_string();
        assert!(refused.contains("--expert-memory 45M"), "{refused}");
        // A rank with one expert or none needs no more slots than that.
        let few = |experts| {
            Needs {
                experts,
                layers: 1,
                ..needs
            }
            .slots(Budget::SlotsOfLayer(1))
            .unwrap()
        };
        assert_eq!([few(1), few(0)], [1, 0]);
    }
}
