//! BLEU, chrF and TER against figures of sacreBLEU 2.6.0, ROUGE against `rouge-score` (`tests/fixtures/metrics.json`), and the
//! demo's translations.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde_json::Value;
use sluicegate::metrics::bleu::{corpus_bleu, BleuOptions, BleuStats, Smoothing};
use sluicegate::metrics::chrf::{corpus_chrf, ChrfStats};
use sluicegate::metrics::edit_distance::levenshtein;
use sluicegate::metrics::measure::{Figure, Measure};
use sluicegate::metrics::rouge;
use sluicegate::metrics::ter::{TerOptions, TerStats};
use sluicegate::metrics::tokenize::{Pieces, Tokenizer};

static FIXTURE: LazyLock<Value> = LazyLock::new(|| {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
});

/// A system and its references.
struct Case {
    name: &'static str,
    hyps: Vec<&'static str>,
    refs: Vec<Vec<&'static str>>,
    expected: &'static Value,
}

impl Case {
    fn all() -> Vec<Case> {
        let of = |case: &'static Value| Case {
            name: case["name"].as_str().unwrap(),
            hyps: lines(&case["system"]),
            refs: case["references"].as_array().unwrap().iter().map(lines).collect(),
            expected: case,
        };
        FIXTURE["cases"].as_array().unwrap().iter().map(of).collect()
    }

    /// The references of line `i`.
    fn refs(&self, i: usize) -> Vec<&'static str> {
        self.refs.iter().map(|r| r[i]).collect()
    }

    /// What `measure` says of the lines from `lines`.
    fn figures(&self, mut measure: Measure, lines: impl Iterator<Item = usize>) -> Vec<Figure> {
        lines.for_each(|i| measure.add(self.hyps[i], &self.refs(i)));
        measure.figures()
    }

    fn all_figures(&self, measure: Measure) -> Vec<Figure> {
        self.figures(measure, 0..self.hyps.len())
    }

    /// The measure's only figure has the score, name and signature of sacreBLEU.
    fn check(&self, measure: Measure, expected: &Value) -> Figure {
        let what = format!("{}, {}", self.name, expected["options"]);
        let figure = self.all_figures(measure).remove(0);
        close(&what, figure.score, &expected["score"]);
        assert_eq!(figure.name, expected["name"].as_str().unwrap(), "{what}");
        let version = format!("|version:sluice-{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            figure.signature,
            format!("{}{version}", expected["signature"].as_str().unwrap()),
            "{what}"
        );
        figure
    }
}

fn lines(value: &'static Value) -> Vec<&'static str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

fn close(what: &str, found: f64, expected: &Value) {
    let expected = expected.as_f64().unwrap();
    assert!(
        (found - expected).abs() <= 1e-11 * expected.abs().max(1.0),
        "{what}: {found}, expected {expected}"
    );
    assert_eq!(format!("{found:.4}"), format!("{expected:.4}"), "{what}");
}

fn is(options: &Value, name: &str) -> bool {
    options[name].as_bool().unwrap_or(false)
}

fn bleu_options(options: &Value) -> BleuOptions {
    let value = |default| options["smooth_value"].as_f64().unwrap_or(default);
    BleuOptions {
        tokenizer: Tokenizer::of(options["tokenize"].as_str().unwrap_or("13a")).unwrap(),
        lowercase: is(options, "lowercase"),
        effective_order: is(options, "effective_order"),
        smoothing: match options["smooth_method"].as_str().unwrap_or("exp") {
            "exp" => Smoothing::Exp,
            "floor" => Smoothing::Floor(value(Smoothing::FLOOR)),
            "add-k" => Smoothing::AddK(value(Smoothing::ADD_K)),
            "none" => Smoothing::None,
            other => panic!("{other}"),
        },
    }
}

fn ter_options(options: &Value) -> TerOptions {
    TerOptions {
        case_sensitive: is(options, "case_sensitive"),
        normalized: is(options, "normalized"),
        no_punct: is(options, "no_punct"),
        asian_support: is(options, "asian_support"),
    }
}

#[test]
fn tokens_are_those_of_sacrebleu() {
    for (name, pairs) in FIXTURE["tokens"].as_object().unwrap() {
        let pairs = pairs.as_array().unwrap();
        assert!(pairs.len() > 80);
        for pair in pairs {
            let (segment, tokens) = (pair[0].as_str().unwrap(), lines(&pair[1]));
            let found = Tokenizer::of(name).unwrap().tokenize(segment);
            let found: Vec<&str> = found
                .split(|c: char| c.is_whitespace() || ('\x1c'..='\x1f').contains(&c))
                .filter(|token| !token.is_empty())
                .collect();
            assert_eq!(found, tokens, "{name} of {segment:?}");
        }
    }
}

#[test]
fn bleu_is_that_of_sacrebleu() {
    let cases = Case::all();
    assert!(cases.len() > 30);
    for case in &cases {
        for expected in case.expected["bleu"].as_array().unwrap() {
            let options = bleu_options(&expected["options"]);
            let figure = case.check(Measure::bleu(options.clone()), expected);
            assert_eq!(figure.parts["verbose_score"], expected["verbose"], "{}", case.name);
            let mut stats = BleuStats::new(options);
            case.hyps
                .iter()
                .enumerate()
                .for_each(|(i, hyp)| stats.add(hyp, &case.refs(i)));
            let bleu = stats.score();
            close(case.name, bleu.bp, &expected["bp"]);
            close(case.name, bleu.ratio, &expected["ratio"]);
            for (order, precision) in bleu.precisions.iter().enumerate() {
                close(case.name, *precision, &expected["precisions"][order]);
            }
            assert_eq!(Some(bleu.sys_len), expected["sys_len"].as_u64(), "{}", case.name);
            assert_eq!(Some(bleu.ref_len), expected["ref_len"].as_u64(), "{}", case.name);
        }
    }
}

#[test]
fn bleu_of_a_sentence_is_that_of_sacrebleu() {
    for case in Case::all() {
        for (i, expected) in case.expected["sentence_bleu"].as_array().unwrap().iter().enumerate() {
            let options = BleuOptions {
                effective_order: true,
                ..BleuOptions::default()
            };
            let figure = case.figures(Measure::bleu(options), i..i + 1).remove(0);
            close(&format!("{}, line {i}", case.name), figure.score, expected);
        }
    }
}

#[test]
fn chrf_is_that_of_sacrebleu() {
    for case in Case::all() {
        for expected in case.expected["chrf"].as_array().unwrap() {
            let options = &expected["options"];
            let order = options["word_order"].as_u64().unwrap_or(0) as usize;
            case.check(Measure::chrf(order, is(options, "lowercase")), expected);
        }
    }
}

#[test]
fn ter_is_that_of_sacrebleu() {
    for case in Case::all() {
        for expected in case.expected["ter"].as_array().unwrap() {
            case.check(Measure::ter(ter_options(&expected["options"])), expected);
        }
    }
}

/// Shifts near and far, their limits, lengths far apart: the edits that sacreBLEU finds, which are never more than
/// Levenshtein's.
#[test]
fn edits_and_shifts_are_those_of_sacrebleu() {
    let pairs = FIXTURE["edits"].as_array().unwrap();
    let mut shifted = 0;
    for pair in pairs {
        let (hyp, reference) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let mut stats = TerStats::new(TerOptions::default());
        stats.add(hyp, &[reference]);
        let edits = stats.score().edits;
        assert_eq!(Some(edits), pair[2].as_u64(), "{hyp:?} to {reference:?}");
        let words = |line: &'static str| line.split_whitespace().collect::<Vec<_>>();
        let plain = levenshtein(&words(hyp), &words(reference)) as u64;
        assert!(
            edits <= plain,
            "{hyp:?} to {reference:?}: {edits}, {plain} without shifts"
        );
        shifted += usize::from(edits < plain);
    }
    assert!(shifted > pairs.len() / 3, "{shifted} of {}", pairs.len());
}

#[test]
fn rouge_is_that_of_rouge_score() {
    for case in Case::all() {
        for expected in case.expected["rouge"].as_array().unwrap() {
            let figures = case.all_figures(Measure::rouge(is(expected, "stem")));
            for (figure, expected) in figures.iter().zip(expected["figures"].as_array().unwrap()) {
                let what = format!("{}, {}", case.name, figure.name);
                assert_eq!(figure.name, expected["name"].as_str().unwrap());
                close(&what, figure.score, &expected["fmeasure"]);
                for part in ["precision", "recall"] {
                    close(&what, figure.parts[part].as_f64().unwrap(), &expected[part]);
                }
            }
        }
    }
    let stem = Measure::rouge(true).figures().remove(0).signature;
    assert!(stem.starts_with("nrefs:0|case:lc|stem:yes|version:"), "{stem}");
}

/// A word and its stem are one to ROUGE, a word and anything else are two.
#[test]
fn stems_are_those_of_nltk() {
    let stems = FIXTURE["stems"].as_object().unwrap();
    assert!(stems.len() > 700);
    for (word, expected) in stems.iter().filter(|(word, _)| word.len() > 3) {
        assert_eq!(rouge::stem(word), expected.as_str().unwrap(), "{word}");
    }
}

fn measures() -> Vec<Measure> {
    vec![
        Measure::bleu(BleuOptions::default()),
        Measure::chrf(0, false),
        Measure::chrf(2, true),
        Measure::ter(TerOptions::default()),
        Measure::rouge(true),
    ]
}

/// Pieces of the demo model's tokenizer; what it doesn't know is as it was written.
#[test]
fn pieces_of_a_tokenizer() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs/en-fr-de/tokenizer.json");
    let pieces = Tokenizer::Pieces(Pieces::load(&path).unwrap());
    let found = pieces.tokenize("Press the key 漢字.");
    assert!(
        found.starts_with("▁Press ▁the ▁key ") && found.contains("漢字") && !found.contains("<unk>"),
        "{found}"
    );
    assert_eq!(found.replace(' ', "").replace('▁', " "), " Press the key 漢字.");
    assert_eq!(pieces.tokenize("").trim(), "");
    let options = BleuOptions {
        tokenizer: pieces,
        ..BleuOptions::default()
    };
    let signature = Measure::bleu(options).figures().remove(0).signature;
    assert!(signature.contains("|tok:spm-"), "{signature}");
    for (file, part) in [
        ("tests/metrics.rs", "no sentencepiece model"),
        ("tests/fixtures/metrics.json", "understood"),
        ("none", "cannot read"),
    ] {
        let error = Pieces::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap_err();
        assert!(format!("{error:#}").contains(part), "{error:#}");
    }
}

/// However rows are spread and in whatever order parts arrive: the same to the last bit.
#[test]
fn merged_parts_equal_the_whole() {
    for (at, mut whole) in measures().into_iter().enumerate() {
        let mut parts = Vec::new();
        for case in Case::all() {
            let mut part = measures().remove(at);
            for (i, hyp) in case.hyps.iter().enumerate() {
                whole.add(hyp, &case.refs(i));
                part.add(hyp, &case.refs(i));
            }
            parts.push(part);
        }
        let mut merged = measures().remove(at);
        parts.iter().rev().for_each(|part| merged.merge(part).unwrap());
        merged.merge(&measures().remove(at)).unwrap();
        assert_eq!(whole, merged);
        let bits = |measure: &Measure| -> Vec<u64> { measure.figures().iter().map(|f| f.score.to_bits()).collect() };
        assert_eq!(bits(&whole), bits(&merged));
        assert!(whole.figures()[0].signature.starts_with("nrefs:var|"));
        assert!(whole.figures().iter().all(|f| f.score > 1.0));
        for (other, more) in measures().iter().enumerate() {
            assert_eq!(merged.merge(more).is_ok(), other == at, "{at} {other}");
        }
    }
    let lowercase = BleuOptions {
        lowercase: true,
        ..BleuOptions::default()
    };
    assert!(measures()[0].merge(&Measure::bleu(lowercase)).is_err());
    assert!(measures()[4].merge(&Measure::rouge(false)).is_err());
    let cased = TerOptions {
        case_sensitive: true,
        ..TerOptions::default()
    };
    assert!(measures()[3].merge(&Measure::ter(cased)).is_err());
    assert!(ChrfStats::chrf().merge(&ChrfStats::chrf_plus_plus()).is_err());
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
    for mut measure in measures() {
        assert!(measure.figures().iter().all(|f| f.score == 0.0));
        measure.add("a", &[]);
        assert!(measure.figures().iter().all(|f| f.score == 0.0), "{measure:?}");
    }
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
