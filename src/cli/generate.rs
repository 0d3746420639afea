//! The options of `sluice generate`.

use std::path::PathBuf;

use clap::{ArgAction, Args};
use serde::Serialize;

use super::generation::GenerationArgs;
use super::input::InputArgs;
use super::run::RunArgs;
use super::value::{count, finite, MANY};

/// What stands under `sluice generate --help`.
pub const AFTER_HELP: &str = "\
Prompts: a line each, or JSONL with prompt, prompt_token_ids or messages (through the checkpoint's chat template, with tools),
and, where wanted, custom_id, max_tokens, seed and stop; other settings are for all rows.
Stopped or killed, a run goes on where it was when the same command is started again, on any number of ranks.
Exit codes: 0 done, 1 some rows failed, 2 refused or failed, 128+n after signal n (see sluice --help).

Examples:
  mpirun -n 4 sluice generate -m mixtral prompts.jsonl -o out.h5 --max-new-tokens 256
  mpirun -n 4 sluice generate -m olmoe prompts.txt -o out.h5 --temperature 0.8 --top-p 0.9 --seed 1
  mpirun -n 4 sluice generate -m switch-base-8 questions.txt -o out.h5 --num-beams 4";

/// Arguments of `sluice generate`, as the job takes them.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct GenerateArgs {
    /// Prompts, one a line, or JSONL; all of them also as .gz and .zst; several files and patterns ('part-*.jsonl') are one
    /// input; - is standard input
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

    /// How to search.
    #[command(flatten)]
    #[serde(flatten)]
    pub generation: GenerationArgs,

    /// Draw tokens, logits divided by this; 0 takes the likeliest. Default: 1 where another flag of sampling is given, else 0
    #[arg(long, value_name = "X", value_parser = finite, help_heading = "Sampling")]
    pub temperature: Option<f32>,

    /// Draw from the N likeliest tokens only; 0, the default, takes all
    #[arg(long, value_name = "N", value_parser = count(0, MANY), help_heading = "Sampling")]
    pub top_k: Option<usize>,

    /// Draw from the fewest likeliest tokens whose probabilities come to this. Default: 1, all
    #[arg(long, value_name = "X", value_parser = finite, help_heading = "Sampling")]
    pub top_p: Option<f32>,

    /// Draw from tokens that are at least this probable, in parts of the likeliest one's probability. Default:
    /// 0, all
    #[arg(long, value_name = "X", value_parser = finite, help_heading = "Sampling")]
    pub min_p: Option<f32>,

    /// Where random numbers begin; each row has its own, so that results don't depend on ranks or order. Default: 0
    #[arg(long, value_name = "N", value_parser = seed, help_heading = "Sampling")]
    pub seed: Option<u64>,

    /// End an output where this text comes, and cut it there; may be given several times
    #[arg(long, value_name = "TEXT", value_parser = stop, action = ArgAction::Append, num_args = 1)]
    #[arg(help_heading = "Generation")]
    pub stop: Vec<String>,
}

fn seed(text: &str) -> Result<u64, String> {
    text.parse()
        .map_err(|_| format!("it must be a whole number from 0 to {}", u64::MAX))
}

fn stop(text: &str) -> Result<String, String> {
    match text {
        "" => Err("an empty text would end every output at once: leave it out".to_owned()),
        text => Ok(text.to_owned()),
    }
}
