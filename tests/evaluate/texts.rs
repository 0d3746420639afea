//! Output texts beside references.

use super::place::{row, Job, Place, TRANSLATE};
use serde_json::{json, Value};
use sluicegate::metrics::bleu::BleuOptions;
use sluicegate::metrics::measure::Measure;
use sluicegate::results::{Row, Status};
use std::fs;
use std::io::Write;
use std::path::Path;

/// Lines of the fixture's case.
fn case(name: &str) -> (Vec<String>, Vec<Vec<String>>, Value) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/metrics.json");
    let fixture: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = fixture["cases"].as_array().unwrap();
    let case = cases.iter().find(|case| case["name"] == name).unwrap().clone();
    let system = serde_json::from_value(case["system"].clone()).unwrap();
    let references = serde_json::from_value(case["references"].clone()).unwrap();
    (system, references, case)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

#[test]
fn figures_are_those_of_sacrebleu_and_rouge_score() {
    let place = Place::new();
    let (system, references, expected) = case("demo: three references");
    place.results("out.h5", &TRANSLATE, system.iter().map(|line| row(line)).collect());
    let plain = |reference: &[String]| reference.join("\n");
    place.text("r1", &references[0]);
    fs::write(place.path("r2.gz"), gzip(plain(&references[1]).as_bytes())).unwrap();
    let packed = zstd::encode_all(plain(&references[2]).as_bytes(), 1).unwrap();
    fs::write(place.path("r3.txt.zst"), packed).unwrap();
    let line = "out.h5 --references r1 r2.gz r3.txt.zst --metrics bleu,chrf,chrf++,ter,rouge";
    let page = place.json(line);
    let found = &page["systems"][0];
    assert_eq!(
        (&found["file"], &found["target_lang"]),
        (&json!("out.h5"), &json!("fra_Latn"))
    );
    assert_eq!(found["rows"], system.len());
    let names: Vec<&Value> = found["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["name"])
        .collect();
    assert_eq!(
        names,
        [
            "BLEU",
            "chrF2",
            "chrF2++",
            "TER",
            "ROUGE-1",
            "ROUGE-2",
            "ROUGE-L",
            "ROUGE-Lsum"
        ]
    );
    let of_rouge = |i: usize| &expected["rouge"][0]["figures"][i]["fmeasure"];
    let scores = [
        &expected["bleu"][0]["score"],
        &expected["chrf"][0]["score"],
        &expected["chrf"][1]["score"],
        &expected["ter"][0]["score"],
        of_rouge(0),
        of_rouge(1),
        of_rouge(2),
        of_rouge(3),
    ];
    let table = place.prints(0, line);
    for (i, score) in scores.iter().enumerate() {
        let (found, score) = (found["metrics"][i]["score"].as_f64().unwrap(), score.as_f64().unwrap());
        assert!((found - score).abs() < 1e-9, "{}: {found}, {score}", names[i]);
        assert!(table.contains(&format!("  {score:.2}")), "{score} is not in\n{table}");
    }
    let signature = expected["ter"][0]["signature"].as_str().unwrap();
    assert!(
        signature.starts_with("nrefs:3|") && table.contains(&format!("TER  {signature}|version:")),
        "{table}"
    );
    assert!(
        table.contains("ROUGE-1, ROUGE-2, ROUGE-L, ROUGE-Lsum  nrefs:3|case:lc|stem:no|"),
        "{table}"
    );
}

#[test]
fn systems_stand_side_by_side() {
    let place = Place::new();
    place.results(
        "a.h5",
        &TRANSLATE,
        vec![row("one two three four five"), row("six seven")],
    );
    place.results("b.h5", &TRANSLATE, vec![row("one two three four"), row("eight")]);
    place.text("ref", &["one two three four five", "six seven"]);
    let table = place.prints(0, "a.h5 b.h5 --references ref");
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["file", "target", "rows", "BLEU", "chrF2", "chrF2++"]);
    assert_eq!(lines[1], ["a.h5", "fra_Latn", "2", "100.00", "100.00", "100.00"]);
    assert_eq!(&lines[2][..3], ["b.h5", "fra_Latn", "2"]);
    assert!(
        table.contains("\nBLEU  nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"),
        "{table}"
    );
}

/// More rows than a block, shared out over threads: what the measure says of all rows one after the other.
#[test]
fn many_rows_are_as_one_after_the_other() {
    let place = Place::new();
    let words = ["expert", "router", "gate", "Token,", "batch", "é."];
    let line = |i: usize, salt: usize| -> String {
        let word = |j: usize| words[(i * 7 + j * salt + j * j) % words.len()];
        (0..i % 9).map(word).collect::<Vec<_>>().join(" ")
    };
    let rows = 4096 * 2 + 77;
    let references: Vec<String> = (0..rows).map(|i| line(i, 1)).collect();
    let outputs: Vec<String> = (0..rows).map(|i| line(i, 1 + i % 2)).collect();
    place.results("out.h5", &TRANSLATE, outputs.iter().map(|output| row(output)).collect());
    place.text("ref", &references);
    let found = place.json("out.h5 --references ref --metrics bleu,ter,rouge");
    let options = BleuOptions::default();
    let mut measures = [
        Measure::bleu(options),
        Measure::ter(Default::default()),
        Measure::rouge(false),
    ];
    for (output, reference) in outputs.iter().zip(&references) {
        measures.iter_mut().for_each(|m| m.add(output, &[reference]));
    }
    let expected: Vec<f64> = measures.iter().flat_map(Measure::figures).map(|f| f.score).collect();
    let metrics = found["systems"][0]["metrics"].as_array().unwrap();
    let found: Vec<f64> = metrics.iter().map(|m| m["score"].as_f64().unwrap()).collect();
    assert_eq!(found, expected);
}

#[test]
fn blank_and_failed_rows_are_empty_outputs() {
    let place = Place::new();
    let with = |status, output: &str| Row { status, ..row(output) };
    let rows = vec![
        row("one two three four"),
        with(Status::Blank, ""),
        with(Status::Failed, "what was there"),
        with(Status::LengthLimit, "five six seven eight"),
    ];
    place.results("some.h5", &TRANSLATE, rows);
    let emptied = ["one two three four", "", "", "five six seven eight"];
    place.results(
        "empty.h5",
        &TRANSLATE,
        emptied.iter().map(|output| row(output)).collect(),
    );
    place.text(
        "ref",
        &["one two three four", "", "what was there", "five six seven nine"],
    );
    let table = place.prints(1, "some.h5 empty.h5 --references ref --metrics bleu,ter");
    let figures = |line: usize| table.lines().nth(line).unwrap().split_once("fra_Latn").unwrap().1;
    assert_eq!(figures(1), figures(2));
    assert!(
        table.contains("some.h5, fra_Latn: 1 failed and 1 blank rows count as empty outputs"),
        "{table}"
    );
    assert!(!table.contains("empty.h5, fra_Latn:"));
    let page: Value = serde_json::from_str(&place.prints(1, "some.h5 --references ref --json")).unwrap();
    assert_eq!(page["systems"][0]["by_status"]["failed"], 1);
}

#[test]
fn target_languages_have_their_own_references() {
    let place = Place::new();
    let pair = |french: &str, german: &str| {
        let german = Row {
            target_lang: "deu_Latn".into(),
            ..row(german)
        };
        [row(french), german]
    };
    let rows = [
        pair("un deux trois quatre", "eins zwei"),
        pair("cinq six", "drei vier fünf sechs"),
    ]
    .concat();
    let job = Job {
        outputs: 2,
        ..TRANSLATE
    };
    place.results("out.h5", &job, rows);
    place.text("fra", &["un deux trois quatre", "cinq six"]);
    place.text("deu", &["eins zwei", "drei vier fünf sieben"]);
    place.refused(
        "out.h5 --references fra",
        &["2 target languages", "--target CODE", "CODE=FILE"],
    );
    let both = place.json("out.h5 --references fra_Latn=fra deu_Latn=deu --metrics chrf");
    let score = |page: &Value, i: usize| page["systems"][i]["metrics"][0]["score"].as_f64().unwrap();
    assert_eq!(score(&both, 0), 100.0);
    assert!(score(&both, 1) < 100.0);
    assert_eq!(both["systems"][1]["target_lang"], "deu_Latn");
    assert_eq!(both["systems"][1]["rows"], 2);
    for line in [
        "out.h5 --target deu_Latn --references deu --metrics chrf",
        "out.h5 --target deu_Latn --references fra_Latn=fra deu_Latn=deu --metrics chrf",
    ] {
        let german = place.json(line);
        assert_eq!(german["systems"].as_array().unwrap().len(), 1);
        assert_eq!(german["systems"][0]["target_lang"], "deu_Latn");
        assert_eq!(score(&german, 0), score(&both, 1), "{line}");
    }
    let twice = place.json("out.h5 --references fra_Latn=deu fra_Latn=fra");
    assert!(twice["systems"][0]["metrics"][0]["signature"]
        .as_str()
        .unwrap()
        .starts_with("nrefs:2|"));
    place.refused("out.h5 --references fra deu_Latn=deu", &["CODE=FILE for each"]);
    place.refused(
        "out.h5 --target ita_Latn --references fra",
        &["ita_Latn", "deu_Latn, fra_Latn"],
    );
    place.refused(
        "out.h5 --target ita_Latn --references fra_Latn=fra",
        &["add ita_Latn=FILE"],
    );
}

/// Rows of one input may name languages of their own; lines of references are those of the input all the same.
#[test]
fn rows_of_several_languages() {
    let place = Place::new();
    let rows = ["fra_Latn", "deu_Latn", "fra_Latn"].map(|lang| Row {
        target_lang: lang.into(),
        ..row(&format!("{lang} a b c"))
    });
    place.results("out.h5", &TRANSLATE, rows.to_vec());
    place.text("ref", &["fra_Latn a b c", "deu_Latn a b c", "fra_Latn a b c"]);
    let all = place.json("out.h5 --references ref --metrics chrf");
    assert_eq!(
        (&all["systems"][0]["target_lang"], &all["systems"][0]["rows"]),
        (&Value::Null, &json!(3))
    );
    let some = place.json("out.h5 --references ref --metrics chrf --target fra_Latn");
    assert_eq!(some["systems"][0]["rows"], 2);
    for page in [all, some] {
        assert_eq!(page["systems"][0]["metrics"][0]["score"], 100.0);
    }
}

#[test]
fn no_rows_have_figures_of_zero() {
    let place = Place::new();
    place.results("out.h5", &TRANSLATE, Vec::new());
    place.text::<&str>("ref", &[]);
    let page = place.json("out.h5 --references ref --metrics bleu,chrf++,ter,rouge");
    for metric in page["systems"][0]["metrics"].as_array().unwrap() {
        assert_eq!(metric["score"], 0.0, "{metric}");
    }
}
