//! What a user runs, one file each; and what several of them need.

mod columns;
pub mod doctor;
pub mod evaluate;
pub mod generate;
mod generation;
mod languages;
pub mod merge;
pub mod references;
mod run;
pub mod score;
pub mod show;
pub mod study;
pub mod translate;
pub mod words;
