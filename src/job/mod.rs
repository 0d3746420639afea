//! What a user runs, one file each.

pub mod doctor;
mod generation;
pub mod merge;
mod run;
pub mod show;
pub mod translate;
