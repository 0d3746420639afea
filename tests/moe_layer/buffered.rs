//! A layer whose experts are in a buffer's slots has the bits of one whose experts are all in memory.

use super::weights::{Kind, Shared, Weights, D_MODEL, TOP_TWO};
use super::{bits, inputs, tokens, Input};
use anyhow::Result;
use sluicegate::comm::{threads, Comm};
use sluicegate::device::{Cpu, Dtype, Layout};
use sluicegate::moe::buffer::pool::{Buffer, Plan, Tally};
use sluicegate::moe::buffer::residency::{Eviction, Pass, Prefetch, Shelf};
use sluicegate::moe::buffer::source::{expert_bytes, ExpertSource};
use sluicegate::moe::dispatch::Owners;
use sluicegate::moe::layer::{link, Expert, Experts, MoeBuffers, MoeLayer};
use sluicegate::moe::Context;
use std::sync::{mpsc, Arc};
use std::time::Duration;

const PREFETCH: [Prefetch; 3] = [Prefetch::Off, Prefetch::Trace, Prefetch::Gate];

/// Layers that tokens go through.
const LAYERS: usize = 3;

/// The experts of all layers, copied on demand.
struct Copies(Vec<Vec<Expert>>);

impl ExpertSource for Copies {
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        let Expert { up, down } = &self.0[layer][0];
        [up.layout(), down.layout()]
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let from = &self.0[layer][expert];
        for (from, to) in [(&from.up, &mut into.up), (&from.down, &mut into.down)] {
            to.bytes_mut().fill(0xff);
            let from = from.bytes_of();
            to.bytes_mut()[..from.len()].copy_from_slice(from);
        }
        Ok(expert_bytes(self.layouts(layer)) as u64)
    }

    fn staging(&self) -> u64 {
        0
    }
}

/// A case: what layers, and who has which tokens.
#[derive(Clone)]
struct Case {
    kind: Kind,
    bias: Vec<f32>,
    dtype: Dtype,
    steps: Vec<Vec<Input>>,
}

/// How experts are kept; none: all in memory.
type Kept = Option<(usize, Eviction, Prefetch, usize)>;

/// What a rank has after some steps: outputs of each, tokens by layer and expert, and what its buffer did.
type Outcome = (Vec<Vec<f32>>, Vec<Vec<u64>>, Option<Tally>);

impl Case {
    fn weights(&self) -> Vec<Weights> {
        let weights = |l: usize| {
            let mut bias = self.bias.clone();
            bias.rotate_left(l);
            Weights::nth(l, self.kind, &bias)
        };
        (0..LAYERS).map(weights).collect()
    }

    fn buffer(&self, weights: &[Weights], kept: Kept, comm: &dyn Comm) -> Option<Buffer> {
        let (slots, eviction, prefetch, pin) = kept?;
        let all = self.bias.len();
        let own = Owners::block(all, comm.size(), comm.rank());
        let shelf = Shelf {
            experts: vec![own.len(); LAYERS],
            encode: 0..1,
            decode: 1..LAYERS,
        };
        let mut plan = Plan {
            slots,
            eviction,
            prefetch,
            pin,
            readers: 1 + slots % 2,
        };
        plan.slots = slots.max(plan.scope().least(&shelf)).min(own.len() * LAYERS);
        let copies = weights.iter().map(|w| w.packed(self.dtype, 0..all)).collect();
        Some(Buffer::new(plan, shelf, own.start, Arc::new(Copies(copies))).unwrap())
    }

    fn rank_work(&self, kept: Kept, comm: &dyn Comm) -> Outcome {
        let cpu = Cpu::new(comm.size().min(2)).unwrap();
        let weights = self.weights();
        let layer = |(l, w): (usize, &Weights)| {
            let layer = w.layer(self.dtype, comm.size(), comm.rank());
            let experts = match kept {
                Some(_) => Experts::Buffered(layer.experts.count()),
                None => layer.experts,
            };
            MoeLayer {
                index: l,
                experts,
                ..layer
            }
        };
        let mut layers: Vec<MoeLayer> = weights.iter().enumerate().map(layer).collect();
        link(layers.iter_mut());
        let mut ctx = Context::new(&cpu, comm, LAYERS, self.bias.len(), false);
        ctx.buffer = self.buffer(&weights, kept, comm);
        let mut buffers = MoeBuffers::default();
        let mut outputs = Vec::new();
        for ranks in &self.steps {
            let Input { mut normed, mut x } = ranks[comm.rank()].clone();
            for layer in &layers {
                ctx.pass = if layer.index == 0 { Pass::Encode } else { Pass::Decode };
                layer.forward(&mut ctx, &mut buffers, &mut normed, &mut x);
                normed = x.iter().map(|x| x.tanh()).collect();
            }
            outputs.push(x);
        }
        assert!(ctx.failure.is_none(), "{:?}", ctx.failure);
        (outputs, ctx.loads.clone(), ctx.buffer.map(|b| b.tally()))
    }

    /// On as many ranks as there are inputs; fails where a rank waits for ever.
    fn run(&self, kept: Kept) -> Vec<Outcome> {
        let (case, (done, outcome)) = (self.clone(), mpsc::channel());
        std::thread::spawn(move || done.send(threads::run(case.steps[0].len(), |comm| case.rank_work(kept, comm))));
        outcome
            .recv_timeout(Duration::from_secs(120))
            .expect("a rank hangs or panicked")
    }

    fn is_as_resident(&self, kept: &[Kept], resident: &[Outcome]) {
        for &kept in kept {
            let found = self.run(kept);
            for (rank, (found, resident)) in found.iter().zip(resident).enumerate() {
                let what = format!(
                    "{kept:?}, {:?}, {:?}, rank {rank} of {}",
                    self.kind,
                    self.dtype,
                    resident.0.len()
                );
                for (step, (found, resident)) in found.0.iter().zip(&resident.0).enumerate() {
                    assert_eq!(found.len() % D_MODEL, 0);
                    assert_eq!(bits(found), bits(resident), "{what}, step {step}");
                }
                assert_eq!(found.1, resident.1, "{what}");
            }
            // The buffers were at work, and used an expert once a visit at most.
            let uses: u64 = found.iter().filter_map(|o| Some(o.2?.uses)).sum();
            let most = self.steps.len() * LAYERS * self.bias.len();
            assert!((1..=most as u64).contains(&uses), "{uses} of {most}");
        }
    }
}

fn steps(ranks: usize) -> Vec<Vec<Input>> {
    let counts = tokens(ranks);
    let counts = counts.iter().chain(&counts);
    (0..).zip(counts).map(|(i, step)| inputs(step, 500 + 70 * i)).collect()
}

/// All of the policies, so many slots a rank each in turn, each with one way to fetch ahead or another.
fn settings(turn: usize, experts: usize) -> Vec<Kept> {
    let all = experts * LAYERS;
    let of = |(i, eviction): (usize, Eviction)| {
        let slots = 2 + (turn * 5 + i * 3) % (all - 1).max(1);
        Some((slots, eviction, PREFETCH[(turn + i) % 3], (turn + i) % 2))
    };
    Eviction::ALL.into_iter().enumerate().map(of).collect()
}

#[test]
fn every_policy_gives_the_bits_of_experts_in_memory() {
    let gated = Kind {
        top_k: 3,
        renormalise: true,
        gated: true,
        shared: Shared::Gated,
    };
    let skewed = vec![0.0, 0.4, 2.0, 1.2, -0.8, 0.2, -2.0, 0.8];
    let cases = [
        (TOP_TWO, vec![0.0; 8]),
        (TOP_TWO, skewed),
        (gated, vec![0.3, 1.0, 0.0, 0.5, 2.0, 0.1, 0.7]),
        // More ranks than experts.
        (TOP_TWO, vec![0.0, 0.5, 1.0]),
    ];
    let mut turn = 0;
    for (kind, bias) in cases {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            for ranks in 1..=5 {
                let case = Case {
                    kind,
                    bias: bias.clone(),
                    dtype,
                    steps: steps(ranks),
                };
                turn += 1;
                let own = bias.len().div_ceil(ranks);
                case.is_as_resident(&settings(turn, own), &case.run(None));
            }
        }
    }
}

#[test]
fn any_number_of_slots_gives_the_bits_of_experts_in_memory() {
    let case = Case {
        kind: TOP_TWO,
        bias: vec![0.0, 1.0, 0.5, 0.0, 0.2],
        dtype: Dtype::F32,
        steps: steps(2),
    };
    let resident = case.run(None);
    for (i, eviction) in Eviction::ALL.into_iter().enumerate() {
        let kept: Vec<Kept> = (1..=9)
            .map(|slots| Some((slots, eviction, PREFETCH[(i + slots) % 3], slots % 3)))
            .collect();
        case.is_as_resident(&kept, &resident);
    }
}
