//! TSV, JSON lines, pairs and prompts: what is read of a row.

use super::input::{gzip, refused, rows, scanned, written, LIMITS, SMALL};
use sluicegate::corpus::{scan, Format, Kind, Prompt, Reading};
use std::path::Path;
use tempfile::TempDir;

#[test]
fn tsv_and_jsonl() {
    let dir = TempDir::new().unwrap();
    let tsv = "\u{FEFF}custom_id\ttext\ttarget_lang\r\na\tone\tfra_Latn\r\n\r\nb\ttwo\tdeu_Latn\r\nc\tthree";
    let scan = scanned(&written(&dir, "input.tsv", tsv.as_bytes()), SMALL);
    assert_eq!((scan.rows, scan.blank, scan.problem_count), (4, 1, 1));
    assert_eq!(scan.place(scan.problems[0].row).line, 5);
    let lines = scan
        .target_langs
        .iter()
        .map(|(code, row)| (code.as_str(), scan.place(*row).line));
    assert_eq!(lines.collect::<Vec<_>>(), [("deu_Latn", 4), ("fra_Latn", 2)]);
    let scan = scanned(&dir.path().join("input.tsv"), SMALL);
    let found = rows(&scan);
    assert_eq!((found[2].id.as_deref(), found[2].text.as_str()), (Some("b"), "two"));
    assert_eq!(found[2].target_lang.as_deref(), Some("deu_Latn"));

    let jsonl = "{\"id\": \"a\", \"text\": \"x\\ny\", \"source_lang\": \"eng_Latn\"}\n{\"text\": \"\"}\n{\"txt\": 1}\n";
    let scan = scanned(&written(&dir, "input.jsonl", jsonl.as_bytes()), LIMITS);
    assert_eq!((scan.rows, scan.blank, scan.problem_count), (3, 1, 1));
    assert_eq!(scan.source_langs["eng_Latn"], 0);
    assert_eq!(rows(&scan)[0].text, "x\ny");

    for (name, bytes, rows) in [
        ("empty.tsv", &b""[..], 0),
        ("header.tsv", b"id\ttext\n", 0),
        ("empty.jsonl", b"", 0),
    ] {
        assert_eq!(scanned(&written(&dir, name, bytes), LIMITS).rows, rows, "{name}");
    }
    let message = refused(&written(&dir, "none.tsv", b"Good morning.\tGuten Morgen.\n"));
    assert!(
        message.contains("none.tsv") && message.contains("no column `text`"),
        "{message}"
    );
    assert!(refused(&written(&dir, "latin.tsv", b"te\xE9xt\n")).contains("not UTF-8"));
}

#[test]
fn a_format_can_be_given_where_the_name_does_not_tell() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "part-0001", b"text\nx\n");
    let reading = Reading {
        format: Some(Format::Tsv),
        ..Reading::default()
    };
    let scan = scan(&[path], &reading, LIMITS, &mut |_, _| ()).unwrap();
    assert_eq!(rows(&scan)[0].text, "x");
}

#[test]
fn what_is_read_of_a_row_can_be_chosen() {
    let dir = TempDir::new().unwrap();
    let read = |path: &Path, reading: &Reading| scan(&[path], reading, LIMITS, &mut |_, _| ());
    let reading = |kind: Kind, columns: &str, field: &str| Reading {
        columns: (!columns.is_empty()).then(|| columns.parse().unwrap()),
        field: (!field.is_empty()).then(|| field.to_owned()),
        ..Reading::of(kind)
    };
    // TSV without a header; a blank line before the first row stays a row.
    let bare = written(&dir, "bare.tsv", b"\n7\tone\n8\ttwo\n9\n");
    let found = read(&bare, &reading(Kind::Documents, "2,id=1", "")).unwrap();
    assert_eq!((found.rows, found.blank, found.problem_count), (4, 1, 1));
    assert!(found
        .refusal()
        .unwrap()
        .contains("line 4: 1 columns, while the first row has 2"));
    let found = rows(&found);
    assert_eq!((found[2].text.as_str(), found[2].id.as_deref()), ("two", Some("8")));
    let message = format!("{:#}", read(&bare, &reading(Kind::Documents, "5", "")).unwrap_err());
    assert!(
        message.contains("bare.tsv") && message.contains("column 5"),
        "{message}"
    );
    // Under a byte order mark.
    let marked = written(&dir, "marked.tsv", "\u{FEFF}one\tx\n".as_bytes());
    let found = rows(&read(&marked, &reading(Kind::Documents, "1", "")).unwrap());
    assert_eq!(found[0].text, "one");

    let named = written(&dir, "named.tsv", b"lang\tsentence\tid\nen\tone\tk\n");
    let found = rows(&read(&named, &reading(Kind::Documents, "text=sentence", "")).unwrap());
    assert_eq!((found[0].text.as_str(), found[0].id.as_deref()), ("one", Some("k")));
    assert!(
        read(&named, &reading(Kind::Documents, "", "")).is_ok(),
        "the first column, as `id` is known"
    );

    let deep = written(
        &dir,
        "deep.jsonl",
        b"{\"doc\": {\"body\": \"one\"}}\n{\"doc\": 3}\n{\"doc\": {\"body\": 3}}\n",
    );
    let found = read(&deep, &reading(Kind::Documents, "", "doc.body")).unwrap();
    let message = found.refusal().unwrap();
    assert!(
        message.contains("line 2: the object has no field `doc.body`"),
        "{message}"
    );
    assert!(message.contains("line 3: `doc.body` is a number"), "{message}");
    assert_eq!(rows(&found)[0].text, "one");
    assert!(
        read(&deep, &reading(Kind::Documents, "1", "")).is_err(),
        "columns without TSV"
    );
    assert!(
        read(&bare, &reading(Kind::Documents, "", "a")).is_err(),
        "a field without JSONL"
    );
}

#[test]
fn pairs_and_prompts() {
    let dir = TempDir::new().unwrap();
    let read = |path: &Path, kind: Kind| scan(&[path], &Reading::of(kind), LIMITS, &mut |_, _| ()).unwrap();
    for (name, bytes) in [
        ("pairs.txt", &b"a b\tc\n\nd\t\n"[..]),
        ("pairs.tsv", b"target\tsource\nc\ta b\n\n\td\n"),
        (
            "pairs.jsonl",
            b"{\"source\": \"a b\", \"target\": \"c\"}\n\n{\"text\": \"d\", \"target\": \"\"}\n",
        ),
    ] {
        let found = read(&written(&dir, name, bytes), Kind::Pairs);
        assert_eq!((found.rows, found.blank, found.problem_count), (3, 2, 0), "{name}");
        let rows = rows(&found);
        assert_eq!(
            (rows[0].text.as_str(), rows[0].target.as_deref()),
            ("a b", Some("c")),
            "{name}"
        );
        assert_eq!(
            (rows[2].text.as_str(), rows[2].target.as_deref()),
            ("d", Some("")),
            "{name}"
        );
    }
    let message = read(&written(&dir, "no.txt", b"a\tb\nc\n"), Kind::Pairs)
        .refusal()
        .unwrap();
    assert!(message.contains("line 2: no tab"), "{message}");
    let plain = written(&dir, "no.tsv", b"a\tb\n");
    let message = scan(&[plain], &Reading::of(Kind::Pairs), LIMITS, &mut |_, _| ()).unwrap_err();
    assert!(format!("{message:#}").contains("--columns 1,2"), "{message:#}");

    let prompts = "{\"prompt\": \"a\"}\n\n{\"prompt_token_ids\": []}\n{\"custom_id\": \"x\", \"body\": {\"messages\": \
                   [{\"role\": \"user\", \"content\": \"b\"}], \"max_tokens\": 4}}\n{\"prompt\": 4}\n";
    let found = read(&written(&dir, "prompts.jsonl", prompts.as_bytes()), Kind::Prompts);
    assert_eq!(
        (found.rows, found.blank, found.problem_count, found.chat),
        (5, 2, 1, Some(3))
    );
    let rows = rows(&found);
    assert!(matches!(&rows[3].prompt, Prompt::Messages(chat) if chat.messages.len() == 1));
    assert_eq!(
        (rows[3].id.as_deref(), rows[3].settings.max_new_tokens),
        (Some("x"), Some(4))
    );
    assert!(found.refusal().unwrap().contains("line 5: `prompt` is a number"));
    let text = read(&written(&dir, "prompts.txt", b"a\tb\n"), Kind::Prompts);
    assert_eq!((text.chat, text.refusal()), (None, None));
}

#[test]
fn names_that_mislead_are_refused() {
    let dir = TempDir::new().unwrap();
    for (name, cure) in [("a.csv", ".tsv"), ("a.json", ".jsonl"), ("a.csv.gz", ".tsv")] {
        let path = written(
            &dir,
            name,
            &if name.ends_with("gz") {
                gzip(b"x\n")
            } else {
                b"x\n".to_vec()
            },
        );
        let message = refused(&path);
        assert!(message.contains(name) && message.contains(cure), "{message}");
        let lines = Reading {
            format: Some("lines".parse().unwrap()),
            ..Reading::default()
        };
        assert_eq!(scan(&[path], &lines, LIMITS, &mut |_, _| ()).unwrap().rows, 1);
    }
    assert!(
        refused(dir.path()).contains("/*.txt"),
        "a folder: the advice is a pattern"
    );
}
