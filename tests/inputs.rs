//! Every odd input of `docs/inputs.md`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use sluicegate::corpus::{
    paths, refuse_overwrite, scan, spool, Format, Kind, Prompt, Reading, Record, Scan, WindowLimits, WindowReader,
};
use tempfile::TempDir;

const LIMITS: WindowLimits = WindowLimits {
    lines: 65_536,
    bytes: 32 << 20,
};
const SMALL: WindowLimits = WindowLimits { lines: 3, bytes: 40 };

fn written(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 0).unwrap();
    encoder.include_checksum(true).unwrap(); // as the `zstd` command does
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn scanned(path: &Path, limits: WindowLimits) -> Scan {
    scan(&[path], &Reading::default(), limits, &mut |_, _| ()).unwrap()
}

fn refused(path: &Path) -> String {
    format!(
        "{:#}",
        scan(&[path], &Reading::default(), LIMITS, &mut |_, _| ()).expect_err("must be refused")
    )
}

/// All rows, read through windows, after a check that the windows fit together.
fn rows(scan: &Scan) -> Vec<Record> {
    let mut reader = WindowReader::open(scan).unwrap();
    let mut rows: Vec<Record> = Vec::new();
    for (i, window) in scan.windows.iter().enumerate() {
        assert_eq!(window.first_row, rows.len() as u64);
        rows.extend(reader.read(i).unwrap());
    }
    assert_eq!(rows.len() as u64, scan.rows);
    assert!(rows.iter().zip(0..).all(|(row, i)| row.index == i));
    rows
}

/// The texts of a plain input with these bytes, none of which may have a problem.
fn texts(bytes: &[u8]) -> Vec<String> {
    let dir = TempDir::new().unwrap();
    let scan = scanned(&written(&dir, "input.txt", bytes), LIMITS);
    assert_eq!(scan.refusal(), None);
    rows(&scan).into_iter().map(|r| r.text).collect()
}

#[test]
fn lines_end_at_newline_only() {
    assert_eq!(texts(b""), Vec::<String>::new());
    assert_eq!(texts(b"\n"), [""]);
    assert_eq!(texts(b"a\nb"), ["a", "b"], "no final newline");
    assert_eq!(texts(b"a\nb\n"), ["a", "b"]);
    assert_eq!(texts(b"a\n\n \t\nb\n"), ["a", "", " \t", "b"], "blank lines");
    assert_eq!(texts(b"a\r\nb\r\n"), ["a", "b"], "Windows line ends");
    assert_eq!(texts(b"a\rb\nc\n"), ["a\rb", "c"], "a lone CR");
    let odd = "a\u{2028}b\u{85}c\u{B}d\u{C}e\u{2029}f\u{1C}g";
    assert_eq!(texts(format!("{odd}\nh\n").as_bytes()), [odd, "h"]);
    assert_eq!(texts(b"\xEF\xBB\xBFa\nb\n"), ["a", "b"], "a byte order mark");
    assert_eq!(
        texts(b"\xEF\xBB\xBF"),
        Vec::<String>::new(),
        "nothing but a byte order mark"
    );
    assert_eq!(
        texts("a\n\u{FEFF}b\n".as_bytes()),
        ["a", "\u{FEFF}b"],
        "it is a mark at the start only"
    );
}

#[test]
fn rows_that_are_no_text_are_named_and_kept_in_their_place() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "input.txt", b"good\ncaf\xE9 au lait\nnul\0here\n\xE2\x82\nlast");
    let scan = scanned(&path, SMALL);
    assert_eq!((scan.rows, scan.problem_count), (5, 3));
    let message = scan.refusal().unwrap();
    assert!(message.contains("input.txt: 3 of 5 rows cannot be used"), "{message}");
    assert!(
        message.contains("line 2: not UTF-8: 0xE9 at byte 3 of the line, byte 8 of the file"),
        "{message}"
    );
    assert!(
        message.contains("line 3: a NUL at byte 3 of the line, byte 21 of the file"),
        "{message}"
    );
    assert!(message.contains("line 4: not UTF-8: 0xE2 at byte 0"), "{message}");
    assert!(message.contains("iconv"), "{message}");
    let rows = rows(&scan);
    let problems: Vec<bool> = rows.iter().map(|r| r.problem.is_some()).collect();
    assert_eq!(problems, [false, true, true, true, false]);
    assert_eq!(rows[1].text, "caf\u{FFFD} au lait");
    assert_eq!(rows[2].text, "nul\u{FFFD}here");
    for (problem, row) in scan.problems.iter().zip([1, 2, 3]) {
        assert_eq!(
            Some(&problem.what),
            rows[row].problem.as_ref(),
            "the reader says what the scan said"
        );
    }
}

#[test]
fn only_the_first_problems_are_described() {
    let dir = TempDir::new().unwrap();
    let scan = scanned(&written(&dir, "input.jsonl", "{}\n".repeat(25).as_bytes()), LIMITS);
    assert_eq!((scan.problems.len(), scan.problem_count), (10, 25));
    assert!(scan.refusal().unwrap().ends_with("and 15 more"));
}

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
fn windows_do_not_depend_on_the_packing_and_can_be_read_in_any_order() {
    let dir = TempDir::new().unwrap();
    let lines: Vec<String> = (0..500).map(|i| "word ".repeat(i % 17)).collect();
    let text = format!("\u{FEFF}{}", lines.join("\n"));
    let half = text.len() / 2;
    let members = [
        gzip(&text.as_bytes()[..half]),
        gzip(b""),
        gzip(&text.as_bytes()[half..]),
    ]
    .concat();
    let frames = [zstd(&text.as_bytes()[..half]), zstd(&text.as_bytes()[half..])].concat();
    let plain = scanned(&written(&dir, "a.txt", text.as_bytes()), SMALL);
    let packed = [
        scanned(&written(&dir, "a.gz", &members), SMALL),
        scanned(&written(&dir, "a.txt.zst", &frames), SMALL),
    ];
    assert!(plain.windows.len() > 100);
    for window in &plain.windows {
        assert!(window.rows <= 3 && (window.rows == 1 || window.bytes <= 40));
    }
    assert_eq!(rows(&plain).iter().map(|r| r.text.clone()).collect::<Vec<_>>(), lines);
    for scan in packed {
        assert_eq!(
            (scan.digest.as_str(), scan.bytes),
            (plain.digest.as_str(), text.len() as u64)
        );
        assert_eq!(scan.windows, plain.windows);
        let scan: Scan = serde_json::from_str(&serde_json::to_string(&scan).unwrap()).unwrap(); // as broadcast
        let mut reader = WindowReader::open(&scan).unwrap();
        let mut twin = WindowReader::open(&plain).unwrap();
        for window in [7, 3, 90, 90, 0, scan.windows.len() - 1, 8] {
            assert_eq!(
                reader.read(window).unwrap(),
                twin.read(window).unwrap(),
                "window {window}"
            );
        }
        assert!(reader.read(scan.windows.len()).is_err());
    }
}

#[test]
fn progress_is_told_window_by_window() {
    let dir = TempDir::new().unwrap();
    let path = written(&dir, "a.txt", b"1\n2\n3\n4\n5\n6\n7\n");
    let mut told = Vec::new();
    scan(&[path], &Reading::default(), SMALL, &mut |rows, bytes| {
        told.push((rows, bytes))
    })
    .unwrap();
    assert_eq!(told, [(3, 6), (6, 12)]);
}

#[test]
fn cut_off_and_damaged_packed_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let text: Vec<u8> = (0..200_000u32)
        .flat_map(|i| format!("{:x}\n", i.wrapping_mul(2_654_435_761)).into_bytes())
        .collect();
    for (name, packed, part) in [("a.gz", gzip(&text), "member"), ("a.zst", zstd(&text), "frame")] {
        for cut in [3, packed.len() / 2, packed.len() - 1] {
            let message = refused(&written(&dir, name, &packed[..cut]));
            assert!(
                message.contains(&format!("ends in the middle of a {part}, at decoded byte")),
                "{cut}: {message}"
            );
        }
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0x55);
        assert!(
            refused(&written(&dir, name, &damaged)).contains("decoded byte"),
            "{name} damaged"
        );
        assert!(
            refused(&written(&dir, name, b"plain text\n")).contains("begins with"),
            "{name} that is plain"
        );
        assert!(
            refused(&written(&dir, name, b"")).contains("empty file"),
            "{name} of no bytes"
        );
        let garbage = [packed.as_slice(), b"garbage after the end"].concat();
        assert!(
            refused(&written(&dir, name, &garbage)).contains("a."),
            "{name} with something after it"
        );
    }
    assert_eq!(scanned(&written(&dir, "none.gz", &gzip(b"")), LIMITS).rows, 0);
    assert_eq!(scanned(&written(&dir, "none.zst", &zstd(b"")), LIMITS).rows, 0);
}

#[test]
fn what_is_no_text_file_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    for (bytes, cure) in [
        (gzip(b"x"), "name it .gz"),
        (zstd(b"x"), "name it .zst"),
        (b"\xFF\xFEa\0".to_vec(), "iconv -f UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
    ] {
        let message = refused(&written(&dir, "input.txt", &bytes));
        assert!(message.contains(cure) && message.contains("input.txt"), "{message}");
    }
    assert!(refused(dir.path()).contains("is a folder"));
    assert!(refused(&dir.path().join("absent.txt")).contains("absent.txt: cannot find"));
    assert!(refused(Path::new("/dev/null")).contains("no regular file"));
    let long = vec![b'a'; (64 << 20) + 1];
    let message = refused(&written(&dir, "long.txt", &[b"short\n", long.as_slice()].concat()));
    assert!(
        message.contains("begins at decoded byte 6 (row 1) has more than 64 MiB"),
        "{message}"
    );
}

#[test]
fn an_input_that_grows_is_read_as_far_as_the_scan_saw() {
    let dir = TempDir::new().unwrap();
    for (name, before, more) in [
        ("a.txt", b"one\ntwo\nthr".to_vec(), b"ee\nfour\n".to_vec()),
        ("a.gz", gzip(b"one\ntwo\nthr"), gzip(b"ee\nfour\n")),
        ("a.zst", zstd(b"one\ntwo\nthr"), zstd(b"ee\nfour\n")),
    ] {
        let path = written(&dir, name, &before);
        let scan = scanned(&path, LIMITS);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&more)
            .unwrap();
        assert_eq!(
            rows(&scan).iter().map(|r| r.text.as_str()).collect::<Vec<_>>(),
            ["one", "two", "thr"],
            "{name}"
        );
    }
}

#[test]
fn an_input_that_shrank_or_changed_is_refused() {
    let dir = TempDir::new().unwrap();
    let text = b"one\ntwo\nthree\nfour\nfive\n";
    for (name, packed) in [("a.txt", text.to_vec()), ("a.gz", gzip(text)), ("a.zst", zstd(text))] {
        let path = written(&dir, name, &packed);
        let scan = scanned(&path, SMALL);
        fs::write(&path, &packed[..packed.len() - 1]).unwrap();
        let message = format!("{:#}", WindowReader::open(&scan).err().expect("shorter"));
        assert!(message.contains("the input shrank"), "{message}");
    }
    let path = written(&dir, "b.txt", text);
    let scan = scanned(&path, SMALL);
    let mut reader = WindowReader::open(&scan).unwrap();
    fs::write(&path, b"one\ntwo\nthree\nfour\nfIve\n").unwrap();
    reader.read(0).unwrap();
    let message = reader.read(1).unwrap_err().to_string();
    assert!(
        message.contains("changed since it was scanned") && message.contains("rows 3 to 4"),
        "{message}"
    );
    fs::write(&path, b"one\ntwo\nthree\n").unwrap();
    assert!(reader.read(1).unwrap_err().to_string().contains("an end before that"));
    fs::remove_file(&path).unwrap();
    assert!(WindowReader::open(&scan).is_err());
}

#[test]
fn standard_input_is_kept_whole_or_not_at_all() {
    struct Breaks(u8);
    impl std::io::Read for Breaks {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Err(std::io::ErrorKind::Interrupted.into()),
                2 => {
                    buffer[0] = b'a';
                    Ok(1)
                }
                _ => Err(std::io::ErrorKind::ConnectionReset.into()),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("stdin.txt");
    assert_eq!(spool(&b"one\ntwo"[..], &path).unwrap(), 7);
    assert_eq!(scanned(&path, LIMITS).rows, 2);
    let broken = dir.path().join("broken.txt");
    let message = spool(Breaks(0), &broken).unwrap_err().to_string();
    assert!(message.contains("reading failed at byte 1"), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half is left");
    assert!(spool(&b"x"[..], &dir.path().join("no/such/folder.txt")).is_err());
}

#[test]
fn the_output_may_not_be_the_input() {
    let dir = TempDir::new().unwrap();
    let input = written(&dir, "a.txt", b"x\n");
    let other = written(&dir, "b.h5", b"");
    let link = dir.path().join("link.h5");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    refuse_overwrite(&input, &other).unwrap();
    refuse_overwrite(&input, &dir.path().join("new.h5")).unwrap();
    assert!(refuse_overwrite(&input, &link)
        .unwrap_err()
        .to_string()
        .contains("is the input"));
    assert!(refuse_overwrite(&input, &input).is_err());
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
