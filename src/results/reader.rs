//! Reading rows back, from a segment or from the finished file.

use super::attribute::get_text;
use super::block;
use super::column::{Column, Ragged};
use super::durable::with_suffix;
use super::identity::JobIdentity;
use super::metrics::{read_metrics, Metric};
use super::routing::RoutingReader;
use super::row::{Phase, RoutingLayout, Row, Status, StepCounts, TimingEntry};
use super::scores::ScoreColumns;
use super::CREATOR;
use anyhow::{bail, ensure, Context, Result};
use hdf5::File;
use std::collections::VecDeque;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Rows that are read at once, at most, of a file that doesn't say how long its texts are.
const UNSIZED_ROWS: u64 = 64;

/// The tables of a segment or of a finished file.
pub(crate) struct RowReader {
    index: Column,
    id: Option<Column>,
    input: Column,
    source_lang: Column,
    target_lang: Column,
    output: Option<Column>,
    /// Bytes of a row's texts; files of earlier versions have none.
    bytes: Option<Column>,
    status: Column,
    score: Column,
    ids: Ragged,
    scores: Option<ScoreColumns>,
    pub routing: Option<RoutingReader>,
}

impl RowReader {
    /// Opens the tables of `file`; datasets of different length are an error.
    pub fn open(file: &File) -> Result<RowReader> {
        let group = |name: &str| {
            file.group(name)
                .with_context(|| format!("{} has no group /{name}: is it a result of sluice?", file.filename()))
        };
        let there = |name: &str| file.link_exists(name).then(|| group(name)).transpose();
        let (input, output, tokens) = (group("input")?, group("output")?, group("tokens")?);
        let index = Column::open(&input, "index")?;
        let rows = index.rows();
        let reader = RowReader {
            index,
            id: Column::open_if_there(&input, "id")?,
            input: Column::open(&input, "text")?,
            source_lang: Column::open(&input, "source_lang")?,
            target_lang: Column::open(&input, "target_lang")?,
            output: Column::open_if_there(&output, "text")?,
            bytes: Column::open_if_there(&output, "bytes")?,
            status: Column::open(&output, "status")?,
            score: Column::open(&output, "score")?,
            ids: Ragged::open(&tokens, "ids", rows)?,
            scores: there("scores")?
                .map(|scores| ScoreColumns::open(&scores, rows))
                .transpose()?,
            routing: there("routing")?
                .map(|routing| RoutingReader::open(&routing, rows))
                .transpose()?,
        };
        let lengths = [
            &reader.input,
            &reader.source_lang,
            &reader.target_lang,
            &reader.status,
            &reader.score,
        ];
        let optional = [&reader.id, &reader.output, &reader.bytes].into_iter().flatten();
        for column in lengths.into_iter().chain(optional) {
            let (name, file) = column.place();
            ensure!(
                column.rows() == rows,
                "{file} is damaged: {name} has {} rows, /input/index has {rows}",
                column.rows()
            );
        }
        Ok(reader)
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.index.rows()
    }

    /// How many tokens there are in `/tokens/ids`.
    pub fn tokens(&self) -> u64 {
        self.ids.values()
    }

    /// The input's numbers of all rows.
    pub fn indices(&self) -> Result<Vec<u64>> {
        self.index.read(0..self.rows())
    }

    /// Bytes that each of `rows` takes.
    pub fn sizes(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut sizes = match &self.bytes {
            Some(bytes) => bytes.read(rows.clone())?,
            None => vec![block::BYTES / UNSIZED_ROWS; rows.len()],
        };
        let of_ids = |tokens: u64| (size_of::<Row>() + size_of::<u32>() * tokens as usize) as u64;
        let ids = self.ids.lengths(rows.clone())?.into_iter().map(of_ids).collect();
        let scores = self.scores.as_ref().map(|scores| scores.sizes(rows.clone()));
        let routes = self.routing.as_ref().map(|routing| routing.sizes(rows));
        for more in [Ok(ids)].into_iter().chain(scores).chain(routes) {
            let add = |(size, more): (&mut u64, u64)| *size = size.saturating_add(more);
            sizes.iter_mut().zip(more?).for_each(add);
        }
        Ok(sizes)
    }

    /// Rows with all that is kept of them.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<Row>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut rows = vec![Row::default(); range.len()];
        fill(&mut rows, self.index.read(range.clone())?, |row, index| {
            row.index = index
        });
        fill(&mut rows, self.input.read_texts(range.clone())?, |row, text| {
            row.input = text
        });
        fill(&mut rows, self.source_lang.read_texts(range.clone())?, |row, text| {
            row.source_lang = text
        });
        fill(&mut rows, self.target_lang.read_texts(range.clone())?, |row, text| {
            row.target_lang = text
        });
        fill(&mut rows, self.score.read(range.clone())?, |row, score| {
            row.score = score
        });
        fill(&mut rows, self.ids.read(range.clone())?, |row, ids| row.ids = ids);
        let statuses: Vec<u8> = self.status.read(range.clone())?;
        let statuses = statuses.into_iter().map(Status::from_u8).collect::<Result<Vec<_>>>()?;
        fill(&mut rows, statuses, |row, status| row.status = status);
        if let Some(id) = &self.id {
            let texts = id.read_texts(range.clone())?;
            fill(&mut rows, texts, |row, text| {
                row.id = (!text.is_empty()).then_some(text)
            });
        }
        if let Some(output) = &self.output {
            fill(&mut rows, output.read_texts(range.clone())?, |row, text| {
                row.output = text
            });
        }
        if let Some(scores) = &self.scores {
            scores.fill(range.clone(), &mut rows)?;
        }
        if let Some(routing) = &self.routing {
            routing.fill_routes(range, &mut rows)?;
        }
        Ok(rows)
    }
}

fn fill<T>(rows: &mut [Row], values: Vec<T>, set: impl Fn(&mut Row, T)) {
    rows.iter_mut().zip(values).for_each(|(row, value)| set(row, value));
}

/// Opens an HDF5 file, saying plainly if it is none. HDF5 may keep `chunk_cache` bytes of decoded chunks per dataset.
pub(crate) fn open_hdf5(path: &Path, chunk_cache: usize) -> Result<File> {
    let mut signature = [0; 8];
    let read = std::fs::File::open(path)
        .with_context(|| format!("cannot open {}", path.display()))?
        .read_exact(&mut signature);
    if read.is_err() || signature != *b"\x89HDF\r\n\x1a\n" {
        bail!(
            "{} is not an HDF5 file, as the results of a job are (OUT.h5)",
            path.display()
        );
    }
    let mut options = File::with_options();
    options.with_fapl(|access| access.chunk_cache(521, chunk_cache, 0.75));
    options.open(path).with_context(|| {
        format!(
            "{} starts like an HDF5 file but can't be opened: it may be cut off or still being written",
            path.display()
        )
    })
}

/// A finished file, `OUT.h5`.
pub struct Results {
    file: File,
    path: PathBuf,
    identity: JobIdentity,
    rows: RowReader,
}

impl Results {
    /// Opens a finished file.
    ///
    /// # Errors
    /// The file is missing (the message points at `OUT.h5.parts` if that is there), not HDF5, or not a result of ours.
    pub fn open(path: &Path) -> Result<Results> {
        let parts = with_suffix(path, ".parts");
        ensure!(
            !path.is_dir() || path.extension().is_some_and(|end| end == "parts"),
            "{} is a folder: give the file of a finished job (OUT.h5)",
            path.display()
        );
        if path.is_dir() || (!path.exists() && parts.exists()) {
            let parts = if path.is_dir() { path } else { &parts };
            bail!(
                "{} holds a run that is not finished or not merged: run its command again to finish it, or \
                 `sluice merge {}` if all rows are done",
                parts.display(),
                parts.display()
            );
        }
        let file = open_hdf5(path, 1 << 20)?;
        let ours = get_text(&file, "creator").is_ok_and(|creator| creator == CREATOR);
        ensure!(
            ours,
            "{} is HDF5 but not a result of sluice (its attribute `creator` says so)",
            path.display()
        );
        ensure!(
            get_text(&file, "job").map_or(true, |job| job != "study"),
            "{} is the output of sluice study, not of a run (OUT.h5 of translate, score or generate)",
            path.display()
        );
        let identity = get_text(&file, "identity")?;
        let damaged = || format!("{}: the attribute `identity` is damaged", path.display());
        let identity: JobIdentity = serde_json::from_str(&identity).with_context(damaged)?;
        identity.check().with_context(damaged)?;
        let rows = RowReader::open(&file)?;
        ensure!(
            identity.rows == rows.rows() as u64,
            "{} is damaged: its identity has {} rows, /input/index has {}",
            path.display(),
            identity.rows,
            rows.rows()
        );
        Ok(Results {
            file,
            path: path.to_owned(),
            identity,
            rows,
        })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The job that made it: options, model, command, config.
    pub fn identity(&self) -> &JobIdentity {
        &self.identity
    }

    /// A text attribute of the root: `creator_version`, `HDF5_Version`, `file_time`, ...
    pub fn attribute(&self, name: &str) -> Result<String> {
        get_text(&self.file, name)
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.rows.rows() as u64
    }

    /// How many tokens there are in `/tokens/ids`.
    pub fn tokens(&self) -> u64 {
        self.rows.tokens()
    }

    /// Does it hold log-probabilities?
    pub fn has_logprobs(&self) -> bool {
        self.rows.scores.is_some()
    }

    /// Does it hold output texts? Of a `score` job they are the targets of pairs, and without pairs there are none.
    pub fn has_output(&self) -> bool {
        self.rows.output.is_some()
    }

    /// Rows `range` in input order.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<Row>> {
        let end = range.end.min(self.rows());
        self.rows.read(range.start.min(end) as usize..end as usize)
    }

    /// All rows in input order, at most `rows` at a time and fewer where they are large, so that memory stays flat.
    pub fn blocks(&self, rows: u64) -> RowBlocks<'_> {
        RowBlocks {
            results: self,
            at: 0,
            rows: rows.max(1),
            cut: VecDeque::new(),
        }
    }

    /// What `/metrics` holds.
    pub fn metrics(&self) -> Result<Vec<Metric>> {
        read_metrics(&self.file)
    }

    /// What `/timing` holds: an entry per attempt, rank and phase.
    pub fn timing(&self) -> Result<Vec<TimingEntry>> {
        let at = self
            .file
            .group("timing")
            .with_context(|| format!("{} has no /timing", self.path.display()))?;
        let attempt = Column::open(&at, "attempt")?;
        let all = 0..attempt.rows();
        let attempts: Vec<u32> = attempt.read(all.clone())?;
        let ranks: Vec<u32> = Column::open(&at, "rank")?.read(all.clone())?;
        let phases = Column::open(&at, "phase")?.read_texts(all.clone())?;
        let seconds: Vec<f64> = Column::open(&at, "seconds")?.read(all.clone())?;
        let bytes: Vec<u64> = Column::open(&at, "bytes")?.read(all)?;
        let numbers = attempts.into_iter().zip(ranks).zip(seconds).zip(bytes);
        Ok(phases
            .into_iter()
            .zip(numbers)
            .map(|(phase, (((attempt, rank), seconds), bytes))| TimingEntry {
                attempt,
                rank,
                phase,
                seconds,
                bytes,
            })
            .collect())
    }

    /// The MoE layers whose loads are kept, if any are.
    pub fn routing(&self) -> Option<&RoutingLayout> {
        self.rows.routing.as_ref().map(RoutingReader::layout)
    }

    /// Tokens that each expert got over the whole job, `[layers of the phase, experts]`; empty without routing.
    pub fn expert_totals(&self, phase: Phase) -> Result<Vec<u64>> {
        self.rows
            .routing
            .as_ref()
            .map_or(Ok(Vec::new()), |routing| routing.totals(phase))
    }

    /// Entries in the trace of expert loads.
    pub fn steps(&self, phase: Phase) -> u64 {
        self.rows
            .routing
            .as_ref()
            .map_or(0, |routing| routing.steps(phase) as u64)
    }

    /// Entries `range` of the trace, ordered by attempt, group and step.
    pub fn read_steps(&self, phase: Phase, range: Range<u64>) -> Result<Vec<StepCounts>> {
        let Some(routing) = &self.rows.routing else {
            return Ok(Vec::new());
        };
        let end = range.end.min(self.steps(phase));
        routing.read_steps(phase, range.start.min(end) as usize..end as usize)
    }
}

/// Blocks of rows, see [`Results::blocks`].
pub struct RowBlocks<'a> {
    results: &'a Results,
    /// Rows from here on are not cut into blocks yet.
    at: u64,
    rows: u64,
    cut: VecDeque<Range<u64>>,
}

impl RowBlocks<'_> {
    /// Cuts the next rows into blocks.
    fn plan(&mut self) -> Result<()> {
        let start = self.at;
        self.at = start.saturating_add(self.rows).min(self.results.rows());
        let sizes = self.results.rows.sizes(start as usize..self.at as usize)?;
        let blocks = block::cut(&sizes, block::BYTES).into_iter();
        self.cut
            .extend(blocks.map(|block| start + block.start as u64..start + block.end as u64));
        Ok(())
    }
}

impl Iterator for RowBlocks<'_> {
    type Item = Result<Vec<Row>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.cut.is_empty() {
            if let Err(error) = self.plan() {
                return Some(Err(error));
            }
        }
        let block = self.cut.pop_front()?;
        Some(self.results.read(block))
    }
}
