//! Several files as one input.

use super::input::{gzip, rows, written, zstd, LIMITS, SMALL};
use sluicegate::corpus::{paths, scan, Reading, Scan, WindowLimits, WindowReader};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Several files: their names, bytes, and the texts of their rows with the lines that they stand in.
type Files<'a> = Vec<(&'a str, Vec<u8>, Vec<(&'a str, u64)>)>;

fn several() -> Files<'static> {
    vec![
        ("empty.txt", b"".to_vec(), vec![]),
        ("a.txt", b"one\n\ntwo".to_vec(), vec![("one", 1), ("", 2), ("two", 3)]),
        ("header.tsv", b"id\ttext\n".to_vec(), vec![]),
        (
            "b.tsv",
            b"id\ttext\r\n1\tthree\r\n\r\n2\tfour and more\r\n".to_vec(),
            vec![("three", 2), ("", 3), ("four and more", 4)],
        ),
        ("mark.txt", b"\xEF\xBB\xBF".to_vec(), vec![]),
        (
            "c.jsonl.zst",
            zstd(b"{\"text\": \"five\"}\n{\"text\": \"six\"}"),
            vec![("five", 1), ("six", 2)],
        ),
        (
            "d.gz",
            gzip("\u{FEFF}seven\neight\nnine\nten\neleven\n".as_bytes()),
            vec![("seven", 1), ("eight", 2), ("nine", 3), ("ten", 4), ("eleven", 5)],
        ),
        ("none.gz", gzip(b""), vec![]),
    ]
}

#[test]
fn rows_are_numbered_through_all_files() {
    let dir = TempDir::new().unwrap();
    let files = several();
    files
        .iter()
        .for_each(|(name, bytes, _)| drop(written(&dir, name, bytes)));
    let count = files.len();
    // All in order; the other way round; some twice, with empty ones at the end.
    let orders = [
        (0..count).collect::<Vec<_>>(),
        (0..count).rev().collect(),
        vec![3, 3, 6, 1, 6, 0, 0],
        vec![1],
        vec![0, 4, 7],
    ];
    for order in orders {
        let given: Vec<PathBuf> = order.iter().map(|i| dir.path().join(files[*i].0)).collect();
        let twin: Vec<(&Path, &str, u64)> = order
            .iter()
            .zip(&given)
            .flat_map(|(i, path)| files[*i].2.iter().map(|(text, line)| (path.as_path(), *text, *line)))
            .collect();
        for limits in [
            LIMITS,
            SMALL,
            WindowLimits { lines: 1, bytes: 1 },
            WindowLimits { lines: 4, bytes: 1000 },
        ] {
            let scan = scan(&given, &Reading::default(), limits, &mut |_, _| ()).unwrap();
            assert_eq!((scan.rows, scan.refusal()), (twin.len() as u64, None));
            assert_eq!(scan.files.iter().map(|f| f.rows).sum::<u64>(), scan.rows);
            assert_eq!(scan.files.iter().map(|f| f.bytes).sum::<u64>(), scan.bytes);
            let most = scan.windows.iter().map(|w| w.rows).max().unwrap_or(0);
            assert!(most <= limits.lines && (limits != LIMITS || scan.windows.len() <= 1));
            let scan: Scan = serde_json::from_str(&serde_json::to_string(&scan).unwrap()).unwrap(); // as broadcast
            let found = rows(&scan);
            for (row, (path, text, line)) in found.iter().zip(&twin) {
                let place = scan.place(row.index);
                assert_eq!((place.path, row.text.as_str(), place.line), (*path, *text, *line));
            }
            let mut reader = WindowReader::open(&scan).unwrap();
            for window in (0..scan.windows.len())
                .rev()
                .chain([0, 0])
                .filter(|w| *w < scan.windows.len())
            {
                let first = scan.windows[window].first_row as usize;
                let again = reader.read(window).unwrap();
                assert_eq!(again, found[first..first + again.len()], "window {window}");
            }
        }
    }
    assert!(scan(&[] as &[&Path], &Reading::default(), LIMITS, &mut |_, _| ()).is_err());
}

#[test]
fn the_digest_tells_files_and_their_order() {
    let dir = TempDir::new().unwrap();
    let (a, b, c) = (
        written(&dir, "a.txt", b"x\n"),
        written(&dir, "b.txt", b"y"),
        written(&dir, "c.txt", b"x\ny"),
    );
    let tsv = written(&dir, "b.jsonl", b"y");
    let empty = written(&dir, "empty.txt", b"");
    let digest = |files: &[&Path]| scan(files, &Reading::default(), LIMITS, &mut |_, _| ()).unwrap().digest;
    let mut all = vec![
        digest(&[&a, &b]),
        digest(&[&b, &a]),
        digest(&[&c]),
        digest(&[&a, &b, &empty]),
        digest(&[&a, &tsv]),
        digest(&[&a, &a]),
        digest(&[&a]),
    ];
    assert_eq!(all[6], digest(&[&a]));
    assert_eq!(all[6].len(), 64);
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 7);
}

#[test]
fn messages_name_file_and_line() {
    let dir = TempDir::new().unwrap();
    let files = [
        written(&dir, "good.txt", b"a\nb\n"),
        written(&dir, "bad.tsv", b"text\tid\nc\t1\nd\n"),
        written(&dir, "bad.jsonl", b"{\"text\": \"e\"}\n\n{}\n"),
        written(&dir, "caf.txt", b"f\ncaf\xE9\n"),
    ];
    let scan = scan(&files, &Reading::default(), LIMITS, &mut |_, _| ()).unwrap();
    let message = scan.refusal().unwrap();
    for part in [
        "good.txt and 3 more files: 3 of 9 rows cannot be used",
        "bad.tsv, line 3: 1 columns",
        "bad.jsonl, line 3: the object has no field `text`",
        "caf.txt, line 2: not UTF-8: 0xE9 at byte 3 of the line, byte 5 of the file",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(rows(&scan)[3].problem.as_ref(), Some(&scan.problems[0].what));
}

#[test]
fn a_file_of_several_that_shrank_or_changed_is_named() {
    let dir = TempDir::new().unwrap();
    let (a, b) = (
        written(&dir, "a.txt", b"one\n"),
        written(&dir, "b.txt", b"two\nthree\n"),
    );
    let scan = scan(&[&a, &b], &Reading::default(), LIMITS, &mut |_, _| ()).unwrap();
    assert_eq!(scan.windows.len(), 1);
    fs::write(&b, b"two\nthrEe\n").unwrap();
    let message = WindowReader::open(&scan).unwrap().read(0).unwrap_err().to_string();
    assert!(
        message.contains("other bytes") && message.contains("b.txt, line 2"),
        "{message}"
    );
    fs::write(&b, b"two\n").unwrap();
    let message = WindowReader::open(&scan).err().unwrap().to_string();
    assert!(message.contains("b.txt: has 4 bytes, but 10"), "{message}");
    fs::write(&b, b"two\nthree\n").unwrap();
    assert_eq!(rows(&scan).len(), 3);
}

#[test]
fn patterns_lead_to_files() {
    let dir = TempDir::new().unwrap();
    written(&dir, "part-2.txt", b"c\n");
    written(&dir, "part-1.txt", b"a\nb\n");
    let found = paths(&[dir.path().join("part-*.txt"), dir.path().join("part-1.txt")]).unwrap();
    let scan = scan(&found, &Reading::default(), LIMITS, &mut |_, _| ()).unwrap();
    let texts: Vec<String> = rows(&scan).into_iter().map(|row| row.text).collect();
    assert_eq!(texts, ["a", "b", "c", "a", "b"]);
}
