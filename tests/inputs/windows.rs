//! Windows of rows, of plain and packed files.

use super::input::{gzip, rows, scanned, written, zstd, SMALL};
use sluicegate::corpus::{scan, Reading, Scan, WindowReader};
use tempfile::TempDir;

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
