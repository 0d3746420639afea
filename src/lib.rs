//! Sluice runs Mixture-of-Experts transformers over large corpora as an MPI batch job.
//!
//! The rooms follow the way of a batch: `corpus` reads lines, `decode` steps sentences through a `model`, whose
//! sparse layers are `moe`, on a `device`, over ranks joined by `comm`; `results` keeps what comes out.
#![deny(missing_docs)]

pub mod job;
pub mod results;
