//! Expert buffering (the paper, section 5): of a rank's experts only some are in memory, in slots; the rest lies a tier below.
//!
//! Planned without memory, file or thread: [`residency`] says which expert of a layer's visit is in which slot, which ones are
//! loaded, into whose place, in which order they run; `slots` is its ledger, `policy` chooses who makes room, `forecast`
//! learns when an expert is likely to be needed again and `schedule` which way tokens go next. [`replay`] runs recorded
//! traces through the same code and finds the fewest loads any policy could have had.
//!
//! [`pool`] does what is planned: threads of its own read from the tier below ([`source`]) while resident experts run.

mod fetch;
mod forecast;
pub mod link;
mod policy;
pub mod pool;
pub mod replay;
pub mod residency;
mod schedule;
mod slots;
pub mod source;
#[cfg(test)]
mod tests;
