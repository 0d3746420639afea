//! Reference checkpoints: ids and scores are the reference's, and nothing depends on how the work was shared.

use crate::datasets::{assert_equal, invariant, Datasets};
use crate::place::{read, shared, Place};
use serde_json::{json, Value};
use sluicegate::results::Status;
use std::fs;
use std::path::{Path, PathBuf};

/// Items without text: the program leaves them blank, the reference makes something up.
const BLANK: [usize; 2] = [3, 4];

/// The reference's ways to generate: name and flags.
const MODES: [(&str, &str); 3] = [
    ("greedy", ""),
    ("beam4", "--num-beams 4"),
    (
        "beam4_alt",
        "--num-beams 4 --length-penalty 0.6 --early-stopping true --no-repeat-ngram-size 3",
    ),
];

/// Largest difference of a score. Beam scores are within 6e-6; greedy's, sums of up to 32 log-probabilities that are not
/// divided by length, within 7.5e-5.
const BOUND: f64 = 1e-4;

/// Ways to share the work: ranks and flags.
const SHARED: [(usize, &str); 9] = [
    (1, "--batch-tokens 1"),
    (2, "--batch-tokens 60"),
    (4, "--expert-parallel 2 --batch-tokens 60"),
    (3, ""),
    (2, "--expert-parallel 1"),
    (4, "--batch-tokens 1"),
    (4, "--expert-parallel 1"),
    (3, "--expert-parallel 1 --batch-tokens 1"),
    (2, "--expert-parallel 2 --threads 2 --segment-seconds 0.1"),
];

struct Golden {
    model: PathBuf,
    items: Vec<Value>,
    /// The items as JSONL: some texts have line breaks.
    input: PathBuf,
}

impl Golden {
    fn open(place: &Place, name: &str) -> Option<Golden> {
        let model = shared("oracle/ckpt")?.join(name);
        let golden = fs::read(model.join("golden.json")).expect("golden.json");
        let golden: Value = serde_json::from_slice(&golden).expect("JSON");
        let items = golden["items"].as_array().expect("items").clone();
        let lines = items.iter().enumerate();
        let lines = lines.map(|(i, item)| json!({"custom_id": i, "text": item["text"]}).to_string() + "\n");
        let input = place.write("items.jsonl", lines.collect::<String>());
        Some(Golden { model, items, input })
    }

    /// Compares a results file with the reference; gives the largest difference of a score.
    fn check(&self, out: &Path, mode: &str) -> f64 {
        let rows = read(out);
        assert_eq!(rows.len(), self.items.len());
        let mut worst = 0f64;
        for (i, (row, item)) in rows.iter().zip(&self.items).enumerate() {
            assert_eq!(row.id.as_deref(), Some(i.to_string().as_str()));
            if BLANK.contains(&i) {
                assert_eq!((row.status, row.output.as_str(), row.ids.len()), (Status::Blank, "", 0));
                continue;
            }
            let wanted: Vec<u32> = serde_json::from_value(item[mode]["ids"].clone()).expect("ids");
            assert_eq!(row.ids, wanted[1..], "{mode}, item {i}");
            assert_eq!(
                row.output,
                item[mode]["text"].as_str().expect("text"),
                "{mode}, item {i}"
            );
            let gap = (f64::from(row.score) - item[mode]["score"].as_f64().expect("score")).abs();
            assert!(gap < BOUND, "{mode}, item {i}: the score is off by {gap:.2e}");
            worst = worst.max(gap);
            let cut = item["ids"].as_array().expect("ids").len() > item["prompt"].as_array().expect("ids").len();
            let ended = row.ids.last() == Some(&2);
            let status = match (ended, cut) {
                (false, _) => Status::LengthLimit,
                (true, true) => Status::InputCut,
                (true, false) => Status::Ok,
            };
            assert_eq!(row.status, status, "{mode}, item {i}");
        }
        worst
    }
}

fn play(name: &str) {
    let Some(place) = Place::new() else { return };
    let Some(golden) = Golden::open(&place, name) else {
        return;
    };
    let always = "--source eng_Latn --target fra_Latn --dtype f32 --max-new-tokens 32 --scores";
    let mut number = 0;
    for (mode, flags) in MODES {
        // Routes of tokens are kept in one mode, counts in the others.
        let routing = if mode == "beam4" { "tokens" } else { "counts" };
        let mut run = |ranks: usize, sharing: &str| -> Datasets {
            number += 1;
            let out = format!("{number}.h5");
            let flags = format!("{always} --routing {routing} {flags} {sharing}");
            place.translate(ranks, &golden.model, &golden.input, &out, &flags).ok();
            let worst = golden.check(&place.path(&out), mode);
            println!("{name}, {mode}, {ranks} ranks {sharing}: scores within {worst:.1e}");
            invariant(&place.path(&out))
        };
        let one = run(1, "");
        assert!([
            "/tokens/ids",
            "/scores/logprobs",
            "/routing/encode/totals",
            "/routing/decode/totals"
        ]
        .iter()
        .all(|dataset| one.contains_key(*dataset)));
        let ways = if mode == "greedy" { SHARED.len() } else { 4 };
        for (ranks, sharing) in &SHARED[..ways] {
            assert_equal(
                &run(*ranks, sharing),
                &one,
                &format!("{name}, {mode} on {ranks} ranks {sharing}"),
            );
        }
    }
}

#[test]
fn s1_gives_the_references_results_however_it_is_shared() {
    play("nllb-moe-s1");
}

#[test]
fn s2_sharded_bf16_with_router_bias_gives_the_references_results_however_it_is_shared() {
    play("nllb-moe-s2-bf16-shard-bias");
}

#[test]
fn a_checkpoint_that_would_drop_tokens_runs_dropless_with_a_warning() {
    let Some(place) = Place::new() else { return };
    let Some(golden) = Golden::open(&place, "nllb-moe-s3-drop") else {
        return;
    };
    let flags = "--source eng_Latn --target fra_Latn --dtype f32 --max-new-tokens 32 --routing counts";
    let end = place.translate(2, &golden.model, &golden.input, "out.h5", flags);
    end.says(&["moe_eval_capacity_token_fraction", "none are dropped"]);
    assert_eq!(
        end.stderr.matches("none are dropped").count(),
        1,
        "said once: {}",
        end.stderr
    );
    end.ok();
    // Every token of every row went through two experts of each layer: nothing was dropped.
    let results = sluicegate::results::Results::open(&place.path("out.h5")).expect("results");
    let layout = results.routing().expect("routing");
    let generated = results.tokens();
    for loads in results
        .expert_totals(sluicegate::results::Phase::Decode)
        .expect("totals")
        .chunks(layout.experts)
    {
        assert_eq!(loads.iter().sum::<u64>(), layout.top_k as u64 * generated);
    }
}
