//! What runs measure: quality, time and memory.
pub mod meter;
