//! What tells one job over a corpus from another.

use super::plan::Opened;
use crate::cli::run::{OnError, RunArgs};
use crate::corpus::{Reading, Record, Scan};
use crate::decode::trace::{TokenRoutes, Trace};
use crate::decode::workload::Workload;
use crate::model::Model;
use crate::results::{Judge, Row, Tally};
use anyhow::{ensure, Result};
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What every job over a corpus has: a name, options and a checkpoint.
pub struct Setup<'a> {
    /// `translate`, `score`, ...
    pub name: &'static str,
    /// The options that all jobs have.
    pub run: &'a RunArgs,
    /// The files of the input, and patterns of such.
    pub inputs: &'a [PathBuf],
    /// All options, as results and report show them.
    pub arguments: Value,
    /// The checkpoint.
    pub opened: Opened,
    /// What the user should know before the run.
    pub warnings: Vec<String>,
}

impl<'a> Setup<'a> {
    /// Opens the checkpoint of a job with these options.
    ///
    /// # Errors
    /// Anything amiss with it.
    pub fn open(
        name: &'static str,
        run: &'a RunArgs,
        inputs: &'a [PathBuf],
        arguments: &impl Serialize,
    ) -> Result<Setup<'a>> {
        Ok(Setup {
            name,
            run,
            inputs,
            arguments: serde_json::to_value(arguments)?,
            opened: Opened::open(&run.model, run.dtype)?,
            warnings: Vec::new(),
        })
    }

    /// Gives back why a row cannot be used, where such rows are skipped.
    ///
    /// # Errors
    /// Where they are not: the reason.
    pub fn skip(&self, why: String) -> Result<String> {
        ensure!(
            self.run.on_error == OnError::Skip,
            "{why}; --on-error skip goes on without such rows"
        );
        Ok(why)
    }
}

/// A job over a corpus: what it is set up with, and what it does with a row. Every rank has one.
pub trait Task {
    /// What runs on each rank.
    type Work: Workload;
    /// What is kept of a row while it is under way.
    type Pending;

    /// What it is set up with.
    fn setup(&self) -> &Setup<'_>;
    /// The options that all jobs have.
    fn run(&self) -> &RunArgs {
        self.setup().run
    }
    /// What its tokens are: generated, scored.
    fn tokens(&self) -> &'static str {
        "generated"
    }
    /// What rows under way fill memory with: caches, activations.
    fn held(&self) -> &'static str {
        "caches"
    }
    /// What is read from a row.
    fn reading(&self) -> Reading;
    /// Settings that all rows have, by the names under which rows of prompts may ask for others.
    fn shared_settings(&self) -> BTreeMap<String, Value> {
        BTreeMap::new()
    }
    /// Outputs of each record: output `i` belongs to record `i / outputs`.
    fn outputs(&self) -> u64 {
        1
    }
    /// What results depend on, besides input, checkpoint and the options that all jobs have.
    fn fields(&self) -> Vec<(&'static str, Value)>;
    /// Looks at options before the input is read; on rank 0.
    ///
    /// # Errors
    /// What is to be refused.
    fn check(&self) -> Result<()> {
        Ok(())
    }
    /// Looks at what the scan has found; on rank 0.
    ///
    /// # Errors
    /// What is to be refused.
    fn examine(&self, scan: &Scan) -> Result<()>;
    /// Is told what the scan has found and when the job was first started, in seconds since 1970; the same on every rank and
    /// at every start.
    fn begin(&mut self, _scan: &Scan, _started: i64) {}
    /// The running batch and the bytes that its rows may come to fill. The same on every rank.
    ///
    /// # Errors
    /// When the memory doesn't do.
    fn workload(&self, net: &dyn Model, place: &Place) -> Result<Planned<Self::Work>>;
    /// Takes a record on for its outputs `wanted`, which `work` will be asked for.
    ///
    /// # Errors
    /// What ends the job; a row that cannot be used is a row with a status.
    fn take(&self, record: &Record, wanted: &[usize], work: &Self::Work) -> Result<Taken<Self>>;
    /// The key that [`take`](Task::take) gave to what has finished.
    fn key(&self, finished: &<Self::Work as Workload>::Finished) -> u64;
    /// Turns what has finished into a row.
    ///
    /// # Errors
    /// What ends the job.
    fn finish(&self, pending: Self::Pending, finished: <Self::Work as Workload>::Finished) -> Result<Done>;
    /// Whether outputs are compared with references as the file is put together.
    fn compares(&self) -> bool {
        false
    }
    /// What is computed over all rows as the file is put together.
    ///
    /// # Errors
    /// When a file that it reads cannot be opened.
    fn figures(&self) -> Result<Box<dyn Figures>>;
}

/// Where a running batch is to find room.
pub struct Place {
    /// Bytes of memory that a rank may still take: the least of all ranks.
    pub room: u64,
    /// Ranks that hold the model together.
    pub ranks: usize,
    /// About how many tokens a row has.
    pub mean_tokens: usize,
    /// Whether experts come from below as they are needed, so that more rows should share each.
    pub buffered: bool,
    /// Whether this rank says what is planned.
    pub speaks: bool,
}

/// A running batch that is planned.
pub struct Planned<W> {
    /// The batch.
    pub work: W,
    /// Bytes that its rows may come to fill, as [`Task::held`] says what with.
    pub held: u64,
    /// What is in flight, in words.
    pub in_flight: String,
}

/// What a job makes of a record that comes in.
pub struct Taken<T: Task + ?Sized> {
    /// What the batch is to do.
    pub request: Option<<T::Work as Workload>::Request>,
    /// Outputs that are under way with it, by key.
    pub pending: Vec<(u64, T::Pending)>,
    /// Rows that are finished at once: blank ones, and those that cannot be used.
    pub rows: Vec<Row>,
    /// Why those cannot be used that cannot.
    pub why: Option<String>,
}

impl<T: Task + ?Sized> Default for Taken<T> {
    fn default() -> Self {
        Taken {
            request: None,
            pending: Vec::new(),
            rows: Vec::new(),
            why: None,
        }
    }
}

/// A finished row.
pub struct Done {
    /// The row, without routes.
    pub row: Row,
    /// What the experts did, where it is kept, and the routes of the row's own tokens.
    pub routes: Option<(Trace, TokenRoutes)>,
    /// Tokens that count for the speed.
    pub tokens: u64,
}

/// What is computed over all rows, in order, as the file is put together.
pub trait Figures {
    /// Rows by status, and tokens.
    fn tally(&self) -> &Tally;
    /// Figures for people: name and value.
    fn figures(&self) -> Vec<(String, f64)>;
    /// What the rows are shown to.
    fn judge(&mut self) -> &mut dyn Judge;
}

/// Rows by status, and tokens, and nothing else.
#[derive(Default)]
pub struct Counted(Tally);

impl Figures for Counted {
    fn tally(&self) -> &Tally {
        &self.0
    }

    fn figures(&self) -> Vec<(String, f64)> {
        Vec::new()
    }

    fn judge(&mut self) -> &mut dyn Judge {
        &mut self.0
    }
}
