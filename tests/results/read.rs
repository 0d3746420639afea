//! Reading and showing what is finished, and what is no finished file.

use super::job::{folder, folder_alone, identity, open, row, run_split, show, write, write_plain, Dice};
use super::large::score;
use hdf5::types::VarLenUnicode;
use serde_json::json;
use sluicegate::job;
use sluicegate::job::show::{ShowFormat, ShowOptions};
use sluicegate::results::{parts_path, JobIdentity, Opened, Parts, Results, Row, Status, Tally};
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn awkward_texts_come_back() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let texts = [
        "",
        "a\0b",
        "x\u{2028}y\u{85}z",
        "\u{feff}bom",
        "😀 ünïcödé",
        "tab\tcr\rlf\nend",
    ];
    let long = "lang ".repeat(2 << 20);
    let mut rows: Vec<Row> = (0..7)
        .map(|index| {
            let text = texts.get(index).map_or_else(|| long.clone(), |text| (*text).to_owned());
            Row {
                index: index as u64,
                input: text.clone(),
                output: text,
                score: f32::NEG_INFINITY,
                ..Row::default()
            }
        })
        .collect();
    let (parts, _) = open(&out, 7);
    write_plain(&parts, 0, rows.clone());
    parts.merge(&mut Tally::default()).expect("a merge");
    rows[1].input = "a\u{2400}b".into();
    rows[1].output = "a\u{2400}b".into();
    let results = Results::open(&out).expect("results");
    assert!(!results.has_logprobs() && results.routing().is_none());
    assert!(results.read(0..7).expect("rows") == rows);
    let shown = show(&out, ShowFormat::Text, false);
    assert_eq!(shown.matches('\n').count(), 7);
    assert_eq!(shown.lines().nth(5), Some("tab\tcr lf end"));
    assert_eq!(shown.lines().nth(2), Some("x y z"));
}

#[test]
fn rows_are_shown_in_every_format() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 4);
    write(&parts, 0, 0, (0..4).map(row).collect());
    drop(parts);
    let mut said = Vec::new();
    job::merge::run(&job::merge::MergeOptions { path: parts_path(&out) }, &mut said).expect("a merge");
    assert!(String::from_utf8_lossy(&said).contains("4 rows from 1 segments"));
    assert_eq!(show(&out, ShowFormat::Text, false), "ligne 0\nligne 1\nligne 2\n\n");
    let tsv = show(&out, ShowFormat::Tsv, false);
    assert_eq!(
        tsv.lines().next(),
        Some("index\tid\tstatus\tscore\ttarget_lang\tsource\toutput")
    );
    assert_eq!(
        tsv.lines().nth(2),
        Some("1\t\tok\t-0.33333334\tdeu_Latn\tline 1   é x\tligne 1")
    );
    assert!(tsv
        .lines()
        .nth(3)
        .is_some_and(|line| line.starts_with("2\tdoc-2\tok\t")));
    let jsonl = show(&out, ShowFormat::Jsonl, false);
    let second: serde_json::Value = serde_json::from_str(jsonl.lines().nth(2).expect("a line")).expect("JSON");
    assert_eq!(second["ids"], json!([2, 1002]));
    assert_eq!(
        (&second["id"], &second["target_lang"], &second["logprobs"][0]),
        (&json!("doc-2"), &json!("fra_Latn"), &json!(-0.0))
    );
    assert!(jsonl
        .lines()
        .nth(1)
        .is_some_and(|line| line.contains("-0.33333334") && !line.contains("\"id\"")));
}

#[test]
fn a_closed_pipe_is_no_error() {
    struct Closed(usize);
    impl std::io::Write for Closed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.0 -= 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let folder = folder();
    let out = folder.path().join("out.h5");
    run_split(&out, 500, &mut Dice(5));
    for format in [ShowFormat::Text, ShowFormat::Tsv, ShowFormat::Jsonl] {
        let options = ShowOptions {
            path: out.clone(),
            format,
            summary: false,
        };
        job::show::run(&options, &mut Closed(0)).expect("quiet");
        job::show::run(&options, &mut Closed(1)).expect("quiet");
    }
}

#[test]
fn scores_are_shown_and_rows_without_one_are_blank() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let identity = JobIdentity {
        job: "score".into(),
        ..identity(3)
    };
    let Ok(Opened::Ready { parts, .. }) = Parts::open_or_create(&out, &identity, false) else {
        panic!("not opened")
    };
    let status = |status, score| Row {
        status,
        score,
        output: "a target".into(),
        ..Row::default()
    };
    let mut rows = vec![
        status(Status::Ok, -1.5),
        status(Status::Blank, 0.0),
        status(Status::Failed, 0.0),
    ];
    (0..).zip(&mut rows).for_each(|(i, row)| row.index = i);
    write_plain(&parts, 0, rows);
    parts.merge(&mut Tally::default()).expect("a merge");
    assert_eq!(show(&out, ShowFormat::Text, false), "-1.5\n\n\n");
    let tsv = show(&out, ShowFormat::Tsv, false);
    assert!(tsv.contains("ok\t-1.5\t") && tsv.contains("blank\t\t"), "{tsv}");
    let jsonl = show(&out, ShowFormat::Jsonl, false);
    assert_eq!(jsonl.matches("\"score\":null").count(), 2, "{jsonl}");
}

#[test]
fn opening_says_what_is_wrong() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let message = |path: &Path| format!("{:#}", Results::open(path).map(drop).expect_err("refused"));
    assert!(message(&out).contains("cannot open"));
    let (parts, _) = open(&out, 1);
    assert!(message(&out).contains("sluice merge"));
    assert!(message(parts.dir()).contains("sluice merge"));
    write(&parts, 0, 0, vec![row(0)]);
    parts.merge(&mut Tally::default()).expect("a merge");
    let bytes = fs::read(&out).expect("bytes");
    fs::write(&out, &bytes[..bytes.len() / 2]).expect("cut");
    assert!(message(&out).contains("cut off"), "{}", message(&out));
    fs::write(&out, b"").expect("emptied");
    assert!(message(&out).contains("not an HDF5 file"));
}

#[test]
fn other_readers_can_open_it() {
    let folder = folder_alone();
    if Command::new("h5dump").arg("--version").output().is_err() {
        eprintln!("skipped: h5dump (hdf5-tools) is not there");
        return;
    }
    let out = folder.path().join("out.h5");
    run_split(&out, 12, &mut Dice(4));
    let dump = Command::new("h5dump").arg(&out).output().expect("h5dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8_lossy(&dump.stdout);
    for found in [
        "ligne 11",
        "DATASET \"logprobs\"",
        "H5T_CSET_UTF8",
        "GROUP \"encoder.layers.1\"",
        "ATTRIBUTE \"units\"",
    ] {
        assert!(text.contains(found), "{found} is not in h5dump's output");
    }
}

#[test]
fn datasets_of_another_length_are_named() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    score(&out, 6).merge(&mut Tally::default()).expect("a merge");
    let whole = fs::read(&out).expect("bytes");
    let refused = |change: &dyn Fn(&hdf5::File)| {
        fs::write(&out, &whole).expect("written");
        let file = hdf5::File::open_rw(&out).expect("a file");
        change(&file);
        file.close().expect("closed");
        format!("{:#}", Results::open(&out).map(drop).expect_err("refused"))
    };
    for name in [
        "scores/logprobs",
        "scores/ranks",
        "scores/top_ids",
        "scores/top_logprobs",
        "tokens/ids",
    ] {
        let message = refused(&|file| {
            let data = file.dataset(name).expect(name);
            let mut shape = data.shape();
            shape[0] -= 1;
            data.resize(shape).expect("cut");
        });
        for part in ["out.h5 is damaged", &format!("/{name} has "), "/offsets says "] {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    for name in ["scores/offsets", "tokens/offsets", "output/score", "output/bytes"] {
        let message = refused(&|file| file.dataset(name).expect(name).resize(vec![4]).expect("cut"));
        assert!(message.contains(&format!("/{name} has 4")), "{name}: {message}");
    }
    let message = refused(&|file| {
        let scores = file.group("scores").expect("a group");
        scores.unlink("top_logprobs").expect("gone");
        let tokens = scores.dataset("logprobs").expect("a dataset").shape()[0];
        let narrow = scores.new_dataset::<f32>().shape((tokens, 3));
        narrow.create("top_logprobs").expect("made");
    });
    assert!(
        message.contains("/scores/top_logprobs has 3 numbers a token"),
        "{message}"
    );
    for (rows, outputs) in [(6, 0), (6, 4), (3, 1)] {
        let message = refused(&|file| {
            let attribute = file.attr("identity").expect("an identity");
            let text: VarLenUnicode = attribute.read_scalar().expect("a text");
            let mut identity: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            (identity["rows"], identity["outputs"]) = (json!(rows), json!(outputs));
            let text: VarLenUnicode = identity.to_string().parse().expect("a text");
            attribute.write_scalar(&text).expect("written");
        });
        for part in ["out.h5", "damaged", &format!("{rows} rows")] {
            assert!(message.contains(part), "{rows} {outputs}: {message}");
        }
    }
    // What only shows as rows are read.
    fs::write(&out, &whole).expect("written");
    let file = hdf5::File::open_rw(&out).expect("a file");
    let offsets = file.dataset("scores/offsets").expect("a dataset");
    let mut wrong = offsets.read_raw::<u64>().expect("offsets");
    wrong[2] = 1 << 40;
    offsets.write_raw(&wrong).expect("written");
    file.close().expect("closed");
    let message = Results::open(&out)
        .and_then(|results| results.read(0..2))
        .expect_err("refused");
    assert!(format!("{message:#}").contains("/scores/offsets"), "{message:#}");
}
