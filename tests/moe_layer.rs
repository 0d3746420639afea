//! The MoE layer over in-process ranks: the same bits on any number of them, and the numbers of the layer written out.
use std::sync::mpsc;
use std::time::Duration;

use half::bf16;
use sluicegate::comm::threads;
use sluicegate::comm::Comm;
use sluicegate::device::{Cpu, Dtype, Linear, Part, Source};
use sluicegate::moe::dispatch::Owners;
use sluicegate::moe::gate::Rule;
use sluicegate::moe::layer::{Expert, MoeBuffers, MoeLayer};
use sluicegate::moe::Context;

/// More than one piece of a row's sum, and no multiple of anything.
const D_MODEL: usize = 70;
const D_FF: usize = 45;
const SCALE: f32 = 0.8;

/// Numbers without a pattern, from -1 to 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// The weights of a whole layer, as a checkpoint would have them.
struct Weights {
    experts: usize,
    router: Vec<f32>,
    bias: Vec<f32>,
    /// Of each expert: `[d_ff, d_model]`, `[d_ff]`, `[d_model, d_ff]`, `[d_model]`.
    ffn: Vec<[Vec<f32>; 4]>,
}

impl Weights {
    /// Random weights; `bias` says which experts the router likes.
    fn new(bias: &[f32]) -> Weights {
        let ffn = |e: usize| {
            let seed = 100 + 4 * e as u64;
            [
                values(D_FF * D_MODEL, seed),
                values(D_FF, seed + 1),
                values(D_MODEL * D_FF, seed + 2),
                values(D_MODEL, seed + 3),
            ]
        };
        // Logits of about one: with a bias of 20 no token chooses otherwise.
        let router = values(bias.len() * D_MODEL, 7).iter().map(|w| 0.2 * w).collect();
        Weights {
            experts: bias.len(),
            router,
            bias: bias.to_vec(),
            ffn: (0..bias.len()).map(ffn).collect(),
        }
    }

    /// The layer as rank `rank` of `ranks` holds it.
    fn layer(&self, dtype: Dtype, ranks: usize, rank: usize) -> MoeLayer {
        let expert = |e: usize| {
            let [up, up_bias, down, down_bias] = &self.ffn[e];
            Expert {
                up: pack(D_MODEL, up, up_bias, dtype),
                down: pack(D_FF, down, down_bias, dtype),
            }
        };
        MoeLayer {
            index: 0,
            name: "test.ffn".into(),
            rule: Rule::top(2),
            router: pack(D_MODEL, &self.router, &self.bias, Dtype::F32),
            experts: Owners::block(self.experts, ranks, rank).map(expert).collect(),
            owners: Owners::blocks(self.experts, ranks),
            dtype,
            scale: SCALE,
        }
    }

    /// The layer written out in float64; `round` is what holding an expert's input or the weights of an output in their
    /// type does to them.
    fn written_out(&self, normed: &[f32], x: &[f32], round: Round) -> Vec<f64> {
        let mut y: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        for (input, y) in normed.chunks_exact(D_MODEL).zip(y.chunks_exact_mut(D_MODEL)) {
            let input: Vec<f64> = input.iter().map(|&v| f64::from(v)).collect();
            let logits = product(&input, &self.router, &self.bias, <[f64]>::to_vec);
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            let p: Vec<f64> = logits.iter().map(|l| l.exp() / total).collect();
            let mut order: Vec<usize> = (0..p.len()).collect();
            order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
            for &e in &order[..2] {
                let [up, up_bias, down, down_bias] = &self.ffn[e];
                let mut hidden = product(&input, up, up_bias, round);
                hidden.iter_mut().for_each(|h| *h = h.max(0.0));
                let output = product(&hidden, down, down_bias, round);
                let weight = p[e] / (p[order[0]] + p[order[1]]);
                y.iter_mut().zip(&output).for_each(|(y, o)| *y += 0.8 * weight * o);
            }
        }
        y
    }
}

fn pack(inputs: usize, weights: &[f32], bias: &[f32], dtype: Dtype) -> Linear {
    let part = Part {
        weights: Source::F32(weights),
        bias: Some(bias),
    };
    Linear::pack(inputs, &[part], dtype).unwrap()
}

/// What a type makes of a row.
type Round = fn(&[f64]) -> Vec<f64>;

fn product(x: &[f64], weights: &[f32], bias: &[f32], round: Round) -> Vec<f64> {
    let rounded = round(x);
    let row = |w: &[f32]| {
        let w: Vec<f64> = w.iter().map(|&w| f64::from(w)).collect();
        rounded.iter().zip(round(&w)).map(|(x, w)| x * w).sum::<f64>()
    };
    weights
        .chunks_exact(x.len())
        .zip(bias)
        .map(|(w, &b)| row(w) + f64::from(b))
        .collect()
}

fn to_bf16(row: &[f64]) -> Vec<f64> {
    row.iter().map(|&v| f64::from(bf16::from_f64(v))).collect()
}

fn to_int8(row: &[f64]) -> Vec<f64> {
    let scale = row.iter().fold(0.0, |m: f64, v| m.max(v.abs())) / 127.0;
    row.iter()
        .map(|v| if scale > 0.0 { (v / scale).round() * scale } else { 0.0 })
        .collect()
}

/// Every rank's input of one step: what the layer reads, and what it adds to, `[tokens, d_model]`.
#[derive(Clone)]
struct Input {
    normed: Vec<f32>,
    x: Vec<f32>,
}

fn inputs(tokens: &[usize], seed: u64) -> Vec<Input> {
    let input = |(i, &n): (usize, &usize)| Input {
        normed: values(n * D_MODEL, seed + 2 * i as u64),
        x: values(n * D_MODEL, seed + 2 * i as u64 + 1),
    };
    tokens.iter().enumerate().map(input).collect()
}

/// All ranks' tokens as one rank's, in rank order.
fn joined(inputs: &[Input]) -> Input {
    Input {
        normed: inputs.iter().flat_map(|i| i.normed.iter().copied()).collect(),
        x: inputs.iter().flat_map(|i| i.x.iter().copied()).collect(),
    }
}

/// What one rank has after some steps.
struct Outcome {
    /// The layer's output of each step.
    outputs: Vec<Vec<f32>>,
    loads: Vec<u64>,
    failure: Option<String>,
}

fn rank_work(weights: &Weights, dtype: Dtype, steps: &[Vec<Input>], comm: &dyn Comm) -> Outcome {
    let cpu = Cpu::new(1).unwrap();
    let layer = weights.layer(dtype, comm.size(), comm.rank());
    let mut ctx = Context::new(&cpu, comm, 1, weights.experts, false);
    // The same buffers step after step: whatever an earlier one left in them must not show.
    let mut buffers = MoeBuffers::default();
    let outputs = steps.iter().map(|ranks| {
        let Input { mut normed, mut x } = ranks[comm.rank()].clone();
        layer.forward(&mut ctx, &mut buffers, &mut normed, &mut x);
        x
    });
    let outputs = outputs.collect();
    Outcome {
        outputs,
        loads: ctx.loads[0].clone(),
        failure: ctx.failure.map(|e| format!("{e:#}")),
    }
}

/// `steps[step][rank]` through the layer on as many ranks as there are; fails where a rank waits for ever.
fn on_ranks(bias: &[f32], dtype: Dtype, steps: Vec<Vec<Input>>) -> Vec<Outcome> {
    let (bias, (done, outcome)) = (bias.to_vec(), mpsc::channel());
    std::thread::spawn(move || {
        let weights = Weights::new(&bias);
        let outcomes = threads::run(steps[0].len(), |comm| rank_work(&weights, dtype, &steps, comm));
        done.send(outcomes)
    });
    outcome
        .recv_timeout(Duration::from_secs(120))
        .expect("a rank hangs or panicked")
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Tokens of each rank, step by step, uneven and none among them.
fn tokens(ranks: usize) -> Vec<Vec<usize>> {
    let steps: [[usize; 5]; 5] = [
        [7, 0, 13, 1, 4],
        [40, 33, 2, 0, 9],
        [0, 0, 0, 0, 5],
        [0, 0, 0, 0, 0],
        [1, 6, 0, 21, 3],
    ];
    steps.iter().map(|step| step[5 - ranks..].to_vec()).collect()
}

fn as_on_one_rank(name: &str, bias: &[f32], dtype: Dtype) {
    for ranks in 1..=5 {
        let steps: Vec<Vec<Input>> = (0..)
            .zip(tokens(ranks))
            .map(|(i, step)| inputs(&step, 1000 + 50 * i))
            .collect();
        let alone: Vec<Vec<Input>> = steps.iter().map(|step| vec![joined(step)]).collect();
        let expected = on_ranks(bias, dtype, alone.clone()).remove(0);
        let got = on_ranks(bias, dtype, steps);
        assert!(got.iter().all(|o| o.failure.is_none()) && expected.failure.is_none());
        for (i, expected) in expected.outputs.iter().enumerate() {
            let all: Vec<f32> = got.iter().flat_map(|o| o.outputs[i].iter().copied()).collect();
            assert_eq!(bits(&all), bits(expected), "{name}, {ranks} ranks, step {i}");
        }
        let sum = |e: usize| got.iter().map(|o| o.loads[e]).sum::<u64>();
        assert_eq!((0..bias.len()).map(sum).collect::<Vec<_>>(), expected.loads, "{name}");
        is_written_out(name, bias, dtype, &alone, &expected.outputs);
    }
}

fn is_written_out(name: &str, bias: &[f32], dtype: Dtype, steps: &[Vec<Input>], outputs: &[Vec<f32>]) {
    // A hidden value that float32 and float64 round to different bfloat16 numbers moves the sum by about 2^-8 of a
    // term; one that they round to different whole numbers of int8 by about 2^-7 of the largest hidden value.
    let (round, tolerance): (Round, f64) = match dtype {
        Dtype::F32 => (<[f64]>::to_vec, 1e-4),
        Dtype::Bf16 => (to_bf16, 5e-2),
        Dtype::Int8 => (to_int8, 2e-1),
    };
    let weights = Weights::new(bias);
    for (step, output) in steps.iter().zip(outputs) {
        let expected = weights.written_out(&step[0].normed, &step[0].x, round);
        assert_eq!(expected.len(), output.len());
        for (i, (&got, want)) in output.iter().zip(&expected).enumerate() {
            let far = (f64::from(got) - want).abs();
            let (token, at) = (i / D_MODEL, i % D_MODEL);
            assert!(
                far < tolerance,
                "{name}, token {token}, element {at}: {got}, not {want}"
            );
        }
    }
}

fn everywhere(name: &str, bias: &[f32]) {
    as_on_one_rank(name, bias, Dtype::F32);
    as_on_one_rank(name, bias, Dtype::Bf16);
    as_on_one_rank(name, bias, Dtype::Int8);
}

#[test]
fn spread_tokens() {
    everywhere("spread", &[0.0; 8]);
}

#[test]
fn uneven_blocks_of_experts() {
    everywhere("uneven", &[0.0; 7]);
}

#[test]
fn skewed_tokens() {
    everywhere("skewed", &[0.0, 0.4, 2.0, 1.2, -0.8, 0.2, -2.0, 0.8]);
}

#[test]
fn all_tokens_to_one_expert() {
    let mut bias = [0.0; 8];
    bias[5] = 2.5;
    everywhere("one expert", &bias);
    let n: usize = tokens(3).iter().flatten().sum();
    let steps = tokens(3).iter().map(|step| inputs(step, 3)).collect();
    let outcomes = on_ranks(&bias, Dtype::F32, steps);
    let load = outcomes.iter().map(|o| o.loads[5]).sum::<u64>();
    assert_eq!(load, n as u64, "the test's router sends every token to expert 5");
}

#[test]
fn all_tokens_to_two_experts_of_one_rank_or_two() {
    for pair in [[6, 7], [0, 7]] {
        let mut bias = [0.0; 8];
        pair.iter().for_each(|&e: &usize| bias[e] = 20.0);
        everywhere("two experts", &bias);
    }
}

#[test]
fn more_ranks_than_experts() {
    everywhere("three experts", &[0.0; 3]);
    everywhere("two experts", &[0.0; 2]);
}

#[test]
fn a_nan_is_its_own_ranks_failure_and_nobody_waits() {
    for ranks in 1..=5 {
        for bad in 0..ranks {
            let counts: Vec<usize> = (0..ranks).map(|r| if r == bad { 4 } else { 3 * r }).collect();
            let clean: Vec<Vec<Input>> = (0..3).map(|i| inputs(&counts, 10 * i)).collect();
            let mut steps = clean.clone();
            steps[1][bad].normed[2 * D_MODEL + 3] = f32::NAN;
            for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
                let expected = on_ranks(&[0.0; 6], dtype, clean.clone());
                let got = on_ranks(&[0.0; 6], dtype, steps.clone());
                for (r, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    // The failed rank goes on without tokens of its own; all others are none the wiser.
                    let known = if r == bad { 1 } else { 3 };
                    for i in 0..known {
                        assert_eq!(bits(&got.outputs[i]), bits(&expected.outputs[i]), "rank {r}, step {i}");
                    }
                    for (output, step) in got.outputs.iter().zip(&steps).skip(known) {
                        assert_eq!(bits(output), bits(&step[r].x), "left alone");
                    }
                    assert_eq!(got.failure.is_some(), r == bad, "rank {r}: {:?}", got.failure);
                }
                let message = got[bad].failure.as_deref().unwrap_or_default();
                assert!(message.contains("test.ffn") && message.contains("NaN"), "{message}");
            }
        }
    }
}
