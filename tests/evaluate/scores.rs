//! Scored texts, summed up; and both kinds of files in one call.

use super::place::{row, scored, Job, Place, SCORE, TRANSLATE};
use serde_json::{json, Value};
use sluicegate::metrics::perplexity::Sums;
use sluicegate::results::{Row, Status};
use std::fs;

#[test]
fn shards_of_scores_add_up() {
    let place = Place::new();
    let rows: Vec<Row> = (0..40usize)
        .map(|i| match i {
            3 => scored("  ", &[], Status::Blank),
            _ => {
                let logprobs: Vec<f32> = (0..i * i % 23).map(|t| (t as f32 + 0.3) / -3.7).collect();
                scored(&"à word ".repeat(i % 5 + 1), &logprobs, Status::Ok)
            }
        })
        .collect();
    let mut sums = Sums::default();
    rows.iter()
        .filter(|row| row.status == Status::Ok)
        .for_each(|row| sums.add(&row.input, &row.logprobs).expect("added"));
    place.results("whole.h5", &SCORE, rows.clone());
    place.results("1.h5", &SCORE, rows[..5].to_vec());
    place.results("2.h5", &SCORE, rows[5..].to_vec());
    let whole = place.json("whole.h5");
    let of = |sums: &Sums| {
        json!({
            "tokens": sums.tokens, "words": sums.words, "bytes": sums.bytes, "impossible_tokens": 0, "logprob": sums.logprob(),
            "token_perplexity": sums.token_perplexity(), "word_perplexity": sums.word_perplexity(),
            "byte_perplexity": sums.byte_perplexity(), "bits_per_byte": sums.bits_per_byte(),
        })
    };
    assert_eq!(whole["scored"][0]["perplexity"], of(&sums));
    assert_eq!(whole.get("scored_together"), None);
    let shards = place.json("2.h5 1.h5");
    assert_eq!(shards["scored_together"], whole["scored"][0]["perplexity"]);
    assert_ne!(shards["scored"][0]["perplexity"], whole["scored"][0]["perplexity"]);
    let table = place.prints(0, "2.h5 1.h5");
    let last = table.lines().find(|line| line.starts_with("all")).unwrap();
    assert!(
        last.contains(&format!("{:.4}", sums.token_perplexity().unwrap())),
        "{table}"
    );
    assert!(
        table.contains("1.h5: 0 failed and 1 blank rows are left out"),
        "{table}"
    );
    let other = Job {
        model: "other",
        ..SCORE
    };
    place.results("other.h5", &other, rows);
    let table = place.prints(0, "1.h5 other.h5");
    assert!(
        !table.contains("\nall") && table.contains("different models"),
        "{table}"
    );
}

#[test]
fn what_a_score_cannot_say() {
    let place = Place::new();
    place.results("nothing.h5", &SCORE, vec![scored("", &[], Status::Blank)]);
    assert_eq!(
        place.json("nothing.h5")["scored"][0]["perplexity"]["token_perplexity"],
        Value::Null
    );
    assert!(place.prints(0, "nothing.h5").contains("  -"));
    let rows = vec![
        scored("a b", &[f32::NEG_INFINITY, -1.0], Status::InputCut),
        scored("c", &[-1.0], Status::Failed),
    ];
    place.results("odd.h5", &SCORE, rows);
    let table = place.prints(1, "odd.h5");
    for part in [
        "inf",
        "1 tokens have a log-probability of -inf",
        "1 rows were cut",
        "1 failed and 0 blank rows are left out",
    ] {
        assert!(table.contains(part), "{part} is not in\n{table}");
    }
    assert!(place.prints(1, "odd.h5 --json").contains("\"token_perplexity\": null"));
}

#[test]
fn words_without_a_scored_token_have_no_figures() {
    let place = Place::new();
    place.results("none.h5", &SCORE, vec![scored("two words", &[], Status::Ok)]);
    let page = place.json("none.h5");
    let sums = page["scored"][0]["perplexity"].as_object().unwrap();
    assert_eq!((&sums["tokens"], &sums["words"]), (&json!(0), &json!(2)));
    for name in [
        "token_perplexity",
        "word_perplexity",
        "byte_perplexity",
        "bits_per_byte",
    ] {
        assert_eq!(sums[name], Value::Null, "{name}");
    }
    let table = place.prints(0, "none.h5");
    let cells = table.lines().nth(1).unwrap().split_whitespace().rev();
    assert_eq!(cells.take_while(|cell| *cell == "-").count(), 4, "{table}");
}

#[test]
fn a_damaged_log_probability_is_refused() {
    let place = Place::new();
    for (wrong, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf")] {
        let name = format!("{said}.h5");
        let rows = vec![
            scored("a", &[-1.0], Status::Ok),
            scored("b c", &[-1.0, wrong], Status::Ok),
        ];
        place.results(&name, &SCORE, rows);
        place.refused(
            &name,
            &[
                &format!("{name} is damaged: row 1"),
                &format!("scored token 1 has a log-probability of {said}"),
            ],
        );
    }
}

#[test]
fn texts_and_scores_in_one_call() {
    let place = Place::new();
    place.results("out.h5", &TRANSLATE, vec![row("a")]);
    place.results("score.h5", &SCORE, vec![scored("a", &[-1.0], Status::Ok)]);
    place.text("ref", &["a"]);
    let page = place.json("score.h5 out.h5 --references ref");
    assert_eq!(
        (&page["systems"][0]["file"], &page["scored"][0]["file"]),
        (&json!("out.h5"), &json!("score.h5"))
    );
    assert!(place
        .prints(0, "score.h5 out.h5 --references ref")
        .contains("ppl/token"));
}

#[test]
fn refusals_say_what_to_do() {
    let place = Place::new();
    place.results("out.h5", &TRANSLATE, vec![row("a"), row("b")]);
    place.results("score.h5", &SCORE, vec![scored("a", &[-1.0], Status::Ok)]);
    place.text("short", &["a"]);
    place.text("good", &["a", "b"]);
    fs::write(place.path("latin1"), b"\xe9\nb\n").unwrap();
    for (line, parts) in [
        ("out.h5", &["out.h5 holds output texts", "--references FILE"][..]),
        (
            "out.h5 --references short",
            &["--references short: 1 lines", "2 input lines"],
        ),
        ("out.h5 --references good short", &["--references short: 1 lines"]),
        ("out.h5 --references none", &["--references none", "cannot find"]),
        ("out.h5 --references latin1", &["latin1", "not UTF-8"]),
        ("out.h5 --references good out.h5", &["out.h5", "HDF5 file"]),
        ("out.h5 ./out.h5 --references good", &["given twice"]),
        ("score.h5 --references good", &["leave them out"]),
        ("missing.h5 --references good", &["missing.h5"]),
        ("good --references good", &["not an HDF5 file"]),
        ("out.h5 --references good --stem", &["--metrics rouge"]),
        (
            "out.h5 --references good --tokenize spm:good",
            &["spm:good", "tokenizer.json"],
        ),
    ] {
        place.refused(line, parts);
    }
}
