//! What a user runs, one file each; and what several of them need.

pub mod doctor;
pub mod evaluate;
pub mod merge;
pub mod references;
pub mod show;
pub mod translate;
