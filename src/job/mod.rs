//! What a user runs, one file each.

pub mod merge;
pub mod show;
