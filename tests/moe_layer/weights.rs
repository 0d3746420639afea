//! Layers of several kinds with random weights, as ranks hold them and written out in float64.

use half::bf16;
use sluicegate::device::{Activation, Dtype, Epilogue, Linear, Part, Source};
use sluicegate::moe::dispatch::Owners;
use sluicegate::moe::gate::Rule;
use sluicegate::moe::layer::{Expert, Experts, MoeLayer};
use sluicegate::moe::shared::SharedExpert;
use std::ops::Range;
use std::sync::Arc;

/// More than one piece of a row's sum, and no multiple of anything.
pub const D_MODEL: usize = 70;
const D_FF: usize = 45;
/// Width of a shared expert.
const D_SHARED: usize = 33;
const SCALE: f32 = 0.8;
/// Factor on the weights of those that are not renormalised.
const FACTOR: f32 = 2.5;

/// Numbers without a pattern, from -1 to 1.
pub fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// What kind of layer it is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kind {
    /// Experts a token.
    pub top_k: usize,
    /// Whether the weights of a token's experts sum to one.
    pub renormalise: bool,
    /// Whether the experts have gates.
    pub gated: bool,
    pub shared: Shared,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Shared {
    #[default]
    No,
    Ungated,
    Gated,
}

/// NLLB-MoE's.
pub const TOP_TWO: Kind = Kind {
    top_k: 2,
    renormalise: true,
    gated: false,
    shared: Shared::No,
};

/// A feed-forward network: gate (where there is one), up, down, each with a bias or without.
pub struct Ffn([(Vec<f32>, Option<Vec<f32>>); 3]);

impl Ffn {
    fn new(d_ff: usize, bias: bool, seed: u64) -> Ffn {
        let matrix = |i: u64, outputs: usize, inputs: usize| {
            let bias = bias.then(|| values(outputs, seed + 2 * i + 1));
            // Halved, so that products of gates and up projections stay about one.
            let weights = values(outputs * inputs, seed + 2 * i).into_iter().map(|w| 0.5 * w);
            (weights.collect(), bias)
        };
        Ffn([
            matrix(0, d_ff, D_MODEL),
            matrix(1, d_ff, D_MODEL),
            matrix(2, D_MODEL, d_ff),
        ])
    }

    fn expert(&self, gated: bool, dtype: Dtype) -> Expert {
        let [gate, up, down] = self.0.each_ref().map(|(weights, bias)| Part {
            weights: Source::F32(weights),
            bias: bias.as_deref(),
        });
        let d_ff = self.0[1].0.len() / D_MODEL;
        Expert {
            up: if gated {
                Linear::pack_gated(1, D_MODEL, &[gate], &[up], dtype).unwrap()
            } else {
                Linear::pack(D_MODEL, &[up], dtype).unwrap()
            },
            down: Linear::pack(d_ff, &[down], dtype).unwrap(),
        }
    }

    /// Its output in float64, the hidden values multiplied by a factor.
    fn written_out(&self, input: &[f64], gated: bool, factor: f64, round: Round) -> Vec<f64> {
        let [gate, up, down] = &self.0;
        let mut hidden = product(input, &up.0, up.1.as_deref(), round);
        if gated {
            let gates = product(input, &gate.0, gate.1.as_deref(), round);
            let silu = gates.iter().map(|g| g / (1.0 + (-g).exp()));
            hidden.iter_mut().zip(silu).for_each(|(h, g)| *h *= g);
        } else {
            hidden.iter_mut().for_each(|h| *h = h.max(0.0));
        }
        hidden.iter_mut().for_each(|h| *h *= factor);
        product(&hidden, &down.0, down.1.as_deref(), round)
    }
}

/// The weights of a whole layer, as a checkpoint would have them.
pub struct Weights {
    kind: Kind,
    router: Vec<f32>,
    bias: Vec<f32>,
    pub experts: Vec<Ffn>,
    shared: Ffn,
    /// `[1, d_model]`
    shared_gate: Vec<f32>,
}

impl Weights {
    /// Random weights; `bias` says which experts the router likes.
    pub fn new(kind: Kind, bias: &[f32]) -> Weights {
        Weights::nth(0, kind, bias)
    }

    /// Those of the n-th layer of a model.
    pub fn nth(layer: usize, kind: Kind, bias: &[f32]) -> Weights {
        let seed = 10_000 * layer as u64;
        // Logits of about one: with a bias of 20 no token chooses otherwise.
        let router = values(bias.len() * D_MODEL, seed + 7).iter().map(|w| 0.2 * w).collect();
        let ffn = |e: usize| Ffn::new(D_FF, true, seed + 100 + 6 * e as u64);
        Weights {
            kind,
            router,
            bias: bias.to_vec(),
            experts: (0..bias.len()).map(ffn).collect(),
            shared: Ffn::new(D_SHARED, kind.shared == Shared::Ungated, 40),
            shared_gate: values(D_MODEL, 50).iter().map(|w| 0.3 * w).collect(),
        }
    }

    /// The layer as rank `rank` of `ranks` holds it.
    pub fn layer(&self, dtype: Dtype, ranks: usize, rank: usize) -> MoeLayer {
        let (kind, experts) = (self.kind, self.experts.len());
        let shared = || SharedExpert {
            expert: self.shared.expert(kind.gated, dtype),
            gate: (kind.shared == Shared::Gated).then(|| pack(&self.shared_gate, None)),
        };
        MoeLayer {
            index: 0,
            name: "test.ffn".into(),
            rule: Rule::Softmax {
                top_k: kind.top_k,
                groups: None,
                renormalise: kind.renormalise,
                factor: if kind.renormalise { 1.0 } else { FACTOR },
            },
            router: Arc::new(pack(&self.router, Some(&self.bias))),
            next: None,
            epilogue: if kind.gated {
                Epilogue::Gated(Activation::Silu)
            } else {
                Epilogue::Relu
            },
            experts: Experts::Resident(self.packed(dtype, Owners::block(experts, ranks, rank))),
            shared: (kind.shared != Shared::No).then(shared),
            owners: Owners::blocks(experts, ranks),
            dtype,
            scale: SCALE,
        }
    }

    /// Some of the experts.
    pub fn packed(&self, dtype: Dtype, experts: Range<usize>) -> Vec<Expert> {
        experts
            .map(|e| self.experts[e].expert(self.kind.gated, dtype))
            .collect()
    }

    /// The layer written out in float64; `round` is what holding an expert's input or the weights of an output in their
    /// type does to them.
    pub fn written_out(&self, normed: &[f32], x: &[f32], round: Round) -> Vec<f64> {
        let Kind {
            top_k,
            renormalise,
            gated,
            shared,
        } = self.kind;
        let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (input, y) in normed.chunks_exact(D_MODEL).zip(y.chunks_exact_mut(D_MODEL)) {
            let input: Vec<f64> = input.iter().map(|&v| f64::from(v)).collect();
            let logits = product(&input, &self.router, Some(&self.bias), <[f64]>::to_vec);
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            let p: Vec<f64> = logits.iter().map(|l| l.exp() / total).collect();
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            order.truncate(top_k);
            let sum: f64 = order.iter().map(|&e| p[e]).sum();
            for &e in &order {
                let output = self.experts[e].written_out(&input, gated, 1.0, round);
                let weight = if renormalise { p[e] / sum } else { 2.5 * p[e] };
                y.iter_mut().zip(&output).for_each(|(y, o)| *y += 0.8 * weight * o);
            }
            let opened = match shared {
                Shared::No => continue,
                Shared::Ungated => 1.0,
                Shared::Gated => 1.0 / (1.0 + (-product(&input, &self.shared_gate, None, <[f64]>::to_vec)[0]).exp()),
            };
            let output = self.shared.written_out(&input, gated, opened, round);
            y.iter_mut().zip(&output).for_each(|(y, o)| *y += o);
        }
        y
    }
}

/// A matrix `[any, d_model]` in float32.
fn pack(weights: &[f32], bias: Option<&[f32]>) -> Linear {
    let part = Part {
        weights: Source::F32(weights),
        bias,
    };
    Linear::pack(D_MODEL, &[part], Dtype::F32).unwrap()
}

/// What a type makes of a row.
pub type Round = fn(&[f64]) -> Vec<f64>;

fn product(x: &[f64], weights: &[f32], bias: Option<&[f32]>, round: Round) -> Vec<f64> {
    let rounded = round(x);
    let row = |w: &[f32]| {
        let w: Vec<f64> = w.iter().map(|&w| f64::from(w)).collect();
        rounded.iter().zip(round(&w)).map(|(x, w)| x * w).sum::<f64>()
    };
    weights
        .chunks_exact(x.len())
        .enumerate()
        .map(|(i, w)| row(w) + bias.map_or(0.0, |b| f64::from(b[i])))
        .collect()
}

pub fn to_bf16(row: &[f64]) -> Vec<f64> {
    row.iter().map(|&v| f64::from(bf16::from_f64(v))).collect()
}

pub fn to_int8(row: &[f64]) -> Vec<f64> {
    let scale = row.iter().fold(0.0, |m: f64, v| m.max(v.abs())) / 127.0;
    row.iter()
        .map(|v| if scale > 0.0 { (v / scale).round() * scale } else { 0.0 })
        .collect()
}
