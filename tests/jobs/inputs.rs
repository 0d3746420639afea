//! Every text that a batch job meets, through the program: what `docs/inputs.md` says is what happens.

use crate::place::{bundled, Place};
use crate::small_model::SmallModel;
use sluicegate::results::{Row, Status};
use std::io::Write;
use std::path::PathBuf;

const FRENCH: &str = "--source eng_Latn --target fra_Latn --max-new-tokens 6";

fn place() -> Option<(Place, PathBuf)> {
    let place = Place::new()?;
    let model = SmallModel::new(4).save(&place, "model");
    Some((place, model))
}

/// Lines out = lines in, by what `show` prints, in every format.
#[track_caller]
fn assert_lines(place: &Place, out: &str, lines: usize) {
    for (format, header) in [("text", 0), ("tsv", 1), ("jsonl", 0)] {
        let shown = place.show(out, &["--format", format]);
        assert_eq!(shown.matches('\n').count(), lines + header, "{format}: {shown:?}");
        assert_eq!(shown.lines().count(), lines + header, "{format}");
        let breaks = ['\r', '\x0b', '\x0c', '\u{85}', '\u{2028}', '\u{2029}'];
        assert!(format == "jsonl" || !shown.contains(breaks), "{format}: {shown:?}");
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packer.write_all(bytes).expect("packed");
    packer.finish().expect("packed")
}

#[test]
fn odd_lines_are_rows_like_any_other() {
    let Some((place, model)) = place() else { return };
    let long = "the printer ".repeat(600);
    let lines = [
        "First, after a byte order mark.",
        "",
        " \t\u{3000}",
        "a lone\rcarriage return",
        "line\u{2028}separator, next\u{85}line",
        "vertical\u{b}tab, form\u{c}feed, paragraph\u{2029}separator",
        "\u{1f9ff}\u{10a60}\u{13000}",
        "typed </s> fra_Latn <pad> tokens",
        long.trim_end(),
        "\u{feff}a mark elsewhere",
        "windows line end",
        "no final newline",
    ];
    let mut text = format!("\u{feff}{}", lines.join("\n"));
    text = text.replace("windows line end", "windows line end\r");
    let input = place.write("in.txt", text);
    let rows = place.rows(2, &model, &input, "out.h5", FRENCH);
    assert_eq!(rows.len(), lines.len());
    for (row, line) in rows.iter().zip(lines) {
        assert_eq!(row.input, line);
        let blank = line.trim().is_empty();
        assert_eq!(row.status == Status::Blank, blank, "{line:?}: {:?}", row.status);
        assert_eq!(row.ids.is_empty(), blank, "{line:?}");
        assert_ne!(row.status, Status::Failed, "{line:?}");
    }
    assert_lines(&place, "out.h5", lines.len());
}

#[test]
fn a_line_beyond_the_models_positions_is_cut_and_says_so() {
    let Some(place) = Place::new() else { return };
    let input = place.write(
        "in.txt",
        "Press any key.\n".to_string() + &"Press any key. ".repeat(400) + "\n",
    );
    let rows = place.rows(
        1,
        &bundled("en-fr-de"),
        &input,
        "out.h5",
        "--source eng_Latn --target fra_Latn",
    );
    assert_eq!(rows[0].status, Status::Ok);
    // A search that reaches its own limit says that instead.
    assert!(
        matches!(rows[1].status, Status::InputCut | Status::LengthLimit),
        "{:?}",
        rows[1].status
    );
    assert_eq!(rows[1].input.len(), 400 * 15);
    assert_lines(&place, "out.h5", 2);
}

#[test]
fn a_line_of_ten_megabytes_is_taken() {
    let Some((place, model)) = place() else { return };
    let line = "This sentence goes on and on. ".repeat(10 * (1 << 20) / 30);
    let input = place.write("in.txt", format!("Before.\n{line}\nAfter.\n"));
    let rows = place.rows(2, &model, &input, "out.h5", FRENCH);
    assert_eq!(
        rows.iter().map(|r| r.input.len()).collect::<Vec<_>>(),
        [7, line.len(), 6]
    );
    assert!(matches!(rows[1].status, Status::InputCut | Status::LengthLimit));
    assert_eq!(place.show("out.h5", &[]).lines().count(), 3);
}

#[test]
fn empty_inputs_have_no_rows() {
    let Some((place, model)) = place() else { return };
    for (i, (name, bytes)) in [("in.txt", &b""[..]), ("in.txt", b"\xEF\xBB\xBF"), ("in.jsonl", b"")]
        .iter()
        .enumerate()
    {
        let out = format!("{i}.h5");
        assert!(place
            .rows(2, &model, &place.write(name, bytes), &out, FRENCH)
            .is_empty());
        assert_lines(&place, &out, 0);
    }
}

#[test]
fn rows_that_cannot_be_used_are_refused_or_kept_as_failed() {
    let Some((place, model)) = place() else { return };
    let json = concat!(
        "{\"text\": \"good\"}\nnot json\n[1]\n{\"custom_id\": \"x\"}\n{\"text\": \"a\\u0000b\"}\n",
        "{\"text\": \"lone \\ud800\"}\n{\"text\": \"b\", \"target_lang\": 3}\n{\"text\": \"good too\"}\n"
    );
    for (name, bytes, bad, words) in [
        (
            "in.txt",
            &b"good\ncaf\xE9\nnul\0here\ngood too"[..],
            &[1, 2][..],
            &["line 2: not UTF-8: 0xE9", "line 3: a NUL", "2 of 4 rows", "iconv"][..],
        ),
        (
            "in.jsonl",
            json.as_bytes(),
            &[1, 2, 3, 4, 5, 6],
            &["6 of 8 rows", "line 2", "line 7"],
        ),
        (
            "in.tsv",
            b"text\tid\ngood\ta\nno cell\nthree\tb\tc\ngood too\td\n",
            &[1, 2],
            &["2 of 4 rows", "line 3", "line 4"],
        ),
    ] {
        let input = place.write(name, bytes);
        place.refused(2, &model, &input, FRENCH, words);
        let out = format!("{name}.h5");
        let end = place.translate(2, &model, &input, &out, &format!("{FRENCH} --on-error skip"));
        assert_eq!((end.code, end.errors()), (1, 0), "{name}: {end:#?}");
        let rows = crate::place::read(&place.path(&out));
        for (i, row) in rows.iter().enumerate() {
            let failed = bad.contains(&i);
            assert_eq!(row.status == Status::Failed, failed, "{name}, row {i}");
            assert_eq!(row.ids.is_empty(), failed, "{name}, row {i}");
        }
        if name == "in.jsonl" {
            assert_eq!(rows[3].id.as_deref(), Some("x"), "who mends rows finds them by it");
        }
        assert_lines(&place, &out, rows.len());
        // Finished, it is left alone; that some rows failed is not forgotten.
        let again = place.translate(2, &model, &input, &out, &format!("{FRENCH} --on-error skip"));
        assert!(
            again.code == 1 && again.stdout.contains("finished already"),
            "{again:#?}"
        );
        // Merged later, the exit codes are the same.
        let later = format!("later-{out}");
        let flags = format!("{FRENCH} --on-error skip --no-merge");
        assert_eq!(place.translate(2, &model, &input, &later, &flags).code, 1);
        assert_eq!(place.sluice(&[], &["merge", &place.arg(&later)]).code, 1);
        assert_eq!(crate::place::read(&place.path(&later)), rows);
    }
}

#[test]
fn rows_without_a_language_are_refused_or_kept_as_failed() {
    let Some((place, model)) = place() else { return };
    let text = "text\ttarget_lang\nfirst\tfra_Latn\n\t\nthird\t\nfourth\tdeu_Latn\n";
    let input = place.write("in.tsv", text);
    let source = "--source eng_Latn --max-new-tokens 4";
    place.refused(2, &model, &input, source, &["--target", "in.tsv, line 4"]);
    let end = place.translate(2, &model, &input, "out.h5", &format!("{source} --on-error skip"));
    assert_eq!(end.code, 1, "{end:#?}");
    let statuses: Vec<Status> = crate::place::read(&place.path("out.h5"))
        .iter()
        .map(|r| r.status)
        .collect();
    assert_eq!(statuses[1..3], [Status::Blank, Status::Failed]);
    // A language for all covers the rows that name none.
    let end = place.translate(2, &model, &input, "all.h5", &format!("{source} --target fra_Latn"));
    assert_eq!(end.code, 0, "{end:#?}");
}

#[test]
fn what_is_no_usable_file_is_refused_with_its_name_and_a_cure() {
    let Some((place, model)) = place() else { return };
    let text: Vec<u8> = (0..2000u32)
        .flat_map(|i| format!("{:x}\n", i.wrapping_mul(2_654_435_761)).into_bytes())
        .collect();
    let gz = gzip(&text);
    let zst = zstd::encode_all(&text[..], 3).expect("packed");
    let mut damaged = gz.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 64].fill(0x55);
    for (name, bytes, words) in [
        (
            "cut.txt.gz",
            &gz[..gz.len() / 2],
            &["cut.txt.gz", "ends in the middle of a member"][..],
        ),
        (
            "cut.txt.zst",
            &zst[..zst.len() / 2],
            &["cut.txt.zst", "ends in the middle of a frame"],
        ),
        ("damaged.gz", &damaged, &["damaged.gz", "decoded byte"]),
        ("empty.gz", b"", &["empty.gz", "empty file"]),
        ("packed.txt", &gz, &["packed.txt", ".gz"]),
        ("wide.txt", b"\xFF\xFEa\0\n\0", &["wide.txt", "iconv -f UTF-16"]),
        (
            "pointer.txt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            &["pointer.txt", "git lfs pull"],
        ),
        (
            "headless.tsv",
            b"One sentence.\tAnother.\n",
            &["headless.tsv", "header"],
        ),
    ] {
        place.refused(2, &model, &place.write(name, bytes), FRENCH, words);
    }
    place.refused(2, &model, &model, FRENCH, &["is a folder"]);
    place.refused(2, &model, &place.path("absent.txt"), FRENCH, &["absent.txt"]);
    place.refused(2, &model, "/dev/null".as_ref(), FRENCH, &["/dev/null", "`-`"]);
}

#[test]
fn languages_are_checked_before_work() {
    let Some((place, model)) = place() else { return };
    let input = place.write("in.txt", "One line.\n");
    let refused = |flags: &str, words: &[&str]| place.refused(2, &model, &input, flags, words);
    refused(
        "--source eng_Latn --target fra_Latm",
        &["--target fra_Latm", "fra_Latn"],
    );
    refused("--source english --target fra_Latn", &["--source english"]);
    refused("--source eng_Latn", &["--target is missing"]);
    refused("--target fra_Latn", &["--source is missing"]);
    let tsv = place.write("in.tsv", "text\ttarget_lang\na\tfra_Latn\nb\tfrench\n");
    place.refused(2, &model, &tsv, "--source eng_Latn", &["in.tsv, line 3", "french"]);
    let end = place.translate(
        2,
        &model,
        &input,
        "same.h5",
        "--source fra_Latn --target fra_Latn --max-new-tokens 4",
    );
    end.says(&["also the source language"]);
    end.ok();
}

#[test]
fn the_output_may_not_be_the_input() {
    let Some((place, model)) = place() else { return };
    let input = place.write("in.txt", "One line.\n");
    std::os::unix::fs::symlink(&input, place.path("link.h5")).expect("a link");
    for out in ["in.txt", "link.h5"] {
        for flags in ["", "--overwrite"] {
            let end = place.translate(2, &model, &input, out, &format!("{FRENCH} {flags}"));
            end.refused(&["in.txt", "same file"]);
        }
    }
    assert_eq!(std::fs::read(&input).expect("the input"), b"One line.\n");
    assert!(!place.path("in.txt.parts").exists());
}

#[test]
fn many_odd_rows_keep_their_place_on_several_groups() {
    let Some((place, model)) = place() else { return };
    let line = |i: usize| match i % 5 {
        0 => String::new(),
        1 => format!("Line {i}\u{2028}goes on."),
        2 => "x ".repeat(i),
        3 => format!("\u{1f9ff}{i}"),
        _ => format!("Line {i}."),
    };
    let lines: Vec<String> = (0..60).map(line).collect();
    let input = place.write("in.txt", lines.join("\n") + "\n");
    let rows: Vec<Row> = place.rows(4, &model, &input, "out.h5", &format!("{FRENCH} --expert-parallel 2"));
    assert!(rows.iter().map(|r| &r.input).eq(&lines));
    assert_lines(&place, "out.h5", 60);
}
