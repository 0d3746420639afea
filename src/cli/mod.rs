//! The command line: one definition a flag, from which the help, the config file and `docs/options.md` come.
//!
//! [`parse`] turns arguments into a checked [`Command`]; [`exit`] turns a job's end into an exit code.

pub mod buffer;
pub mod check;
pub mod config_file;
pub mod evaluate;
pub mod exit;
pub mod generate;
pub mod generation;
pub mod input;
pub mod log;
pub mod markdown;
pub mod run;
pub mod score;
pub mod study;
pub mod translate;
pub mod value;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::Serialize;

pub use evaluate::EvaluateArgs;
pub use generate::GenerateArgs;
pub use score::ScoreArgs;
pub use study::StudyArgs;
pub use translate::TranslateArgs;
pub use value::Memory;

/// What stands under `sluice --help`: the exit codes, the environment, examples.
const AFTER_HELP: &str = "\
Exit codes:
  0      done (also: nothing to do, or the reader of a pipe went away)
  1      done, but some rows failed (with --on-error skip; their status in the output says so)
  2      refused or failed: one line on stderr says why and what to do
  128+n  ended by signal n after what was finished was kept (143: SIGTERM); the same command goes on from there

Environment:
  RUST_LOG    what is logged, e.g. RUST_LOG=sluicegate=debug (default: info)
  SLUICE_ISA  instruction set of the kernels: avx512+bf16, avx512+vnni, avx512, avx2 or portable (default: the best there
              is); one for all ranks where machines differ makes bf16 results the same on each

Examples:
  mpirun -n 4 sluice translate --model nllb-moe-54b --source eng_Latn --target fra_Latn in.txt --output out.h5
  sluice show out.h5 > out.txt
  sluice evaluate out.h5 --references ref.txt
  sluice doctor --model nllb-moe-54b";

/// Run Mixture-of-Experts transformers over a corpus on MPI ranks; results in HDF5
///
/// Start it once, on as many ranks as you like, with mpirun or srun. Every rank holds the dense weights and a share of
/// the experts. The result doesn't depend on the number of ranks, and a run that was stopped goes on with the same
/// command.
#[derive(Debug, Parser)]
#[command(name = "sluice", version, after_long_help = AFTER_HELP, args_override_self = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The jobs a user can run.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Translate a text file, a sentence a line (or TSV, JSONL)
    #[command(after_long_help = translate::AFTER_HELP)]
    Translate(Box<TranslateArgs>),
    /// Go on from prompts: greedy, beam search or sampling
    #[command(after_long_help = generate::AFTER_HELP)]
    Generate(Box<GenerateArgs>),
    /// Score texts: log-probabilities of their tokens, and perplexity
    #[command(after_long_help = score::AFTER_HELP)]
    Score(Box<ScoreArgs>),
    /// Compare finished outputs with references (BLEU, chrF, TER, ROUGE), or sum up scored texts (perplexity)
    #[command(after_long_help = evaluate::AFTER_HELP)]
    Evaluate(Box<EvaluateArgs>),
    /// Study a finished run: what fewer expert slots would cost
    Study(StudyArgs),
    /// Print the results in a finished output file
    Show(ShowArgs),
    /// Join the segments of a run into its output file (after --no-merge)
    Merge(MergeArgs),
    /// Say what this machine, this launch and this checkpoint offer, what is missing and what to do
    Doctor(DoctorArgs),
}

/// Arguments of `sluice show`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct ShowArgs {
    /// The output file of a finished run
    #[arg(value_name = "OUT.h5")]
    pub path: PathBuf,

    /// How to print rows: text is exactly one line per input line, tsv has a header line, jsonl has every field
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = ShowFormat::Text, conflicts_with = "summary")]
    pub format: ShowFormat,

    /// Print a summary instead of rows: counts, scores, time per phase, the options used
    #[arg(long)]
    pub summary: bool,
}

/// How `sluice show` prints rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ShowFormat {
    /// The output text, one line per input line.
    Text,
    /// Tab-separated columns with a header line.
    Tsv,
    /// One JSON object a row, every field.
    Jsonl,
}

/// Arguments of `sluice merge`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct MergeArgs {
    /// The folder of segments that the run left, e.g. out.h5.parts
    #[arg(value_name = "OUT.h5.parts")]
    pub parts: PathBuf,
}

/// Arguments of `sluice doctor`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct DoctorArgs {
    /// Also check this checkpoint: a Hugging Face folder with config.json, tokenizer.json and safetensors
    #[arg(long, short, value_name = "DIR")]
    pub model: Option<PathBuf>,
}

/// The whole command line. A number below 0 is a value like others, so that the flag that has it says what it takes.
fn command() -> clap::Command {
    let of_flag = |flag: Arg| match flag.is_positional() || !flag.get_action().takes_values() {
        true => flag,
        false => flag.allow_negative_numbers(true),
    };
    Cli::command().mut_subcommands(|command| {
        let of_study = |study: clap::Command| study.mut_args(of_flag);
        command.mut_args(of_flag).mut_subcommands(of_study)
    })
}

/// Parses the arguments (the program's name first), with the config file that they name put before them, and checks
/// what can be checked without touching files.
///
/// # Errors
/// A [`clap::Error`] (also for `--help` and `--version`; see [`exit::refuse`]), or what is wrong with the config file
/// or between options.
pub fn parse<I, T>(arguments: I) -> Result<Cli>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString>,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let command = command();
    let arguments = config_file::expand(&command, arguments)?;
    let cli = Cli::from_arg_matches(&command.try_get_matches_from(arguments)?)?;
    match &cli.command {
        Command::Translate(arguments) => check::translate(arguments)?,
        Command::Generate(arguments) => check::generate(arguments)?,
        Command::Score(arguments) => check::score(arguments)?,
        Command::Evaluate(arguments) => evaluate::check(arguments)?,
        Command::Study(arguments) => study::check(arguments)?,
        _ => {}
    }
    Ok(cli)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_long_commands_has_help_and_a_heading() {
        let cli = Cli::command();
        let command = |name| cli.find_subcommand(name).unwrap();
        let studies = command("study").get_subcommands();
        for command in ["translate", "generate", "score", "evaluate"]
            .map(command)
            .into_iter()
            .chain(studies)
        {
            for flag in command.get_arguments() {
                let name = flag.get_id().as_str();
                assert!(flag.get_help().is_some(), "{name} has no help");
                assert!(flag.get_help_heading().is_some(), "{name} has no heading");
            }
        }
    }

    #[test]
    fn a_number_below_zero_is_a_value_that_the_flag_judges() {
        for (line, said) in [
            ("score in -m m -o o --window -5", "from 1 to"),
            ("score in -m m -o o --top -1", "from 0 to"),
            ("score in -m m -o o --segment-seconds -1", "seconds from"),
            (
                "generate in -m m -o o --seed -1",
                "a whole number from 0 to 18446744073709551615",
            ),
            (
                "generate in -m m -o o --seed 18446744073709551616",
                "a whole number from 0",
            ),
            ("generate in -m m -o o --top-k -1", "from 0 to"),
            ("generate in -m m -o o --stop=", "at once"),
        ] {
            let error = parse(["sluice"].into_iter().chain(line.split(' '))).unwrap_err();
            let message = exit::message(&error);
            assert!(message.contains(said) && !message.contains("unexpected"), "{message}");
        }
        let parsed = parse("sluice generate in -m m -o o --length-penalty -1.5 --temperature 1".split(' '));
        let Command::Generate(args) = parsed.unwrap().command else {
            panic!("not generate")
        };
        assert_eq!(args.generation.length_penalty, Some(-1.5));
    }

    #[test]
    fn show_merge_and_doctor_parse() {
        let show = |flags: &[&str]| match parse(["sluice", "show", "o.h5"].iter().chain(flags)) {
            Ok(Cli {
                command: Command::Show(show),
            }) => Some(show),
            _ => None,
        };
        let wanted = |format, summary| {
            let path = "o.h5".into();
            Some(ShowArgs { path, format, summary })
        };
        assert_eq!(show(&["--format", "tsv"]), wanted(ShowFormat::Tsv, false));
        assert_eq!(show(&["--summary"]), wanted(ShowFormat::Text, true));
        assert_eq!(show(&["--summary", "--format", "tsv"]), None);
        let Command::Merge(merge) = parse(["sluice", "merge", "o.h5.parts"]).unwrap().command else {
            panic!("not merge")
        };
        assert_eq!(merge.parts, PathBuf::from("o.h5.parts"));
        let Command::Doctor(doctor) = parse(["sluice", "doctor", "--model", "m"]).unwrap().command else {
            panic!("not doctor");
        };
        assert_eq!(doctor.model, Some("m".into()));
    }
}
