//! The MoE layer over in-process ranks: the same bits on any number of them, and the numbers of the layer written out.

mod buffered;
mod weights;

use std::sync::mpsc;
use std::time::Duration;

use sluicegate::comm::threads;
use sluicegate::comm::Comm;
use sluicegate::device::{Cpu, Dtype};
use sluicegate::moe::layer::MoeBuffers;
use sluicegate::moe::Context;
use weights::{to_bf16, to_int8, values, Kind, Round, Shared, Weights, D_MODEL, TOP_TWO};

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
    // One thread where all tokens are on one rank.
    let cpu = Cpu::new(comm.size().min(2)).unwrap();
    let layer = weights.layer(dtype, comm.size(), comm.rank());
    let mut ctx = Context::new(&cpu, comm, 1, weights.experts.len(), false);
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
fn on_ranks(kind: Kind, bias: &[f32], dtype: Dtype, steps: Vec<Vec<Input>>) -> Vec<Outcome> {
    let (bias, (done, outcome)) = (bias.to_vec(), mpsc::channel());
    std::thread::spawn(move || {
        let weights = Weights::new(kind, &bias);
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

fn as_on_one_rank(name: &str, kind: Kind, bias: &[f32], dtype: Dtype) {
    (1..=5).for_each(|ranks| steps_as_on_one_rank(name, kind, bias, dtype, &tokens(ranks)));
}

/// `tokens[step][rank]` of any number of ranks.
fn steps_as_on_one_rank(name: &str, kind: Kind, bias: &[f32], dtype: Dtype, tokens: &[Vec<usize>]) {
    let ranks = tokens[0].len();
    let steps: Vec<Vec<Input>> = (0..).zip(tokens).map(|(i, step)| inputs(step, 1000 + 50 * i)).collect();
    let alone: Vec<Vec<Input>> = steps.iter().map(|step| vec![joined(step)]).collect();
    let expected = on_ranks(kind, bias, dtype, alone.clone()).remove(0);
    let got = on_ranks(kind, bias, dtype, steps);
    assert!(got.iter().all(|o| o.failure.is_none()) && expected.failure.is_none());
    for (i, expected) in expected.outputs.iter().enumerate() {
        let all: Vec<f32> = got.iter().flat_map(|o| o.outputs[i].iter().copied()).collect();
        assert_eq!(bits(&all), bits(expected), "{name}, {ranks} ranks, step {i}");
    }
    let sum = |e: usize| got.iter().map(|o| o.loads[e]).sum::<u64>();
    assert_eq!((0..bias.len()).map(sum).collect::<Vec<_>>(), expected.loads, "{name}");
    is_written_out(name, kind, bias, dtype, &alone, &expected.outputs);
}

fn is_written_out(name: &str, kind: Kind, bias: &[f32], dtype: Dtype, steps: &[Vec<Input>], outputs: &[Vec<f32>]) {
    // A hidden value that float32 and float64 round to different bfloat16 numbers moves the sum by about 2^-8 of a
    // term; one that they round to different whole numbers of int8 by about 2^-7 of the largest hidden value.
    let (round, tolerance): (Round, f64) = match dtype {
        Dtype::F32 => (<[f64]>::to_vec, 1e-4),
        Dtype::Bf16 => (to_bf16, 5e-2),
        Dtype::Int8 => (to_int8, 2e-1),
    };
    let weights = Weights::new(kind, bias);
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
    with_kind(name, TOP_TWO, bias);
}

fn with_kind(name: &str, kind: Kind, bias: &[f32]) {
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        as_on_one_rank(name, kind, bias, dtype);
    }
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
    let outcomes = on_ranks(TOP_TWO, &bias, Dtype::F32, steps);
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
fn one_expert_a_token() {
    let kind = Kind {
        top_k: 1,
        ..Kind::default()
    };
    with_kind("one of eight", kind, &[0.0; 8]);
    with_kind("one gated of two", Kind { gated: true, ..kind }, &[0.0; 2]);
}

#[test]
fn three_gated_experts_a_token() {
    let kind = Kind {
        top_k: 3,
        renormalise: true,
        gated: true,
        shared: Shared::No,
    };
    with_kind("three of seven", kind, &[0.0, 1.0, -1.0, 0.0, 2.0, 0.0, 0.5]);
    with_kind("three of three", kind, &[0.0; 3]);
}

#[test]
fn eight_gated_experts_a_token_beside_a_shared_one() {
    for shared in [Shared::Ungated, Shared::Gated] {
        let kind = Kind {
            top_k: 8,
            renormalise: shared == Shared::Gated,
            gated: true,
            shared,
        };
        with_kind("eight of twelve", kind, &[0.0; 12]);
        with_kind("eight of eight", kind, &[0.5; 8]);
    }
}

#[test]
fn more_tokens_than_a_thread_takes_at_a_time() {
    for (kind, experts) in [
        (TOP_TWO, 5),
        (
            Kind {
                top_k: 8,
                shared: Shared::Gated,
                ..TOP_TWO
            },
            11,
        ),
    ] {
        for dtype in [Dtype::F32, Dtype::Int8] {
            steps_as_on_one_rank("many tokens", kind, &vec![0.0; experts], dtype, &[vec![700, 0, 600]]);
        }
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
            let kinds = [(Dtype::F32, TOP_TWO), (Dtype::Bf16, TOP_TWO), (Dtype::Int8, TOP_TWO)];
            let shared = Kind {
                shared: Shared::Gated,
                ..TOP_TWO
            };
            for (dtype, kind) in kinds.into_iter().chain([(Dtype::F32, shared)]) {
                let expected = on_ranks(kind, &[0.0; 6], dtype, clean.clone());
                let got = on_ranks(kind, &[0.0; 6], dtype, steps.clone());
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
