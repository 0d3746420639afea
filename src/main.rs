//! The `sluice` command: parse, dispatch, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{bail, Result};
use sluicegate::cli::{self, exit, exit::Exit, Command};
use sluicegate::comm::{affinity, launch};
use sluicegate::job::doctor;

fn main() -> ExitCode {
    let environment = launch::environment();
    cli::log::start();
    match cli::parse(std::env::args_os()) {
        Ok(cli) => exit::finish(run(cli.command, environment)),
        Err(error) => exit::refuse(&error, launch::speaks(&environment)),
    }
}

/// The one place that knows every job.
fn run(command: Command, environment: launch::Environment) -> Result<Exit> {
    match command {
        Command::Translate(args) => {
            cli::check::files(&args)?;
            bail!("translate is not there yet")
        }
        Command::Show(_) => bail!("show is not there yet"),
        Command::Merge(_) => bail!("merge is not there yet"),
        Command::Doctor(args) => {
            let checkpoint = args
                .model
                .map(|_| Err("checking a checkpoint is not there yet".to_owned()));
            // N jobs of one rank each would all print.
            let mut out: Box<dyn Write> = if launch::speaks(&environment) {
                Box::new(io::stdout().lock())
            } else {
                Box::new(io::sink())
            };
            let facts = doctor::Facts {
                ranks: 1,
                mpi_library: mpi::environment::library_version().ok(),
                environment,
                bindings: vec![affinity::here(0)],
                checkpoint,
            };
            let ready = doctor::doctor(&facts, &mut out)?;
            Ok(if ready { Exit::Done } else { Exit::Refused })
        }
    }
}
