//! `sluice study`: what a finished run would have cost otherwise.

mod buffer;
mod count;
mod figure;
mod memory;
mod placement;
mod print;
mod recorded;
mod report;
mod store;

use crate::cli::exit::Exit;
use crate::cli::study::{Study, StudyArgs};
use anyhow::Result;
use std::io::Write;

/// Runs the study that `args` name and writes its tables to `to`.
///
/// # Errors
/// See the study.
pub fn run(args: &StudyArgs, to: &mut dyn Write) -> Result<Exit> {
    match &args.study {
        Study::Buffer(args) => buffer::run(args, to),
    }
}
