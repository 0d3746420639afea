//! Making one file of all segments, window by window over the row numbers.

use super::attribute::{set_number, set_text};
use super::block::{self, BYTES, ROWS};
use super::column::{About, Column};
use super::done::DoneRows;
use super::durable::{rename, with_suffix};
use super::identity::JobIdentity;
use super::lock::Lock;
use super::metrics::{put_metrics, Metric, MetricValue};
use super::record::Record;
use super::resume::{add_rows, finished, read_job, remove, segments};
use super::row::{Row, Status};
use super::segment::{OpenSegments, Segment};
use super::trace::{add_step, StepRun};
use super::writer::{make_file, make_group, Contents, RowWriter};
use super::CREATOR;
use crate::comm::crash::crash_point;
use anyhow::{ensure, Context, Result};
use hdf5::File;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

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

/// Counts rows and tokens: what stands under `/metrics` of every finished file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Rows by status, in the order of [`Status::ALL`].
    pub statuses: [u64; Status::ALL.len()],
    /// Tokens of all rows.
    pub tokens: u64,
}

impl Judge for Tally {
    fn see(&mut self, rows: &[Row]) -> Result<()> {
        for row in rows {
            self.statuses[row.status as usize] += 1;
            self.tokens += row.ids.len() as u64;
        }
        Ok(())
    }

    fn metrics(&mut self) -> Result<Vec<Metric>> {
        let count = |name: String, n: u64| Metric {
            name,
            value: MetricValue::Count(n),
        };
        let named = Status::ALL.iter().zip(self.statuses);
        let mut all: Vec<Metric> = named
            .map(|(s, n)| count(format!("rows_{}", s.name().replace(['-', ' '], "_")), n))
            .collect();
        all.push(count("tokens".into(), self.tokens));
        Ok(all)
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
}

impl Merger {
    /// Reads the records, compares segments with them, and refuses what is torn, double or missing.
    fn new(dir: &Path, identity: JobIdentity) -> Result<Merger> {
        let (mut done, mut found) = (DoneRows::default(), Vec::new());
        let mut contents = Contents {
            output: identity.job != "score",
            ..Contents::default()
        };
        for path in segments(dir)? {
            let record = Record::read(&path)
                .and_then(|record| record.verify(&path).map(|()| record))
                .context("cannot merge; run the job's command again: it computes the rows of that segment again")?;
            add_rows(dir, &mut done, &path, &record)?;
            contents.join(&record.contents)?;
            found.push(Segment {
                path,
                span: record.span,
                steps: record.steps,
                timing: record.timing,
                seq: record.seq,
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
        Ok(Merger {
            identity,
            contents,
            segments: found,
        })
    }

    /// Writes everything into the new file.
    fn fill(&self, file: &File, out: &Path, judge: &mut dyn Judge) -> Result<()> {
        self.root_attributes(file, out)?;
        let rows = self.identity.rows;
        let mut writer = RowWriter::create(file, &self.contents, rows)?;
        let mut open = OpenSegments::default();
        for start in (0..rows).step_by(ROWS as usize) {
            for window in self.windows(&mut open, start..(start + ROWS).min(rows))? {
                let mut block = self.window(&mut open, window.clone())?;
                judge.see(&block)?;
                // From here on a row is known by its record: several outputs of one record share its number.
                block.iter_mut().for_each(|row| row.index /= self.identity.outputs);
                writer.append(&block)?;
                if window.contains(&(rows / 2)) {
                    crash_point("merge-middle");
                }
            }
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

    /// The segments that may hold some of `rows`.
    fn holding(&self, rows: &Range<u64>) -> impl Iterator<Item = (usize, &Segment)> {
        let Range { start, end } = *rows;
        let holds = move |segment: &Segment| segment.span.is_some_and(|(first, last)| first < end && last >= start);
        self.segments
            .iter()
            .enumerate()
            .filter(move |(_, segment)| holds(segment))
    }

    /// Cuts `rows` into windows that memory has room for.
    fn windows(&self, open: &mut OpenSegments, rows: Range<u64>) -> Result<Vec<Range<u64>>> {
        let mut sizes = vec![0; (rows.end - rows.start) as usize];
        for (number, segment) in self.holding(&rows) {
            let source = open.get(number, segment)?;
            let held = source.held(&rows);
            for (row, size) in source.index[held.clone()].iter().zip(source.rows.sizes(held)?) {
                sizes[(row - rows.start) as usize] = size;
            }
        }
        let windows = block::cut(&sizes, BYTES).into_iter();
        Ok(windows
            .map(|window| rows.start + window.start as u64..rows.start + window.end as u64)
            .collect())
    }

    /// The rows of a window in input order.
    fn window(&self, open: &mut OpenSegments, window: Range<u64>) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (number, segment) in self.holding(&window) {
            let source = open.get(number, segment)?;
            rows.extend(source.rows.read(source.held(&window))?);
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
            let size = (BYTES / step_bytes).clamp(1, ROWS);
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
