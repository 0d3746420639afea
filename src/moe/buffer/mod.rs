//! Expert buffering (the paper, section 5): of a rank's experts only some are in memory, in slots; the rest lies a tier below.
//!
//! [`residency`] plans, without memory, file or thread: which expert of a layer's visit is in which slot, which ones are
//! loaded, into whose place, in which order they run. [`pool`] does it: threads of its own read from the tier below
//! ([`source`]) while resident experts run.

mod fetch;
pub mod pool;
pub mod residency;
pub mod source;
