//! Making one file of all segments, window by window over the row numbers.

use super::attribute::{set_number, set_text};
use super::column::{About, Column};
use super::done::DoneRows;
use super::durable::{rename, with_suffix};
use super::identity::JobIdentity;
use super::lock::Lock;
use super::metrics::{put_metrics, Metric};
use super::reader::{open_hdf5, RowReader};
use super::record::Record;
use super::resume::{add_rows, finished, read_job, remove, segments};
use super::row::{Row, Timing};
use super::trace::{add_step, StepRun};
use super::writer::{make_file, make_group, Contents, RowWriter};
use super::CREATOR;
use crate::comm::crash::crash_point;
use anyhow::{ensure, Context, Result};
use hdf5::File;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows in a window, at most.
const WINDOW: u64 = 16_384;
/// Bytes of text, or of expert counts, in a window, about.
const WINDOW_BYTES: u64 = 16 << 20;
/// Segments that are open at once, at most.
const OPEN: usize = 16;
/// Bytes of decoded chunks that HDF5 keeps per dataset of an open segment: one chunk.
const CHUNK_CACHE: usize = 256 << 10;

/// Looks at all rows as they are put together, and says what is to stand under `/metrics`.
pub trait Judge {
    /// Takes the next rows; they come in ascending order, each once.
    ///
    /// # Errors
    /// Ends the merge; the segments stay.
    fn see(&mut self, rows: &[Row]) -> Result<()>;

    /// The figures, once all rows were seen.
    ///
    /// # Errors
    /// Ends the merge; the segments stay.
    fn metrics(&mut self) -> Result<Vec<Metric>>;
}

/// Figures that are known without looking at rows; none for a plain merge.
#[derive(Clone, Debug, Default)]
pub struct MergeExtra {
    /// Attributes under `/metrics`.
    pub metrics: Vec<Metric>,
}

impl Judge for MergeExtra {
    fn see(&mut self, _: &[Row]) -> Result<()> {
        Ok(())
    }

    fn metrics(&mut self) -> Result<Vec<Metric>> {
        Ok(self.metrics.clone())
    }
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeSummary {
    /// The finished file.
    pub out: PathBuf,
    /// Rows in it.
    pub rows: u64,
    /// Segments that went into it; 0 if it was there already.
    pub segments: usize,
    /// Its size.
    pub bytes: u64,
    /// It was there already, of the same job: only what was left of the parts was removed.
    pub already: bool,
}

/// Makes the finished file `out` of all segments in `parts_dir`, then removes the folder.
///
/// The file appears under its name whole or not at all. Memory doesn't grow with the number of rows.
///
/// # Errors
/// The job is still running; rows are missing or double; a segment is torn; `out` exists and belongs to another job; the
/// disk is full.
pub fn merge(parts_dir: &Path, out: &Path, judge: &mut dyn Judge) -> Result<MergeSummary> {
    ensure!(
        parts_dir.is_dir(),
        "there is no folder {}: nothing to merge",
        parts_dir.display()
    );
    read_job(parts_dir)?;
    let lock = Lock::take(&parts_dir.join("lock"))?;
    merge_locked(parts_dir, out, judge, lock)
}

/// [`merge`] by the holder of the lock.
pub(crate) fn merge_locked(dir: &Path, out: &Path, judge: &mut dyn Judge, lock: Lock) -> Result<MergeSummary> {
    crash_point("merge-start");
    let identity = read_job(dir)?.identity;
    let already = finished(out, &identity)?;
    let mut merged = 0;
    if !already {
        let merger = Merger::new(dir, identity.clone())?;
        merged = merger.segments.len();
        let temporary = with_suffix(out, ".merging");
        let made = make_file(&temporary, |file| merger.fill(file, out, judge));
        if made.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        made?;
        crash_point("merge-before-rename");
        rename(&temporary, out)?;
        crash_point("merge-after-rename");
    }
    remove(dir, lock);
    let bytes = fs::metadata(out).map_or(0, |file| file.len());
    Ok(MergeSummary {
        out: out.to_owned(),
        rows: identity.rows,
        segments: merged,
        bytes,
        already,
    })
}

/// All that is known of the segments before their rows are read.
struct Merger {
    identity: JobIdentity,
    contents: Contents,
    segments: Vec<Segment>,
    window: u64,
}

struct Segment {
    path: PathBuf,
    span: Option<(u64, u64)>,
    steps: Vec<StepRun>,
    timing: Timing,
    seq: u32,
}

impl Merger {
    /// Reads the records, compares segments with them, and refuses what is torn, double or missing.
    fn new(dir: &Path, identity: JobIdentity) -> Result<Merger> {
        let (mut done, mut found) = (DoneRows::default(), Vec::new());
        let mut contents = Contents {
            output: identity.job != "score",
            ..Contents::default()
        };
        let mut row_bytes = 1;
        for path in segments(dir)? {
            let record = Record::read(&path)
                .and_then(|record| record.verify(&path).map(|()| record))
                .context("cannot merge; run the job's command again: it computes the rows of that segment again")?;
            add_rows(dir, &mut done, &path, &record)?;
            contents.join(&record.contents)?;
            row_bytes = row_bytes.max(record.text_bytes / record.rows.max(1));
            let Record {
                span,
                steps,
                timing,
                seq,
                ..
            } = record;
            found.push(Segment {
                path,
                span,
                steps,
                timing,
                seq,
            });
        }
        let missing = identity.rows.saturating_sub(done.count());
        ensure!(
            missing == 0,
            "{} has {} of {} rows; {missing} are missing, first {:?}: run the job's command again, it goes on where it was",
            dir.display(),
            done.count(),
            identity.rows,
            done.missing(identity.rows, 5)
        );
        ensure!(
            done.count() == identity.rows,
            "{} has rows beyond the job's {}",
            dir.display(),
            identity.rows
        );
        let window = (WINDOW_BYTES / row_bytes).clamp(1, WINDOW);
        Ok(Merger {
            identity,
            contents,
            segments: found,
            window,
        })
    }

    /// Writes everything into the new file.
    fn fill(&self, file: &File, out: &Path, judge: &mut dyn Judge) -> Result<()> {
        self.root_attributes(file, out)?;
        let rows = self.identity.rows;
        let mut writer = RowWriter::create(file, &self.contents, rows)?;
        let mut open = OpenSegments::default();
        let mut start = 0;
        while start < rows {
            let window = start..(start + self.window).min(rows);
            let mut block = self.window(&mut open, window.clone())?;
            judge.see(&block)?;
            // From here on a row is known by its record: several outputs of one record share its number.
            block.iter_mut().for_each(|row| row.index /= self.identity.outputs);
            writer.append(&block)?;
            if window.contains(&(rows / 2)) {
                crash_point("merge-middle");
            }
            start = window.end;
        }
        open = OpenSegments::default();
        self.steps(&mut open, &mut writer)?;
        writer.finish()?;
        self.timing(file)?;
        put_metrics(file, &judge.metrics()?)
    }

    fn root_attributes(&self, file: &File, out: &Path) -> Result<()> {
        let (major, minor, patch) = hdf5::library_version();
        set_text(file, "creator", CREATOR)?;
        set_text(file, "creator_version", env!("CARGO_PKG_VERSION"))?;
        set_text(file, "HDF5_Version", &format!("{major}.{minor}.{patch}"))?;
        set_text(
            file,
            "file_name",
            &out.file_name().unwrap_or_default().to_string_lossy(),
        )?;
        set_text(
            file,
            "file_time",
            &jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
        )?;
        set_text(file, "command", &self.identity.command)?;
        set_text(file, "config", &self.identity.config.to_string())?;
        set_text(file, "model_sha256", &self.identity.model_sha256)?;
        set_text(file, "job", &self.identity.job)?;
        set_text(file, "identity", &self.identity.to_json()?)?;
        set_number(file, "rows", self.identity.rows)
    }

    /// The rows of a window in input order.
    fn window(&self, open: &mut OpenSegments, window: Range<u64>) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (number, segment) in self.segments.iter().enumerate() {
            if segment
                .span
                .is_some_and(|(first, last)| first < window.end && last >= window.start)
            {
                let source = open.get(number, segment)?;
                let bound = |row: u64| source.index.partition_point(|index| *index < row);
                rows.extend(source.rows.read(bound(window.start)..bound(window.end))?);
            }
        }
        rows.sort_by_key(|row| row.index);
        ensure!(
            rows.iter().map(|row| row.index).eq(window.clone()),
            "rows {} to {} of the segments don't agree with their records",
            window.start,
            window.end - 1
        );
        Ok(rows)
    }

    /// The trace: sums of equal attempt, group, step and phase, in this order within a phase.
    fn steps(&self, open: &mut OpenSegments, writer: &mut RowWriter) -> Result<()> {
        let Some(layout) = &self.contents.layout else {
            return Ok(());
        };
        let mut runs: BTreeMap<_, Vec<(usize, &StepRun)>> = BTreeMap::new();
        for (number, segment) in self.segments.iter().enumerate() {
            for run in &segment.steps {
                runs.entry((run.phase, run.attempt, run.group))
                    .or_default()
                    .push((number, run));
            }
        }
        for ((phase, _, _), runs) in runs {
            let step_bytes = (layout.layers(phase).len() * layout.experts * 4).max(1) as u64;
            let size = (WINDOW_BYTES / step_bytes).clamp(1, WINDOW);
            let mut at = 0;
            while let Some(first) = runs
                .iter()
                .filter(|(_, run)| run.last >= at)
                .map(|(_, run)| run.first.max(at))
                .min()
            {
                let window = first..first.saturating_add(size);
                let mut sums = BTreeMap::new();
                for (number, run) in &runs {
                    if run.first < window.end && run.last >= window.start {
                        let source = open.get(*number, &self.segments[*number])?;
                        for step in source.steps(run, window.clone())? {
                            add_step(&mut sums, step)?;
                        }
                    }
                }
                writer.append_steps(&sums.into_values().collect::<Vec<_>>())?;
                at = window.end;
            }
        }
        Ok(())
    }

    /// `/timing`: the last of each attempt and rank.
    fn timing(&self, file: &File) -> Result<()> {
        let mut last: BTreeMap<(u32, u32), &Segment> = BTreeMap::new();
        for segment in &self.segments {
            let key = (segment.timing.attempt, segment.timing.rank);
            if last.get(&key).is_none_or(|before| before.seq < segment.seq) {
                last.insert(key, segment);
            }
        }
        let entries = || {
            last.iter()
                .flat_map(|(key, segment)| segment.timing.phases.iter().map(move |phase| (key, phase)))
        };
        let group = make_group(file, "timing", "where the time went, per attempt, rank and phase")?;
        let expected = entries().count() as u64;
        let about = |long_name, units| About { long_name, units };
        Column::numbers::<u32>(
            &group,
            "attempt",
            None,
            expected,
            about("start of the job, from 1", "1"),
        )?
        .append(entries().map(|((attempt, _), _)| *attempt).collect())?;
        Column::numbers::<u32>(&group, "rank", None, expected, about("MPI rank", "1"))?
            .append(entries().map(|((_, rank), _)| *rank).collect())?;
        Column::texts(&group, "phase", expected, about("what was done", "UTF-8"))?
            .append_texts(entries().map(|(_, (name, ..))| name.as_str()))?;
        Column::numbers::<f64>(&group, "seconds", None, expected, about("wall time spent", "s"))?
            .append(entries().map(|(_, (_, seconds, _))| *seconds).collect())?;
        Column::numbers::<u64>(&group, "bytes", None, expected, about("bytes moved", "B"))?
            .append(entries().map(|(_, (.., bytes))| *bytes).collect())
    }
}

/// A segment that is being read.
struct OpenSegment {
    number: usize,
    rows: RowReader,
    index: Vec<u64>,
    _file: File,
}

impl OpenSegment {
    /// Entries of `run` whose step is in `window`.
    fn steps(&self, run: &StepRun, window: Range<u64>) -> Result<Vec<super::StepCounts>> {
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
struct OpenSegments {
    open: VecDeque<OpenSegment>,
}

impl OpenSegments {
    fn get(&mut self, number: usize, segment: &Segment) -> Result<&OpenSegment> {
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
