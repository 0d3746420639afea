//! `sluice score`: the reference's log-probabilities and perplexities, whatever the ranks, windows and inputs.

use crate::datasets::{assert_equal, invariant, Datasets};
use crate::place::{bundled, read, shared, Place};
use serde_json::{json, Value};
use sluicegate::results::{MetricValue, Results, Row, Status};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Log-probabilities of one text by another sum of float32 numbers.
const BOUND: f64 = 1e-4;

/// Ways to share the work: ranks and flags.
const SHARED: [(usize, &str); 5] = [
    (2, ""),
    (3, "--activation-memory 100K"),
    (1, "--activation-memory 50M --threads 2"),
    (2, "--expert-parallel 1 --activation-memory 300K"),
    (4, "--expert-parallel 2 --segment-seconds 0.1"),
];

/// Numbers of `/metrics`.
fn metrics(out: &Path) -> BTreeMap<String, f64> {
    let metrics = Results::open(out).expect("results").metrics().expect("metrics");
    let number = |value| match value {
        MetricValue::Number(x) => Some(x),
        MetricValue::Count(n) => Some(n as f64),
        MetricValue::Text(_) => None,
    };
    metrics
        .into_iter()
        .filter_map(|m| Some((m.name, number(m.value)?)))
        .collect()
}

fn lm() -> PathBuf {
    bundled("lm")
}

/// Rows without their numbers.
fn scores(rows: &[Row]) -> Vec<(&str, &[u32], &[f32])> {
    rows.iter()
        .map(|r| (r.input.as_str(), r.ids.as_slice(), r.logprobs.as_slice()))
        .collect()
}

#[test]
fn the_bundled_text_has_the_references_perplexity() {
    let Some(place) = Place::new() else { return };
    let reference: Value = serde_json::from_slice(&fs::read(bundled("demo/guide.lm.json")).unwrap()).unwrap();
    let text = bundled("demo/guide.txt");
    let said = place.run_job("score", 2, &lm(), &text, "a.h5", "--dtype f32").ok();
    assert!(said.contains("perplexity") && said.contains("118.84"), "{said}");
    let found = metrics(&place.path("a.h5"));
    for (name, key) in [
        ("perplexity", "perplexity"),
        ("word_perplexity", "word_perplexity"),
        ("bits_per_byte", "bits_per_byte"),
        ("sum_logprob", "sum_logprob"),
        ("scored_tokens", "scored_tokens"),
    ] {
        let wanted = reference[key].as_f64().unwrap();
        let ratio = found[name] / wanted;
        assert!((ratio - 1.0).abs() < 1e-5, "{name}: {} {wanted}", found[name]);
    }
    for (row, wanted) in read(&place.path("a.h5"))
        .iter()
        .zip(reference["rows"].as_array().unwrap())
    {
        assert_eq!(json!(row.ids), wanted["ids"]);
        let logprobs = wanted["logprobs"].as_array().unwrap();
        assert_eq!(row.logprobs.len(), logprobs.len());
        for (found, wanted) in row.logprobs.iter().zip(logprobs) {
            assert!((f64::from(*found) - wanted.as_f64().unwrap()).abs() < BOUND);
        }
    }
    // In bfloat16, its own type, it is near.
    place.run_job("score", 1, &lm(), &text, "b.h5", "").ok();
    let near = metrics(&place.path("b.h5"))["perplexity"] / found["perplexity"];
    assert!((near - 1.0).abs() < 1e-2, "{near}");
    // What evaluate sums up is what the job says.
    let out = place.arg("a.h5");
    let said = place.sluice(&[], &["evaluate", &out, "--json"]).ok();
    assert!(said.contains("118.84"), "{said}");
}

/// A reference checkpoint's items as JSONL, those with scores.
fn items(place: &Place, model: &Path) -> (Vec<Value>, PathBuf) {
    let golden: Value = serde_json::from_slice(&fs::read(model.join("golden.json")).unwrap()).unwrap();
    let items = golden["items"].as_array().unwrap().clone();
    let line = |(i, item): (usize, &Value)| json!({"custom_id": i, "text": item["text"]}).to_string() + "\n";
    let lines: String = items.iter().enumerate().map(line).collect();
    let input = place.write("items.jsonl", lines);
    (items, input)
}

#[test]
fn reference_checkpoints_of_every_family_are_scored_as_the_reference_does() {
    let Some(place) = Place::new() else { return };
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    for family in [
        "olmoe-s1",
        "mixtral-s2-bf16-shard-sw",
        "mixtral-s3-fused-v5",
        "qwen2_moe-s1",
        "qwen3_moe-s2-v5style",
        "deepseek_v2-s1",
        "deepseek_v3-s2-yarn",
        "gpt_oss-s2-bf16",
    ] {
        let model = checkpoints.join(family);
        let (items, input) = items(&place, &model);
        let mut number = 0;
        let mut run = |ranks: usize, flags: &str| -> Datasets {
            number += 1;
            let out = format!("{family}-{number}.h5");
            let flags = format!("--dtype f32 --routing tokens --ranks --top 2 {flags}");
            place.run_job("score", ranks, &model, &input, &out, &flags).ok();
            invariant(&place.path(&out))
        };
        let one = run(1, "");
        for (row, item) in read(&place.path(&format!("{family}-1.h5"))).iter().zip(&items) {
            let wanted = item["score"]["logprobs"].as_array().cloned().unwrap_or_default();
            if row.status == Status::Blank {
                continue;
            }
            // The reference scores the first 96 tokens.
            let found = &row.logprobs[..wanted.len()];
            assert!(
                found.len() == row.logprobs.len() || found.len() == 95,
                "{family}: {}",
                row.input
            );
            let off = |(found, wanted): (&f32, &Value)| (f64::from(*found) - wanted.as_f64().unwrap()).abs();
            let worst = found.iter().zip(&wanted).map(off).fold(0.0, f64::max);
            assert!(worst < BOUND, "{family}, {:?}: off by {worst:.1e}", row.input);
        }
        assert!(one.contains_key("/scores/top_ids") && one.contains_key("/routing/decode/totals"));
        for (ranks, flags) in &SHARED[..2] {
            assert_equal(&run(*ranks, flags), &one, &format!("{family} on {ranks} ranks {flags}"));
        }
    }
}

#[test]
fn nothing_depends_on_ranks_portions_or_threads() {
    let Some(place) = Place::new() else { return };
    let text = bundled("demo/guide.txt");
    for flags in [
        "--window 16 --stride 5 --prefix eos --ranks",
        "--window 16 --top 3 --dtype bf16",
        "--dtype int8",
    ] {
        let first = format!("{flags} --overwrite");
        place.run_job("score", 1, &lm(), &text, "one.h5", &first).ok();
        let one = invariant(&place.path("one.h5"));
        for (i, (ranks, sharing)) in SHARED.iter().enumerate() {
            let (out, all) = (format!("{i}.h5"), format!("{flags} {sharing} --overwrite"));
            place.run_job("score", *ranks, &lm(), &text, &out, &all).ok();
            assert_equal(&invariant(&place.path(&out)), &one, &format!("{ranks} ranks, {all}"));
        }
    }
}

#[test]
fn windows_and_prefixes_decide_what_is_scored() {
    let Some(place) = Place::new() else { return };
    let line = fs::read_to_string(bundled("demo/guide.txt")).unwrap();
    let input = place.write("one.txt", line.lines().next().unwrap().to_owned() + "\n\nword\n");
    let tokens = |flags: &str| -> Vec<(usize, usize)> {
        let all = format!("--dtype f32 --overwrite {flags}");
        place.run_job("score", 1, &lm(), &input, "w.h5", &all).ok();
        let rows = read(&place.path("w.h5"));
        rows.iter().map(|r| (r.ids.len(), r.logprobs.len())).collect()
    };
    let whole = tokens("");
    let (n, one) = (whole[0].0, whole[2].0);
    assert_eq!(whole, [(n, n - 1), (0, 0), (one, one - 1)]);
    assert_eq!(tokens("--prefix eos"), [(n, n), (0, 0), (one, one)]);
    let cut = tokens("--window 10");
    assert_eq!(
        cut[0],
        (n, n - n.div_ceil(10)),
        "the first token of each window is not scored"
    );
    assert_eq!(tokens("--window 10 --stride 5")[0], (n, n - 1));
    assert_eq!(tokens("--window 10 --prefix eos")[0], (n, n));
    // Tokens of the first window have all before them to go by, those behind it less than they would in the whole text.
    let logprobs = |flags: &str| -> Vec<f32> {
        tokens(flags);
        read(&place.path("w.h5"))[0].logprobs.clone()
    };
    let whole = logprobs("");
    for window in [10, n - 1] {
        let found = logprobs(&format!("--window {window} --stride 1"));
        let same = found.iter().zip(&whole).take_while(|(a, b)| a == b).count();
        assert_eq!((found.len(), same), (n - 1, window - 1), "window {window}");
    }
}

#[test]
fn a_beginning_that_the_tokenizer_adds_is_a_prefix() {
    let Some(place) = Place::new() else { return };
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    let input = place.write("in.txt", "A short text.\nwords\n");
    let model = checkpoints.join("mixtral-s1");
    let scored = |prefix: &str| {
        let out = format!("{prefix}.h5");
        let flags = format!("--dtype f32 --prefix {prefix}");
        place.run_job("score", 1, &model, &input, &out, &flags).ok();
        let rows = read(&place.path(&out));
        let logprobs: Vec<Vec<f32>> = rows.iter().map(|row| row.logprobs.clone()).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.ids.len()).collect();
        let mut metrics = metrics(&place.path(&out));
        metrics.remove("tokens");
        (logprobs, lengths, metrics)
    };
    let (none, bos) = (scored("none"), scored("bos"));
    assert_eq!((&none.0, &none.2), (&bos.0, &bos.2));
    assert!(none.1.iter().zip(&bos.1).all(|(with, without)| *with == without + 1));
}

#[test]
fn inputs_come_in_all_forms_and_bad_rows_are_named() {
    let Some(place) = Place::new() else { return };
    let texts = ["First text of all.", "Second text.", "Third one."];
    let plain = place.write("plain.txt", texts.join("\n"));
    let rows = |input: &Path, out: &str, flags: &str| {
        let flags = format!("--dtype f32 {flags}");
        place.run_job("score", 2, &lm(), input, out, &flags).ok();
        read(&place.path(out))
    };
    let wanted = rows(&plain, "plain.h5", "");
    let lines = texts.iter().enumerate();
    let lines = lines.map(|(i, text)| json!({"id": format!("doc-{i}"), "body": {"text": text}}).to_string() + "\n");
    let jsonl = place.write("in.jsonl", lines.collect::<String>());
    let of_field = rows(&jsonl, "jsonl.h5", "--field body.text");
    assert_eq!(scores(&of_field), scores(&wanted));
    assert_eq!(of_field[2].id.as_deref(), Some("doc-2"));
    let tsv = place.write("in.tsv", "a\tFirst text of all.\nb\tSecond text.\nc\tThird one.\n");
    assert_eq!(scores(&rows(&tsv, "tsv.h5", "--columns text=2,id=1")), scores(&wanted));
    place.write("part-1.txt", "First text of all.\nSecond text.\n");
    place.write("part-2.txt", "Third one.\n");
    assert_eq!(
        scores(&rows(&place.path("part-*.txt"), "parts.h5", "")),
        scores(&wanted)
    );
    // A row that does not parse, one without the field: named by line; skipped, nothing else is lost.
    let bad = place.write(
        "bad.jsonl",
        "{\"text\": \"First text of all.\"}\n{\"text\": \n{\"txt\": \"x\"}\n{\"text\": \"Third one.\"}\n",
    );
    let end = place.run_job("score", 2, &lm(), &bad, "bad.h5", "");
    end.refused(&["line 2", "line 3", "2 of 4 rows"]);
    assert!(!place.left("bad.h5"));
    let end = place.run_job("score", 2, &lm(), &bad, "bad.h5", "--dtype f32 --on-error skip");
    assert_eq!((end.code, end.errors()), (1, 0), "{end:#?}");
    let rows = read(&place.path("bad.h5"));
    let statuses: Vec<Status> = rows.iter().map(|r| r.status).collect();
    assert_eq!(statuses, [Status::Ok, Status::Failed, Status::Failed, Status::Ok]);
    assert_eq!(rows[0].logprobs, wanted[0].logprobs);
    assert_eq!(rows[3].logprobs, wanted[2].logprobs);
}

#[test]
fn pairs_are_scored_after_their_sources() {
    let Some(place) = Place::new() else { return };
    let (english, french) = (bundled("demo/demo.eng"), bundled("demo/demo.fra"));
    let [english, french] = [english, french].map(|path| fs::read_to_string(path).unwrap());
    let lines = english.lines().zip(french.lines()).take(20);
    let pairs: String = lines.map(|(e, f)| format!("{e}\t{f}\n")).collect();
    let input = place.write("pairs.txt", pairs);
    let flags = "--pairs --source eng_Latn --target fra_Latn --dtype f32 --ranks";
    let run = |ranks, out: &str, more: &str| {
        let flags = format!("{flags} {more}");
        place
            .run_job("score", ranks, &bundled("en-fr-de"), &input, out, &flags)
            .ok();
        invariant(&place.path(out))
    };
    let one = run(1, "one.h5", "");
    assert_equal(&run(3, "three.h5", "--activation-memory 200K"), &one, "three ranks");
    let rows = read(&place.path("one.h5"));
    assert!(rows
        .iter()
        .all(|r| r.ids.len() == r.logprobs.len() && r.ranks.len() == r.ids.len()));
    assert_eq!(rows[0].output, french.lines().next().unwrap());
    // What greedy search has found has the same log-probabilities here, but for the language that it was told.
    let translated = place.write("in.txt", english.lines().take(20).collect::<Vec<_>>().join("\n"));
    let flags = "--source eng_Latn --target fra_Latn --dtype f32 --scores";
    let found = place.rows(1, &bundled("en-fr-de"), &translated, "t.h5", flags);
    let again: String = found.iter().map(|r| format!("{}\t{}\n", r.input, r.output)).collect();
    let input = place.write("again.txt", again);
    let flags = "--pairs --source eng_Latn --target fra_Latn --dtype f32";
    place
        .run_job("score", 2, &bundled("en-fr-de"), &input, "again.h5", flags)
        .ok();
    let mut same = 0;
    for (scored, found) in read(&place.path("again.h5")).iter().zip(&found) {
        // Text does not always come back as the ids that it was made of.
        if scored.ids == found.ids {
            same += 1;
            let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-4;
            assert!(scored.logprobs[1..].iter().zip(&found.logprobs[1..]).all(near));
        }
    }
    assert!(same > 10, "{same} rows have the same ids");
}

#[test]
fn what_makes_no_sense_is_refused_before_work() {
    let Some(place) = Place::new() else { return };
    let text = place.write("in.txt", "a\n");
    for (model, flags, words) in [
        (lm(), "--pairs", vec!["--pairs", "olmoe"]),
        (lm(), "--prefix bos", vec!["--prefix bos", "--prefix none"]),
        (lm(), "--stride 9 --window 8", vec!["--stride 9", "--window 8"]),
        (lm(), "--source eng_Latn", vec!["--source", "--pairs"]),
        (bundled("en-fr-de"), "", vec!["--pairs", "nllb-moe"]),
        (
            bundled("en-fr-de"),
            "--pairs --source eng_Latn --target fra_Latn",
            vec!["line 1", "tab"],
        ),
    ] {
        let end = place.run_job("score", 2, &model, &text, "refused.h5", flags);
        end.refused(&words);
        assert!(!place.left("refused.h5"), "{flags}");
    }
}

#[test]
fn scores_beyond_the_memory_cost_a_row_and_not_the_job() {
    let Some(place) = Place::new() else { return };
    let text = "The file is read by the command.\n";
    let long = "The file is read by the command. ".repeat(30_000) + "\n";
    let input = place.write("in.txt", text.to_owned() + &long + text);
    let run = |flags: &str| {
        let arguments = place.job_of("score", &lm(), &input, "out.h5", &format!("--top 1024 {flags}"));
        place.limited(1500, &arguments)
    };
    run("").refused(&["in.txt, line 2: ", "scores", "GiB", "--top", "--on-error skip"]);
    let end = run("--on-error skip");
    assert_eq!(end.code, 1, "{end:#?}");
    end.says(&["in.txt, line 2: ", "--top"]);
    let rows = read(&place.path("out.h5"));
    let failed: Vec<bool> = rows.iter().map(|r| r.status == Status::Failed).collect();
    assert_eq!(failed, [false, true, false]);
    assert!(rows[0].logprobs == rows[2].logprobs && rows[0].top_ids.len() == 1024 * rows[0].logprobs.len());
    // Memory that reading may take, or may not, is no reason to refuse a row.
    for memory in ["1K", "500G"] {
        let end = run(&format!("--on-error skip --overwrite --activation-memory {memory}"));
        assert_eq!(end.code, 1, "{end:#?}");
        assert!(read(&place.path("out.h5")) == rows, "{memory}");
    }
}

#[test]
fn a_budget_below_a_window_is_said_to_be() {
    let Some(place) = Place::new() else { return };
    let pairs = place.write("pairs.txt", "A short text.\tUn texte court.\n");
    let said = |model: &Path, text: &Path, flags: &str| {
        let end = place.run_job("score", 1, model, text, "out.h5", &format!("--overwrite {flags}"));
        assert_eq!((end.code, end.errors()), (0, 0), "{end:#?}");
        end.stderr.contains("a window of ")
    };
    let text = bundled("demo/guide.txt");
    for (budget, below) in [("1K", true), ("100M", false)] {
        let flags = format!("--activation-memory {budget}");
        assert_eq!(said(&lm(), &text, &format!("--window 512 {flags}")), below, "{budget}");
        // Pairs have no windows.
        let flags = format!("--pairs --source eng_Latn --target fra_Latn {flags}");
        assert!(!said(&bundled("en-fr-de"), &pairs, &flags));
    }
}
