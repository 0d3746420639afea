//! Expert buffering (the paper, section 5): of a rank's experts only some are in memory, in slots; the rest lies a tier below.
//!
//! All of this plans, without memory, file or thread. [`residency`] says which expert of a layer's visit is in which slot,
//! which ones are loaded, into whose place, in which order they run; `slots` is its ledger, `policy` chooses who makes
//! room, `schedule` and `forecast` learn when a layer is due and an expert likely to be needed again. [`replay`] runs recorded traces through the same
//! code and finds the fewest loads any policy could have had.

mod forecast;
mod policy;
pub mod replay;
pub mod residency;
mod schedule;
mod slots;
#[cfg(test)]
mod tests;
