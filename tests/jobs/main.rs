//! The program's jobs as a user starts them: the real binary, under mpirun. What is not named otherwise is `translate`.
//!
//! Reference checkpoints and larger test sets are looked for in SLUICE_SHARED, or `../shared` beside the checkout; tests
//! that need them skip where they are absent, and all skip where there is no mpirun.

mod buffer;
mod cgroup;
mod checkpoints;
#[path = "../datasets/mod.rs"]
mod datasets;
mod defaults;
mod exact;
mod generate;
mod inputs;
mod memory;
mod mixed;
mod options;
mod place;
mod precisions;
mod requests;
mod score;
mod sharing;
mod small_model;
mod trained;
mod unusable;
