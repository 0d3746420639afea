//! Bytes of a rank's weights by component, with all of its experts or only so many slots.

use super::placement::Placement;
use super::recorded::Recorded;
use crate::cli::run as flags;
use crate::cli::study::{BufferArgs, Pool};
use crate::device::Dtype;
use crate::job::run::{dtype_name, Opened};
use crate::model::inventory::{Expected, Owner};
use crate::results::Results;
use anyhow::{ensure, Context, Result};
use clap::ValueEnum;

/// Bytes of weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// What every rank holds, where it is known.
    pub dense: Option<u64>,
    /// An expert of each layer, `[layers]`.
    pub expert: Vec<u64>,
    /// Precision, where it is known.
    pub dtype: Option<&'static str>,
}

/// Bytes of the experts of that rank of a placement which has most.
#[derive(Clone, Debug, PartialEq)]
pub struct Experts {
    /// All of them.
    pub all: u64,
    /// Those in the slots, by number of slots.
    pub resident: Vec<u64>,
}

impl Weights {
    /// As the options say; none if they don't.
    ///
    /// # Errors
    /// The checkpoint is amiss, or another one than the run's.
    pub fn of(args: &BufferArgs, results: &Results, recorded: &Recorded) -> Result<Option<Weights>> {
        let layers = recorded.layers.len();
        let Some(dir) = &args.model else {
            return Ok(args.expert_bytes.map(|bytes| Weights {
                dense: None,
                expert: vec![bytes; layers],
                dtype: None,
            }));
        };
        let of_run = results.identity().fields.get("dtype").and_then(|dtype| dtype.as_str());
        let of_run = of_run.and_then(|name| flags::Dtype::from_str(name, false).ok());
        let opened = Opened::open(dir, args.dtype.or(of_run))?;
        let shape = opened.architecture.shape();
        let mut names = shape.encoder_moe.clone();
        names.extend_from_slice(&shape.decoder_moe);
        ensure!(
            names == recorded.layers && shape.experts == recorded.experts,
            "--model {}: it has {} MoE layers of {} experts, the run had {} of {}: give the checkpoint of the run",
            dir.display(),
            names.len(),
            shape.experts,
            layers,
            recorded.experts
        );
        let stored = |name: &str| opened.checkpoint.info(name).is_some();
        let inventory = opened.architecture.inventory(&stored);
        let weights = Weights::of_tensors(&inventory, opened.dtype, layers, recorded.experts);
        weights.map(Some).with_context(|| format!("--model {}", dir.display()))
    }

    fn of_tensors(inventory: &[Expected], dtype: Dtype, layers: usize, experts: usize) -> Result<Weights> {
        let (mut dense, mut of_layer) = (0, vec![0; layers]);
        for tensor in inventory {
            let bytes = bytes(tensor, dtype);
            match tensor.owner {
                Owner::Dense => dense += bytes,
                Owner::Expert { layer, .. } | Owner::Experts { layer } => {
                    let sum = of_layer.get_mut(layer);
                    *sum.with_context(|| format!("tensor `{}` is of no MoE layer", tensor.name))? += bytes;
                }
            }
        }
        Ok(Weights {
            dense: Some(dense),
            expert: of_layer.into_iter().map(|bytes| bytes / experts as u64).collect(),
            dtype: Some(dtype_name(dtype)),
        })
    }

    /// What a rank's experts take under a placement. A pool over all layers has slots for the largest of them.
    pub fn experts(&self, placement: &Placement, pool: Pool, slots: &[usize]) -> Experts {
        let experts = placement.experts();
        let all = |held: &Vec<usize>| -> u64 {
            let layers = held.iter().zip(&self.expert);
            layers.map(|(&held, bytes)| held as u64 * bytes).sum()
        };
        let largest = self.expert.iter().max().copied().unwrap_or(0);
        let resident = |held: &Vec<usize>, slots: usize| match pool {
            Pool::Layer => all(&held.iter().map(|&held| held.min(slots)).collect()),
            Pool::Rank => all(held).min(capacity(pool, held, slots) as u64 * largest),
        };
        let most = |slots: &usize| experts.iter().map(|held| resident(held, *slots)).max().unwrap_or(0);
        Experts {
            all: experts.iter().map(all).max().unwrap_or(0),
            resident: slots.iter().map(most).collect(),
        }
    }
}

/// Slots of a rank in all, with `held` experts in its layers and so many slots for each of them.
pub fn capacity(pool: Pool, held: &[usize], slots: usize) -> usize {
    match pool {
        Pool::Layer => held.iter().map(|&held| held.min(slots)).sum(),
        Pool::Rank => {
            let layers = held.iter().filter(|&&held| held > 0).count();
            layers.saturating_mul(slots).min(held.iter().sum())
        }
    }
}

/// Bytes of a tensor in memory, about: vectors stay float32, and so do the scales of int8.
fn bytes(tensor: &Expected, dtype: Dtype) -> u64 {
    let elements = tensor.elements();
    let bytes = match (&tensor.shape[..], dtype) {
        ([] | [_], _) | (_, Dtype::F32) => 4 * elements,
        (_, Dtype::Bf16) => 2 * elements,
        ([.., inputs], Dtype::Int8) => elements + 4 * (elements / (*inputs).max(1)),
    };
    bytes as u64
}

impl Experts {
    /// Share of all weights that needn't be in memory, by number of slots; of the experts alone where nothing else is known.
    pub fn saved(&self, dense: Option<u64>) -> Vec<f64> {
        let whole = (dense.unwrap_or(0) + self.all).max(1) as f64;
        let saved = |&resident: &u64| (self.all - resident) as f64 / whole;
        self.resident.iter().map(saved).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[usize], owner: Owner) -> Expected {
        Expected {
            name: name.to_owned(),
            shape: shape.to_vec(),
            owner,
        }
    }

    #[test]
    fn bytes_are_those_of_the_tensors() {
        let expert = |layer, expert| Owner::Expert { layer, expert };
        let inventory = [
            tensor("embedding", &[10, 4], Owner::Dense),
            tensor("norm", &[4], Owner::Dense),
            tensor("up.0", &[6, 4], expert(0, 0)),
            tensor("bias.0", &[6], expert(0, 0)),
            tensor("up.1", &[6, 4], expert(0, 1)),
            tensor("bias.1", &[6], expert(0, 1)),
            tensor("all", &[2, 5, 4], Owner::Experts { layer: 1 }),
        ];
        for (dtype, dense, expert) in [
            (Dtype::F32, 4 * 44, [4 * 30, 4 * 20]),
            (Dtype::Bf16, 2 * 40 + 4 * 4, [2 * 24 + 4 * 6, 2 * 20]),
            (Dtype::Int8, 40 + 4 * 10 + 4 * 4, [24 + 4 * 6 + 4 * 6, 20 + 4 * 5]),
        ] {
            let weights = Weights::of_tensors(&inventory, dtype, 2, 2).unwrap();
            assert_eq!(
                (weights.dense, &weights.expert[..]),
                (Some(dense), &expert[..]),
                "{dtype:?}"
            );
        }
    }

    #[test]
    fn a_pool_has_slots_for_each_layer_and_no_more_than_experts() {
        for (held, slots, layer, rank) in [
            (&[4, 4][..], 1, 2, 2),
            (&[4, 4], 9, 8, 8),
            (&[1, 5], 3, 4, 6),
            (&[0, 5], 3, 3, 3),
            (&[0, 0], 3, 0, 0),
        ] {
            let found = [Pool::Layer, Pool::Rank].map(|pool| capacity(pool, held, slots));
            assert_eq!(found, [layer, rank], "{held:?} {slots}");
        }
    }

    #[test]
    fn the_fullest_rank_counts_and_slots_are_never_more_than_experts() {
        let weights = Weights {
            dense: Some(100),
            expert: vec![10, 30],
            dtype: None,
        };
        // Ranks of 1 and 2 experts.
        let blocks = Placement::blocks(2, 3, 2);
        let experts = weights.experts(&blocks, Pool::Layer, &[1, 2, 5]);
        assert_eq!((experts.all, &experts.resident[..]), (80, &[40, 80, 80][..]));
        let shared = weights.experts(&blocks, Pool::Rank, &[1, 2, 5]);
        assert_eq!((shared.all, &shared.resident[..]), (80, &[60, 80, 80][..]));
        assert_eq!(experts.saved(Some(120)), [0.2, 0.0, 0.0]);
        assert_eq!(experts.saved(None), [0.5, 0.0, 0.0]);
    }
}
