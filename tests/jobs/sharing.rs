//! Work that doesn't divide well, several targets, and inputs in every form: all end, with the same rows.

use crate::place::{bundled, read, Place};
use crate::small_model::SmallModel;
use sluicegate::results::{Row, Status};
use std::io::Write;

const FRENCH: &str = "--source eng_Latn --target fra_Latn --max-new-tokens 12";

/// What the user gets of a row, to the bit.
fn bits(rows: &[Row]) -> Vec<(String, String, u32, Vec<u32>, String)> {
    let of = |r: &Row| {
        (
            r.input.clone(),
            r.output.clone(),
            r.score.to_bits(),
            r.ids.clone(),
            r.target_lang.clone(),
        )
    };
    rows.iter().map(of).collect()
}

#[test]
fn few_rows_for_many_ranks() {
    let Some(place) = Place::new() else { return };
    let model = SmallModel::new(3).save(&place, "model");
    let three = place.write("three.txt", "One line.\nAnother line, a little longer.\nEnd.\n");
    let alone = place.rows(1, &model, &three, "alone.h5", FRENCH);
    assert_eq!(alone.len(), 3);
    let one = place.write("one.txt", "One line.\n");
    // More ranks than experts, too.
    let found = place.rows(8, &model, &one, "one.h5", FRENCH);
    assert_eq!(bits(&found), bits(&alone[..1]), "1 line on 8 ranks");
    for (ranks, groups) in [
        (4, "--expert-parallel 2"),
        (3, "--expert-parallel 1"),
        (8, "--expert-parallel 2"),
    ] {
        let out = format!("{ranks}.h5");
        let found = place.rows(ranks, &model, &three, &out, &format!("{FRENCH} {groups}"));
        assert_eq!(bits(&found), bits(&alone), "3 lines on {ranks} ranks {groups}");
    }
}

#[test]
fn an_empty_input_is_an_empty_output() {
    let Some(place) = Place::new() else { return };
    let model = SmallModel::new(2).save(&place, "model");
    let empty = place.write("empty.txt", "");
    for (ranks, flags) in [(1, ""), (2, ""), (4, "--expert-parallel 2 --routing tokens --scores")] {
        let out = format!("{ranks}.h5");
        assert!(place
            .rows(ranks, &model, &empty, &out, &format!("{FRENCH} {flags}"))
            .is_empty());
        assert_eq!(place.show(&out, &[]), "");
        assert!(place.show(&out, &["--summary"]).contains("rows     0"));
    }
}

#[test]
fn sentences_ten_times_longer_on_one_rank() {
    let Some(place) = Place::new() else { return };
    let model = SmallModel::new(4).save(&place, "model");
    let short = (0..12).map(|i| format!("Line {i}.\n"));
    let long = (0..4).map(|i| format!("Paragraph {i} {}\n", "goes on and on about printers ".repeat(12)));
    let input = place.write("in.txt", short.chain(long).collect::<String>());
    let alone = place.rows(1, &model, &input, "1.h5", FRENCH);
    for (ranks, flags) in [(3, "--batch-tokens 100"), (4, "--expert-parallel 2 --batch-tokens 1")] {
        let found = place.rows(
            ranks,
            &model,
            &input,
            &format!("{ranks}.h5"),
            &format!("{FRENCH} {flags}"),
        );
        assert_eq!(bits(&found), bits(&alone), "{ranks} ranks {flags}");
    }
}

#[test]
fn more_ranks_than_experts() {
    let Some(place) = Place::new() else { return };
    let model = SmallModel::new(2).save(&place, "model");
    let text: String = (0..20).map(|i| format!("Press key {i} to go on.\n")).collect();
    let input = place.write("in.txt", text);
    let alone = place.rows(1, &model, &input, "1.h5", FRENCH);
    assert_eq!(bits(&place.rows(5, &model, &input, "5.h5", FRENCH)), bits(&alone));
}

#[test]
fn several_targets_stand_side_by_side() {
    let Some(place) = Place::new() else { return };
    let (model, input) = (
        bundled("en-fr-de"),
        place.write("in.txt", "Press any key.\n\nThe file was not found.\n"),
    );
    let both = place.rows(
        2,
        &model,
        &input,
        "both.h5",
        "--source eng_Latn --target fra_Latn,deu_Latn",
    );
    assert_eq!(both.len(), 6);
    let mut shown = vec![String::new(); 3];
    for (t, target) in ["fra_Latn", "deu_Latn"].into_iter().enumerate() {
        let alone = place.rows(
            2,
            &model,
            &input,
            &format!("{target}.h5"),
            &format!("--source eng_Latn --target {target}"),
        );
        let of_both: Vec<Row> = both.iter().skip(t).step_by(2).cloned().collect();
        assert_eq!(bits(&of_both), bits(&alone), "{target}");
        for (line, row) in shown.iter_mut().zip(&alone) {
            line.push_str(if t > 0 { "\t" } else { "" });
            line.push_str(&row.output);
        }
    }
    assert_eq!(place.show("both.h5", &[]), shown.join("\n") + "\n");
    assert_eq!(shown[1], "\t", "a blank line is blank in both");
}

#[test]
fn rows_name_their_own_languages() {
    let Some(place) = Place::new() else { return };
    let model = bundled("en-fr-de");
    let line = |text: &str, target: &str| {
        let input = place.write("line.txt", text);
        place.rows(
            1,
            &model,
            &input,
            &format!("{target}.h5"),
            &format!("--source eng_Latn --target {target}"),
        )
    };
    let (french, german) = (line("Press any key.", "fra_Latn"), line("Open the file.", "deu_Latn"));
    let wanted = [bits(&french), bits(&german)].concat();
    let tsv = "text\ttarget_lang\tsource_lang\tid\nPress any key.\tfra_Latn\teng_Latn\ta\nOpen the file.\tdeu_Latn\teng_Latn\tb\n";
    let jsonl = concat!(
        "{\"custom_id\": \"a\", \"text\": \"Press any key.\", \"target_lang\": \"fra_Latn\"}\n",
        "{\"custom_id\": \"b\", \"text\": \"Open the file.\", \"target_lang\": \"deu_Latn\"}\n"
    );
    // In JSONL here the job names the source; a row's own target wins over the job's.
    for (name, content, flags) in [
        ("in.tsv", tsv, ""),
        ("in.jsonl", jsonl, "--source eng_Latn --target fra_Latn"),
    ] {
        let found = place.rows(2, &model, &place.write(name, content), &format!("{name}.h5"), flags);
        assert_eq!(bits(&found), wanted, "{name}");
        assert!(
            found.iter().map(|r| r.id.as_deref()).eq([Some("a"), Some("b")]),
            "{name}"
        );
    }
}

#[test]
fn standard_input_and_packed_files_give_the_same_rows() {
    let Some(place) = Place::new() else { return };
    let model = SmallModel::new(4).save(&place, "model");
    let text = "First line.\n\nThird line, without an end";
    let plain = place.write("in.txt", text);
    let wanted = place.rows(2, &model, &plain, "plain.h5", FRENCH);
    let blank = |r: &Row| r.status == Status::Blank;
    assert!(wanted.iter().map(blank).eq([false, true, false]));
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gz.write_all(text.as_bytes()).expect("packed");
    let gz = place.write("in.txt.gz", gz.finish().expect("packed"));
    let zst = place.write("in.txt.zst", zstd::encode_all(text.as_bytes(), 3).expect("packed"));
    for (name, input) in [("gz", gz), ("zst", zst)] {
        let found = place.rows(2, &model, &input, &format!("{name}.h5"), FRENCH);
        assert_eq!(bits(&found), bits(&wanted), "{name}");
    }
    let arguments = place.job(&model, "-".as_ref(), "stdin.h5", FRENCH);
    place.start(2, &[], Some(&plain), &arguments).ok();
    assert_eq!(bits(&read(&place.path("stdin.h5"))), bits(&wanted), "standard input");
    assert!(!place.path("stdin.h5.stdin.txt").exists(), "its copy is removed");
}
