//! Inputs of a few bytes, and what is read of them.

use sluicegate::corpus::{scan, Reading, Record, Scan, WindowLimits, WindowReader};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub const LIMITS: WindowLimits = WindowLimits {
    lines: 65_536,
    bytes: 32 << 20,
};
pub const SMALL: WindowLimits = WindowLimits { lines: 3, bytes: 40 };

pub fn written(dir: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 0).unwrap();
    encoder.include_checksum(true).unwrap(); // as the `zstd` command does
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn scanned(path: &Path, limits: WindowLimits) -> Scan {
    scan(&[path], &Reading::default(), limits, &mut |_, _| ()).unwrap()
}

pub fn refused(path: &Path) -> String {
    format!(
        "{:#}",
        scan(&[path], &Reading::default(), LIMITS, &mut |_, _| ()).expect_err("must be refused")
    )
}

/// All rows, read through windows, after a check that the windows fit together.
pub fn rows(scan: &Scan) -> Vec<Record> {
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
