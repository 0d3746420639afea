//! The program `sluice translate` as a user starts it: the real binary, under mpirun.
//!
//! Reference checkpoints and larger test sets are looked for in SLUICE_SHARED, or `../shared` beside the checkout; tests
//! that need them skip where they are absent, and all skip where there is no mpirun.

mod checkpoints;
mod datasets;
mod exact;
mod inputs;
mod memory;
mod options;
mod place;
mod precisions;
mod sharing;
mod small_model;
mod trained;
