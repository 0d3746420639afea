//! A job that is killed, stopped, refused or broken on one of its ranks: nothing finished is lost, nobody waits for ever,
//! and the same command goes on to the same results on other ranks.
//!
//! They start real jobs with `mpirun` and are skipped, saying so, where there is none.

mod broken;
#[path = "../datasets/mod.rs"]
mod datasets;
mod experts;
mod found;
mod job;
mod jobs;
mod killed;
mod refused;
mod stopped;
