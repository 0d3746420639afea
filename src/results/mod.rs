//! Results: what a job leaves behind, and how it survives being killed.
//!
//! While a job runs, every rank closes a *segment* (a small HDF5 file with the rows it finished) in `OUT.h5.parts/`
//! now and then; a segment counts once its *record* (JSON with the rows it holds and its checksum) lies beside it.
//! [`Parts`] is that folder; [`merge`] makes one file of it, `OUT.h5`, whose datasets don't depend on how rows were
//! spread over ranks and segments; [`Results`] reads the finished file. `docs/results.md` describes the file for users.
//!
//! Nothing here knows how results come about: rows come in, rows go out.

mod attribute;
mod block;
mod column;
mod done;
mod durable;
mod identity;
mod lock;
mod merge;
mod metrics;
mod parts;
mod reader;
mod record;
mod resume;
mod routing;
mod row;
mod scores;
mod seal;
mod segment;
mod study;
mod trace;
mod writer;

pub use done::DoneRows;
pub use identity::JobIdentity;
pub use merge::{merge, Judge, MergeSummary, Tally};
pub use metrics::{Metric, MetricValue};
pub use parts::{parts_path, Opened, Parts, SegmentName};
pub use reader::{Results, RowBlocks};
pub use row::{Phase, RoutingLayout, Row, RowRoutes, Status, StepCounts, Timing, TimingEntry};
pub use study::{write_study, StudyFile, Table, Values};

/// The program named in the root attribute `creator`, by which a file of ours is known.
pub(crate) const CREATOR: &str = "sluice";
