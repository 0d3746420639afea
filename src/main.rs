//! The `sluice` command: parse, dispatch, exit code.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use sluicegate::cli::{self, exit, exit::Exit, Command};
use sluicegate::comm::mpi::World;
use sluicegate::comm::{affinity, launch, Comm};
use sluicegate::job::{doctor, evaluate, generate, merge, score, show, study, translate, words};

fn main() -> ExitCode {
    let environment = launch::environment();
    cli::log::start();
    match cli::parse(std::env::args_os()) {
        Ok(cli) => exit::finish(run(cli.command, environment)),
        Err(error) => exit::refuse(&error, launch::speaks(&environment)),
    }
}

/// Runs a job of all ranks.
fn on_ranks(job: impl FnOnce(&dyn Comm) -> Result<Exit>) -> Result<Exit> {
    let world = World::start()?;
    cli::log::set_rank(world.comm().rank(), world.comm().size());
    // Said before anyone can leave: a launcher ends all ranks when the first one has gone with an error.
    let end = job(world.comm()).map_err(|error| {
        let (rank, ranks) = (world.comm().rank(), world.comm().size());
        exit::report(if ranks > 1 { exit::by_rank(rank, error) } else { error })
    });
    world.leave(end.is_err());
    end
}

/// The one place that knows every job.
fn run(command: Command, environment: launch::Environment) -> Result<Exit> {
    match command {
        Command::Translate(args) => on_ranks(|world| translate::run(&args, world)),
        Command::Generate(args) => on_ranks(|world| generate::run(&args, world)),
        Command::Score(args) => on_ranks(|world| score::run(&args, world)),
        // Under mpirun N processes would all do it.
        Command::Evaluate(_) | Command::Study(_) | Command::Show(_) | Command::Merge(_)
            if !launch::speaks(&environment) =>
        {
            Ok(Exit::Done)
        }
        Command::Evaluate(args) => evaluate::run(&args, &mut io::stdout().lock()),
        Command::Study(args) => study::run(&args, &mut io::stdout().lock()),
        Command::Show(args) => {
            let format = match args.format {
                cli::ShowFormat::Text => show::ShowFormat::Text,
                cli::ShowFormat::Tsv => show::ShowFormat::Tsv,
                cli::ShowFormat::Jsonl => show::ShowFormat::Jsonl,
            };
            let options = show::ShowOptions {
                path: args.path,
                format,
                summary: args.summary,
            };
            show::run(&options, &mut io::stdout().lock()).map(|()| Exit::Done)
        }
        Command::Merge(args) => {
            let options = merge::MergeOptions { path: args.parts };
            let failed = merge::run(&options, &mut io::stdout().lock())?;
            Ok(if failed > 0 { Exit::SomeRowsFailed } else { Exit::Done })
        }
        Command::Doctor(args) => {
            let world = World::start()?;
            let comm = world.comm();
            let facts = doctor::Facts {
                ranks: comm.size(),
                mpi_library: Some(sluicegate::comm::mpi::library()),
                bindings: affinity::everybody(comm)?,
                checkpoint: args
                    .model
                    .map(|dir| words::describe(&dir).map_err(|e| format!("{e:#}"))),
                environment,
            };
            // N jobs of one rank each would all print.
            let speaks = comm.rank() == 0 && launch::speaks(&facts.environment);
            let mut out: Box<dyn Write> = if speaks {
                Box::new(io::stdout().lock())
            } else {
                Box::new(io::sink())
            };
            let ready = doctor::doctor(&facts, &mut out)?;
            Ok(if ready { Exit::Done } else { Exit::Refused })
        }
    }
}
