//! Where lines end, and lines that are no text.

use super::input::{rows, scanned, written, LIMITS, SMALL};
use tempfile::TempDir;

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
