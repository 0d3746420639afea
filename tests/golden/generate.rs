//! Greedy and beam search against the reference's ids and scores.

use crate::{device, ids, Golden};
use serde_json::Value;
use sluicegate::comm::{threads, Comm};
use sluicegate::decode::batch::{Batch, Finished, Output, Request};
use sluicegate::decode::limits::Limits;
use sluicegate::decode::search::{EarlyStopping, Settings};
use sluicegate::moe::Context;

/// The reference's three ways of generating.
const MODES: [&str; 3] = ["greedy", "beam4", "beam4_alt"];

fn settings(mode: &str) -> Settings {
    let plain = Settings {
        beams: if mode == "greedy" { 1 } else { 4 },
        max_length: 33,
        min_length: 0,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::False,
        no_repeat_ngram: 0,
        forced_eos: None,
        start: 2,
        eos: vec![2],
    };
    match mode {
        "beam4_alt" => Settings {
            length_penalty: 0.6,
            early_stopping: EarlyStopping::True,
            no_repeat_ngram: 3,
            ..plain
        },
        _ => plain,
    }
}

/// One rank's part of the job: every `ranks`-th item, all in flight at once as far as `tokens` goes.
fn translate(golden: &Golden, comm: &dyn Comm, mode: &str, tokens: usize) -> Vec<Finished> {
    let device = device(1);
    let mut model = golden.load(comm.rank(), comm.size());
    let shape = model.shape();
    let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
    let mut batch = Batch::new(settings(mode), Limits::of(tokens, 1), model.as_ref());
    for i in (comm.rank()..golden.items().len()).step_by(comm.size()) {
        let outputs = vec![Output {
            key: i as u64,
            forced: Some(golden.forced_bos()),
            credits_source: true,
        }];
        batch.push(Request {
            ids: ids(&golden.items()[i]["prompt"]),
            outputs,
        });
    }
    let mut found = Vec::new();
    for step in 0.. {
        let mut all = Vec::new();
        comm.all_gather(&[(batch.waiting() > 0) as u8, (batch.active() > 0) as u8], &mut all);
        if all.iter().all(|&b| b == 0) {
            break;
        }
        if all.chunks(2).any(|b| b[0] != 0) {
            batch.encode(&mut ctx, model.as_mut(), 2 * step, 1);
        }
        found.extend(batch.step(&mut ctx, model.as_mut(), 2 * step + 1));
        assert!(ctx.failure.is_none(), "{:?}", ctx.failure);
    }
    found
}

fn all_ranks(golden: &Golden, ranks: usize, mode: &str, tokens: usize) -> Vec<Finished> {
    let mut all: Vec<Finished> = threads::run(ranks, |comm| translate(golden, comm, mode, tokens))
        .into_iter()
        .flatten()
        .collect();
    all.sort_by_key(|f| f.key);
    assert_eq!(all.len(), golden.items().len());
    all
}

fn check(golden: &Golden, mode: &str, found: &[Finished]) {
    for f in found {
        let wanted: &Value = &golden.items()[f.key as usize][mode];
        assert_eq!(f.hypothesis.ids, ids(&wanted["ids"]), "{mode} of item {}", f.key);
        let score = wanted["score"].as_f64().expect("score");
        assert!(
            (f64::from(f.hypothesis.score) - score).abs() < 1e-4,
            "{mode} score of item {}: {} {score}",
            f.key,
            f.hypothesis.score
        );
    }
}

/// Everything that may not depend on how the work was shared, to the bit.
fn bits(found: &[Finished]) -> Vec<(Vec<u32>, u32, Vec<u32>)> {
    let of = |f: &Finished| {
        let h = &f.hypothesis;
        (
            h.ids.clone(),
            h.score.to_bits(),
            h.logprobs.iter().map(|p| p.to_bits()).collect(),
        )
    };
    found.iter().map(of).collect()
}

fn play(name: &str) {
    let Some(golden) = Golden::open(name) else { return };
    for mode in MODES {
        let one = all_ranks(&golden, 1, mode, 4096);
        check(&golden, mode, &one);
        for (ranks, tokens) in [
            (1, 1),
            (1, 100),
            (2, 4096),
            (2, 60),
            (3, 4096),
            (3, 1),
            (4, 200),
            (9, 4096),
        ] {
            let shared = all_ranks(&golden, ranks, mode, tokens);
            assert_eq!(
                bits(&shared),
                bits(&one),
                "{mode} on {ranks} ranks with {tokens} tokens in flight"
            );
        }
    }
}

#[test]
fn s1_generates_what_the_reference_does() {
    play("nllb-moe-s1");
}

#[test]
fn s2_sharded_bf16_with_router_bias_generates_what_the_reference_does() {
    play("nllb-moe-s2-bf16-shard-bias");
}
