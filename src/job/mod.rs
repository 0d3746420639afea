//! What a user runs, one file each.

pub mod doctor;
pub mod generate;
mod generation;
mod languages;
pub mod merge;
mod run;
pub mod score;
pub mod show;
pub mod translate;
pub mod words;
