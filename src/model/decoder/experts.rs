//! Reading the experts of a decoder-only model, as its checkpoint stores them.

use super::inventory;
use super::spec::{MoeNames, Spec, Storage};
use crate::checkpoint::Checkpoint;
use crate::device::{Dtype, Layout, Part, Source};
use crate::model::blocks::{source, staging, Loader};
use crate::moe::buffer::source::ExpertSource;
use crate::moe::layer::Expert;
use anyhow::Result;
use std::sync::Arc;

/// The experts of a checkpoint.
pub(super) struct Experts {
    checkpoint: Arc<Checkpoint>,
    dtype: Dtype,
    threads: usize,
    names: MoeNames,
    d_model: usize,
    width: usize,
    /// What each sparse layer's module is called.
    modules: Vec<String>,
}

impl Experts {
    pub(super) fn new(spec: &Spec, checkpoint: &Arc<Checkpoint>, dtype: Dtype, threads: usize) -> Experts {
        let names = spec.moe_names(&|name| checkpoint.info(name).is_some());
        Experts {
            checkpoint: checkpoint.clone(),
            dtype,
            threads,
            names,
            d_model: spec.d_model,
            width: spec.moe.width,
            modules: spec
                .sparse()
                .map(|i| format!("{}.{}", inventory::layer(i), names.module))
                .collect(),
        }
    }

    /// An expert of GPT-OSS, whose biases alternate between gates and up projections.
    fn interleaved(
        &self,
        module: &str,
        expert: usize,
        [gate, up]: [Source<'_>; 2],
        down: Source<'_>,
        into: &mut Expert,
    ) -> Result<()> {
        let read = |part: &str| {
            let name = format!("{module}.experts.{part}_bias");
            self.checkpoint.read_part_f32(&name, expert)
        };
        let (biases, bias) = (read("gate_up_proj")?, read("down_proj")?);
        let turns = [0, 1].map(|first| biases.iter().skip(first).step_by(2).copied().collect::<Vec<f32>>());
        let with = |weights, bias| Part {
            weights,
            bias: Some(bias),
        };
        into.up
            .repack(self.threads, &[with(gate, &turns[0])], &[with(up, &turns[1])])?;
        into.down.repack(self.threads, &[with(down, &bias)], &[])
    }
}

impl ExpertSource for Experts {
    fn layouts(&self, _: usize) -> [Layout; 2] {
        let layout = |inputs, outputs, gated| Layout {
            inputs,
            outputs,
            dtype: self.dtype,
            gated,
            bias: matches!(self.names.storage, Storage::Interleaved | Storage::Mxfp4),
        };
        [
            layout(self.d_model, self.width, true),
            layout(self.width, self.d_model, false),
        ]
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let (d, width, module) = (self.d_model, self.width, &self.modules[layer]);
        let of = |part: &str| format!("{module}.{part}");
        let part = |name: &str| self.checkpoint.read_part(&of(name), expert);
        let bytes = |elements: usize, bits: usize| (elements * bits / 8) as u64;
        match self.names.storage {
            Storage::Each { names } => {
                let load = Loader {
                    checkpoint: &self.checkpoint,
                    dtype: self.dtype,
                    threads: self.threads,
                };
                let [gate, up, down] = names.map(|name| of(&format!("experts.{expert}.{name}")));
                Ok(load.repack_gated([&gate, &up], &mut into.up)? + load.repack(&down, &mut into.down)?)
            }
            Storage::Stacked { names: [up, down] } => {
                let (up, down) = (part(up)?, part(down)?);
                let half = |first: usize| source(&up).strided(first * width * d, [width, d], [d, 1]);
                into.up.repack(self.threads, &[plain(half(0))], &[plain(half(1))])?;
                into.down.repack(self.threads, &[plain(source(&down))], &[])?;
                Ok(bytes(up.len() + down.len(), 8 * up.dtype().bytes()))
            }
            Storage::Interleaved => {
                let (up, down) = (part("experts.gate_up_proj")?, part("experts.down_proj")?);
                let column = |first: usize| source(&up).strided(first, [width, d], [2, 2 * width]);
                let of_down = source(&down).strided(0, [d, width], [1, d]);
                self.interleaved(module, expert, [column(0), column(1)], of_down, into)?;
                Ok(bytes(up.len() + down.len(), 8 * up.dtype().bytes()))
            }
            Storage::Mxfp4 => {
                let read = |name: &str| self.checkpoint.read_mxfp4_part(&of(name), expert);
                let (up, down) = (read("experts.gate_up_proj")?, read("experts.down_proj")?);
                let row = |first: usize| source(&up).strided(first * d, [width, d], [2 * d, 1]);
                self.interleaved(module, expert, [row(0), row(1)], source(&down), into)?;
                Ok(bytes(up.len() + down.len(), 4))
            }
        }
    }

    fn staging(&self) -> u64 {
        let probe = match self.names.storage {
            Storage::Each { names } => format!("{}.experts.0.{}.weight", self.modules[0], names[0]),
            Storage::Stacked { names } => format!("{}.{}", self.modules[0], names[0]),
            Storage::Interleaved => format!("{}.experts.gate_up_proj", self.modules[0]),
            Storage::Mxfp4 => String::new(),
        };
        staging(&self.checkpoint, &probe, self.layouts(0))
    }
}

pub(super) fn plain(weights: Source<'_>) -> Part<'_> {
    Part { weights, bias: None }
}
