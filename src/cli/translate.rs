//! The options of `sluice translate`.
//!
//! The config file's types follow from the value names here: `N` is a whole number, `X` a number, `BOOL` a switch,
//! anything else a string, and a list where the flag takes values between commas ([`super::config_file`]).

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::generation::GenerationArgs;
use super::input::InputArgs;
use super::run::RunArgs;
use super::value::code;

/// What stands under `sluice translate --help`.
pub const AFTER_HELP: &str = "\
Stopped or killed, a run goes on where it was when the same command is started again, on any number of ranks.
Exit codes: 0 done, 1 some rows failed, 2 refused or failed, 128+n after signal n (see sluice --help).

Examples:
  mpirun -n 4 sluice translate -m DIR --source eng_Latn --target fra_Latn in.txt -o out.h5
  mpirun -n 4 sluice translate -m DIR --source eng_Latn --target fra_Latn,deu_Latn in.txt -o out.h5 --num-beams 4
  mpirun -n 4 sluice translate --config job.toml in.jsonl.gz -o out.h5";

/// Arguments of `sluice translate`, as the job takes them. Absent (`None`) means: what the checkpoint says.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct TranslateArgs {
    /// Text to translate, a sentence a line; .tsv and .jsonl have columns (text, id, source_lang, target_lang); all of
    /// them also as .gz and .zst; several files and patterns ('part-*.txt') are one input; - is standard input
    #[arg(value_name = "INPUT", required = true, help_heading = "Input and output")]
    pub inputs: Vec<PathBuf>,

    /// Where the texts are.
    #[command(flatten)]
    #[serde(flatten)]
    pub input: InputArgs,

    /// What all jobs have.
    #[command(flatten)]
    #[serde(flatten)]
    pub run: RunArgs,

    /// Language of the input, e.g. eng_Latn; needed where rows don't name their own source_lang
    #[arg(long, value_name = "CODE", value_parser = code, help_heading = "Input and output")]
    pub source: Option<String>,

    /// Language to translate to, e.g. fra_Latn; several in one job: fra_Latn,deu_Latn; needed where rows don't name
    /// their own target_lang
    #[arg(long, value_name = "CODE,...", value_delimiter = ',', value_parser = code, action = ArgAction::Set, num_args = 1)]
    #[arg(help_heading = "Input and output")]
    pub target: Vec<String>,

    /// Reference translations, a line per input line: BLEU and chrF are computed; with several targets one file each,
    /// in their order: ref.fra,ref.deu
    #[arg(long, value_name = "FILE,...", value_delimiter = ',', action = ArgAction::Set, num_args = 1)]
    #[arg(help_heading = "Input and output")]
    pub references: Vec<PathBuf>,

    /// How to search.
    #[command(flatten)]
    #[serde(flatten)]
    pub generation: GenerationArgs,
}
