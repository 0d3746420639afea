//! The record beside a segment: only with it a segment counts.

use super::durable::{checksum, write_whole};
use super::row::Timing;
use super::seal::{sealed, unseal};
use super::trace::StepRun;
use super::writer::Contents;
use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a segment holds, as JSON beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The version that wrote the segment.
    pub creator_version: String,
    /// How many rows it holds.
    pub rows: u64,
    /// The lowest and highest row; none without rows.
    pub span: Option<(u64, u64)>,
    /// Its rows as ranges, start and end (exclusive), ascending.
    pub ranges: Vec<(u64, u64)>,
    /// Which optional datasets its rows need.
    pub contents: Contents,
    /// Where runs of the trace lie.
    pub steps: Vec<StepRun>,
    /// What the rank spent so far.
    pub timing: Timing,
    /// Which segment of the rank in this attempt, counting up.
    pub seq: u32,
    /// Size of the segment.
    pub bytes: u64,
    /// SHA-256 of the segment's bytes.
    pub sha256: String,
}

/// Ascending row numbers as ranges, start and end (exclusive).
pub(crate) fn ranges_of(rows: impl Iterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for row in rows {
        match ranges.last_mut() {
            Some((_, end)) if *end == row => *end += 1,
            _ => ranges.push((row, row + 1)),
        }
    }
    ranges
}

impl Record {
    /// The record of a segment file: same name, `.json` instead of `.h5`.
    pub fn path(segment: &Path) -> PathBuf {
        segment.with_extension("json")
    }

    /// Writes the record of `segment`, wholly or not at all.
    pub fn write(&self, segment: &Path) -> Result<()> {
        let json = sealed(self).context("cannot write a segment's record as JSON")?;
        write_whole(&Record::path(segment), &json, || {
            crate::comm::crash::crash_point("record-before-rename")
        })
    }

    /// Reads the record of `segment`, without looking at the segment.
    pub fn read(segment: &Path) -> Result<Record> {
        let path = Record::path(segment);
        let json = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        unseal(&json).with_context(|| format!("{} is not a whole segment record", path.display()))
    }

    /// Compares the segment's bytes with the record.
    pub fn verify(&self, segment: &Path) -> Result<()> {
        let (sha256, bytes) = checksum(segment)?;
        ensure!(
            bytes == self.bytes && sha256 == self.sha256,
            "{} is torn: {bytes} bytes with SHA-256 {}, its record says {} bytes with {}",
            segment.display(),
            &sha256[..12],
            self.bytes,
            self.sha256.get(..12).unwrap_or(&self.sha256)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ranges_of;

    #[test]
    fn neighbours_become_ranges() {
        assert_eq!(ranges_of([1, 2, 5, 7, 8].into_iter()), [(1, 3), (5, 6), (7, 9)]);
        assert!(ranges_of(std::iter::empty()).is_empty());
    }
}
