//! The trained checkpoint: the reference's translations of real text, BLEU and chrF.

use crate::place::{bundled, shared, Place};
use serde_json::Value;
use sluicegate::results::{MetricValue, Results, Row};
use std::fs;
use std::path::Path;

/// The reference's rows: decoder start token and ids, text, and with beams the score.
fn reference(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).expect("the reference's outputs");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

/// Ids, texts and scores are the reference's. Near ties could decide otherwise, but there are none.
#[track_caller]
fn assert_as_reference<'a>(rows: impl Iterator<Item = &'a Row>, reference: &[Value], what: &str) {
    let (mut rows_seen, mut differ) = (0, Vec::new());
    for (i, (row, wanted)) in rows.zip(reference).enumerate() {
        rows_seen += 1;
        let ids: Vec<u32> = serde_json::from_value(wanted["output_ids"].clone()).expect("ids");
        assert_eq!(row.input, wanted["source"].as_str().expect("source"), "{what}, row {i}");
        if row.ids != ids[1..] {
            differ.push((i, row.score, wanted["score"].clone()));
            continue;
        }
        assert_eq!(row.output, wanted["text"].as_str().expect("text"), "{what}, row {i}");
        if let Some(score) = wanted["score"].as_f64() {
            let gap = (f64::from(row.score) - score).abs();
            assert!(gap < 1e-4, "{what}, row {i}: the score is off by {gap:.1e}");
        }
    }
    assert_eq!(rows_seen, reference.len(), "{what}");
    assert!(
        differ.is_empty(),
        "{what}: rows with other ids, their scores and the reference's: {differ:?}"
    );
}

fn figure(out: &Path, name: &str) -> f64 {
    let metrics = Results::open(out).expect("results").metrics().expect("metrics");
    match metrics.iter().find(|m| m.name == name).map(|m| &m.value) {
        Some(MetricValue::Number(value)) => *value,
        other => panic!("{name} is {other:?} in {metrics:?}"),
    }
}

#[track_caller]
fn assert_near(found: f64, wanted: &Value, by: f64, what: &str) {
    let wanted = wanted.as_f64().expect("a figure");
    assert!(
        (found - wanted).abs() <= by,
        "{what}: {found}, the reference has {wanted}"
    );
}

const DEMO: &str = "--source eng_Latn --target fra_Latn,deu_Latn";

fn demo_references() -> String {
    let file = |name: &str| bundled("demo").join(name).display().to_string();
    format!("--references {},{}", file("demo.fra"), file("demo.deu"))
}

#[test]
fn the_demo_is_translated_as_by_the_reference() {
    let Some(place) = Place::new() else { return };
    let scores = fs::read(bundled("demo/scores.json")).expect("scores.json");
    let scores: Value = serde_json::from_slice(&scores).expect("JSON");
    for (mode, flags, ranks) in [("greedy", "", 2), ("beam4", "--num-beams 4", 1)] {
        let out = format!("{mode}.h5");
        let flags = format!("{DEMO} {} --dtype f32 {flags}", demo_references());
        let rows = place.rows(ranks, &bundled("en-fr-de"), &bundled("demo/demo.eng"), &out, &flags);
        for (t, lang) in ["fra", "deu"].into_iter().enumerate() {
            let wanted = reference(&bundled("demo").join(format!("hyp.{lang}.{mode}.jsonl")));
            assert_as_reference(rows.iter().skip(t).step_by(2), &wanted, &format!("{lang} {mode}"));
            let given = &scores["scores"][format!("{lang}.{mode}")];
            let of = |name: &str| figure(&place.path(&out), &format!("{name}_{lang}_Latn"));
            assert_near(of("BLEU"), &given["bleu"], 0.01, &format!("{lang} {mode} BLEU"));
            assert_near(of("chrF2"), &given["chrf"], 0.01, &format!("{lang} {mode} chrF"));
        }
    }
}

#[test]
fn bfloat16_is_the_default_here_and_loses_little() {
    let Some(place) = Place::new() else { return };
    let scores = fs::read(bundled("demo/scores.json")).expect("scores.json");
    let scores: Value = serde_json::from_slice(&scores).expect("JSON");
    let flags = format!("{DEMO} {}", demo_references());
    let end = place.translate(2, &bundled("en-fr-de"), &bundled("demo/demo.eng"), "out.h5", &flags);
    end.says(&["bf16)"]);
    end.ok();
    for lang in ["fra", "deu"] {
        let found = figure(&place.path("out.h5"), &format!("BLEU_{lang}_Latn"));
        assert_near(found, &scores["scores"][format!("{lang}.greedy")]["bleu"], 0.5, lang);
    }
}

#[test]
fn int8_loses_at_most_three_tenths_of_bleu() {
    let Some(place) = Place::new() else { return };
    let Some(test) = shared("model/test") else { return };
    let scores = fs::read(test.join("scores.json")).expect("scores.json");
    let scores: Value = serde_json::from_slice(&scores).expect("JSON");
    for (source, lang) in [("test.eng", "fra"), ("test-deu.eng", "deu")] {
        let references = test.join(format!("test.{lang}")).display().to_string();
        let flags = format!("--source eng_Latn --target {lang}_Latn --references {references} --dtype int8");
        let out = format!("{lang}.h5");
        place.rows(2, &bundled("en-fr-de"), &test.join(source), &out, &flags);
        let given = &scores["scores"][format!("{lang}_Latn greedy")];
        assert_near(figure(&place.path(&out), "BLEU"), &given["bleu"], 0.3, lang);
    }
}

/// One of the larger test sets on two ranks.
fn larger(source: &str, lang: &str, mode: &str, flags: &str) {
    let Some(place) = Place::new() else { return };
    let Some(test) = shared("model/test") else { return };
    let references = test.join(format!("test.{lang}")).display().to_string();
    let flags = format!("--source eng_Latn --target {lang}_Latn --references {references} --dtype f32 {flags}");
    let rows = place.rows(2, &bundled("en-fr-de"), &test.join(source), "out.h5", &flags);
    let jsonl = test.join(format!("hyp.{lang}.{mode}.jsonl"));
    if jsonl.exists() {
        assert_as_reference(rows.iter(), &reference(&jsonl), &format!("{lang} {mode}"));
    }
    let texts = fs::read_to_string(test.join(format!("hyp.{lang}.{mode}.txt"))).expect("the reference's texts");
    let shown = place.show("out.h5", &[]);
    let differ: Vec<_> = shown.lines().zip(texts.lines()).filter(|(a, b)| a != b).collect();
    assert!(differ.is_empty(), "{lang} {mode}: {differ:?}");
    assert_eq!(shown.lines().count(), texts.lines().count());
    let scores = fs::read(test.join("scores.json")).expect("scores.json");
    let scores: Value = serde_json::from_slice(&scores).expect("JSON");
    let given = &scores["scores"][format!("{lang}_Latn {mode}")];
    assert_near(figure(&place.path("out.h5"), "BLEU"), &given["bleu"], 0.05, "BLEU");
    assert_near(figure(&place.path("out.h5"), "chrF2"), &given["chrf"], 0.05, "chrF");
}

#[test]
fn a_thousand_sentences_to_french_greedy() {
    larger("test.eng", "fra", "greedy", "");
}

#[test]
fn a_thousand_sentences_to_french_with_four_beams() {
    larger("test.eng", "fra", "beam4", "--num-beams 4");
}

#[test]
fn five_hundred_sentences_to_german_greedy() {
    larger("test-deu.eng", "deu", "greedy", "");
}

#[test]
fn five_hundred_sentences_to_german_with_four_beams() {
    larger("test-deu.eng", "deu", "beam4", "--num-beams 4");
}
