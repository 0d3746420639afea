//! Sluice runs Mixture-of-Experts transformers over large corpora as an MPI batch job.
//!
//! The rooms follow the way of a batch: `corpus` reads lines, `decode` steps sentences through a `model`, whose
//! sparse layers are `moe`, on a `device`, over ranks joined by `comm`; `results` keeps what comes out.
#![deny(missing_docs)]

pub mod checkpoint;
pub mod cli;
pub mod comm;
pub mod corpus;
pub mod decode;
pub mod device;
pub mod job;
pub mod metrics;
pub mod model;
pub mod moe;
pub mod results;
