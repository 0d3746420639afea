//! BLEU and chrF against figures of sacreBLEU 2.6.0 (`tests/fixtures/metrics.json`) and on the demo's translations.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sluicegate::metrics::bleu::{corpus_bleu, BleuStats};
use sluicegate::metrics::chrf::{corpus_chrf, ChrfStats};
use sluicegate::metrics::tokenize_13a;

fn fixture() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn lines(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

fn close(what: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() < 1e-9,
        "{what}: {found}, sacreBLEU has {expected}"
    );
}

#[test]
fn tokens_are_those_of_sacrebleu() {
    let fixture = fixture();
    let pairs = fixture["tokens_13a"].as_array().unwrap();
    assert!(pairs.len() > 50);
    for pair in pairs {
        let pair = lines(pair);
        assert_eq!(tokenize_13a::tokenize(pair[0]), pair[1], "{:?}", pair[0]);
    }
}

#[test]
fn scores_are_those_of_sacrebleu() {
    for case in fixture()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let hyps = lines(&case["system"]);
        let refs: Vec<Vec<&str>> = case["references"].as_array().unwrap().iter().map(lines).collect();
        let bleu = corpus_bleu(&hyps, &refs).unwrap();
        let expected = &case["bleu"];
        close(name, bleu.score, &expected["score"]);
        close(name, bleu.bp, &expected["bp"]);
        close(name, bleu.ratio, &expected["ratio"]);
        for (order, precision) in bleu.precisions.iter().enumerate() {
            close(name, *precision, &expected["precisions"][order]);
        }
        assert_eq!(bleu.sys_len, expected["sys_len"].as_u64().unwrap(), "{name}");
        assert_eq!(bleu.ref_len, expected["ref_len"].as_u64().unwrap(), "{name}");
        for (key, word_order) in [("chrf", 0), ("chrf_plus_plus", 2)] {
            let chrf = corpus_chrf(&hyps, &refs, word_order).unwrap();
            close(&format!("{name}, {key}"), chrf.score, &case[key]["score"]);
            assert_eq!(chrf.name(), case[key]["name"].as_str().unwrap());
        }
    }
}

#[test]
fn signatures_have_the_keys_of_sacrebleu() {
    let version = format!("|version:sluice-{}", env!("CARGO_PKG_VERSION"));
    for case in fixture()["cases"].as_array().unwrap() {
        let refs: Vec<Vec<&str>> = case["references"].as_array().unwrap().iter().map(lines).collect();
        let (mut bleu, mut chrf, mut plus) = (BleuStats::default(), ChrfStats::chrf(), ChrfStats::chrf_plus_plus());
        for (i, hyp) in lines(&case["system"]).into_iter().enumerate() {
            let refs: Vec<&str> = refs.iter().map(|r| r[i]).collect();
            bleu.add(hyp, &refs);
            chrf.add(hyp, &refs);
            plus.add(hyp, &refs);
        }
        let expected = |key: &str| format!("{}{version}", case[key]["signature"].as_str().unwrap());
        assert_eq!(bleu.signature(), expected("bleu"));
        assert_eq!(chrf.signature(), expected("chrf"));
        assert_eq!(plus.signature(), expected("chrf_plus_plus"));
    }
}

#[test]
fn merged_parts_equal_the_whole() {
    let fixture = fixture();
    let (mut whole, mut merged) = (BleuStats::default(), BleuStats::default());
    let (mut whole_chrf, mut merged_chrf) = (ChrfStats::chrf_plus_plus(), ChrfStats::chrf_plus_plus());
    for case in fixture["cases"].as_array().unwrap() {
        let (mut part, mut part_chrf) = (BleuStats::default(), ChrfStats::chrf_plus_plus());
        for (hyp, reference) in lines(&case["system"]).into_iter().zip(lines(&case["references"][0])) {
            whole.add(hyp, &[reference]);
            whole_chrf.add(hyp, &[reference]);
            part.add(hyp, &[reference]);
            part_chrf.add(hyp, &[reference]);
        }
        // As a part arrives from another rank.
        let part: BleuStats = serde_json::from_str(&serde_json::to_string(&part).unwrap()).unwrap();
        let part_chrf: ChrfStats = serde_json::from_str(&serde_json::to_string(&part_chrf).unwrap()).unwrap();
        merged.merge(&part);
        merged_chrf.merge(&part_chrf).unwrap();
    }
    merged.merge(&BleuStats::default());
    assert_eq!(whole, merged);
    assert_eq!(whole_chrf, merged_chrf);
    assert!(whole.score().score > 1.0);
    assert!(merged_chrf.merge(&ChrfStats::chrf()).is_err());
}

#[test]
fn uneven_and_missing_references() {
    let error = corpus_bleu(&["a", "b"], &[vec!["a", "b"], vec!["a"]])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("reference 2 has 1 lines") && error.contains("has 2"),
        "{error}"
    );
    assert!(corpus_chrf(&["a"], &[], 0).is_err());
    assert_eq!(corpus_bleu(&[], &[vec![]]).unwrap().score, 0.0);
    let mut stats = BleuStats::default();
    stats.add("a", &["a"]);
    stats.add("a", &["a", "b"]);
    assert!(stats.signature().starts_with("nrefs:var|"));
    stats.add("a", &[]);
    assert_eq!(stats.score().sys_len, 3);
}

#[test]
fn the_demo_models_scores() {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let demo = shared.join("model/demo");
    let Ok(scores) = std::fs::read(demo.join("scores.json")) else {
        eprintln!("skipped: {} not there", demo.display());
        return;
    };
    let scores: Value = serde_json::from_slice(&scores).unwrap();
    for (name, expected) in scores["scores"].as_object().unwrap() {
        let read = |file: String| std::fs::read_to_string(demo.join(file)).unwrap();
        let reference = read(format!("demo.{}", &name[..3]));
        let output = read(format!("hyp.{name}.jsonl"));
        let hyps: Vec<String> = output
            .lines()
            .map(|l| {
                serde_json::from_str::<Value>(l).unwrap()["text"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        let hyps: Vec<&str> = hyps.iter().map(String::as_str).collect();
        let refs = [reference.lines().collect::<Vec<_>>()];
        let rounded = |x: f64| (x * 100.0).round() / 100.0;
        assert_eq!(
            rounded(corpus_bleu(&hyps, &refs).unwrap().score),
            expected["bleu"].as_f64().unwrap(),
            "{name}"
        );
        assert_eq!(
            rounded(corpus_chrf(&hyps, &refs, 0).unwrap().score),
            expected["chrf"].as_f64().unwrap(),
            "{name}"
        );
    }
}
