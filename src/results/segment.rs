//! The segments that a merge reads, a few of them open at a time.

use super::reader::{open_hdf5, RowReader};
use super::row::{StepCounts, Timing};
use super::trace::StepRun;
use anyhow::{Context, Result};
use hdf5::File;
use std::collections::VecDeque;
use std::ops::Range;
use std::path::PathBuf;

/// Segments that are open at once, at most.
const OPEN: usize = 16;
/// Bytes of decoded chunks that HDF5 keeps per dataset of an open segment: one chunk.
const CHUNK_CACHE: usize = 256 << 10;

/// What is known of a segment before its rows are read.
pub(crate) struct Segment {
    pub path: PathBuf,
    pub span: Option<(u64, u64)>,
    pub steps: Vec<StepRun>,
    pub timing: Timing,
    pub seq: u32,
}

/// A segment that is being read.
pub(crate) struct OpenSegment {
    number: usize,
    pub rows: RowReader,
    pub index: Vec<u64>,
    _file: File,
}

impl OpenSegment {
    /// Where its part of `rows` stands.
    pub fn held(&self, rows: &Range<u64>) -> Range<usize> {
        let bound = |row: u64| self.index.partition_point(|index| *index < row);
        bound(rows.start)..bound(rows.end)
    }

    /// Entries of `run` whose step is in `window`.
    pub fn steps(&self, run: &StepRun, window: Range<u64>) -> Result<Vec<StepCounts>> {
        let Some(routing) = &self.rows.routing else {
            return Ok(Vec::new());
        };
        let numbers = routing.step_numbers(run.phase, run.entries.clone())?;
        let bound = |step: u64| run.entries.start + numbers.partition_point(|number| *number < step);
        routing.read_steps(run.phase, bound(window.start)..bound(window.end))
    }
}

/// The segments read last stay open: neighbouring windows need the same ones.
#[derive(Default)]
pub(crate) struct OpenSegments {
    open: VecDeque<OpenSegment>,
}

impl OpenSegments {
    pub fn get(&mut self, number: usize, segment: &Segment) -> Result<&OpenSegment> {
        match self.open.iter().position(|open| open.number == number) {
            Some(at) => {
                let found = self.open.remove(at);
                self.open.extend(found);
            }
            None => {
                if self.open.len() == OPEN {
                    self.open.pop_front();
                }
                let file = open_hdf5(&segment.path, CHUNK_CACHE)?;
                let rows = RowReader::open(&file)?;
                let index = rows.indices()?;
                self.open.push_back(OpenSegment {
                    number,
                    rows,
                    index,
                    _file: file,
                });
            }
        }
        self.open.back().context("no segment is open")
    }
}
