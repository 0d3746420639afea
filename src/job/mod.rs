//! What a user runs, one file each.

pub mod doctor;
pub mod merge;
pub mod show;
pub mod translate;
