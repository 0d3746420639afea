//! The options of `sluice score`.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::input::InputArgs;
use super::run::RunArgs;
use super::value::{code, count, Memory, MANY};

/// What stands under `sluice score --help`.
pub const AFTER_HELP: &str = "\
Stopped or killed, a run goes on where it was when the same command is started again, on any number of ranks.
Exit codes: 0 done, 1 some rows failed, 2 refused or failed, 128+n after signal n (see sluice --help).

Examples:
  mpirun -n 4 sluice score -m olmoe corpus.jsonl.zst -o scores.h5
  mpirun -n 4 sluice score -m mixtral 'part-*.txt' -o scores.h5 --window 4096 --stride 1024 --prefix bos
  mpirun -n 4 sluice score -m nllb-moe --pairs --source eng_Latn --target fra_Latn pairs.tsv -o scores.h5
  sluice evaluate scores.h5";

/// Arguments of `sluice score`, as the job takes them.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct ScoreArgs {
    /// Texts to score, one a line (.tsv and .jsonl: a row); all of them also as .gz and .zst; several files and patterns
    /// ('part-*.txt') are one input; - is standard input
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

    /// Score targets after their sources, with a model that has an encoder: a line is a source, a tab and a target
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Input and output")]
    pub pairs: bool,

    /// Language of the sources of pairs, e.g. eng_Latn, where the model knows languages and rows don't name their own
    #[arg(long, value_name = "CODE", value_parser = code, help_heading = "Input and output")]
    pub source: Option<String>,

    /// Language of the targets of pairs, likewise
    #[arg(long, value_name = "CODE", value_parser = code, help_heading = "Input and output")]
    pub target: Option<String>,

    /// Tokens of a text that are read at once; longer texts are cut. Default: 2048, or what the model was trained for if that
    /// is less
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Scoring")]
    pub window: Option<usize>,

    /// Tokens from one window to the next; what windows share is read again, as context. Default: the window, so that they
    /// share nothing
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Scoring")]
    pub stride: Option<usize>,

    /// What stands before a text: none is what the tokenizer makes of it, whose first token has no score, so that perplexities by
    /// word and byte come out too low unless that is a bos of the tokenizer's own (Mixtral, DeepSeek); bos and eos are that token of
    /// the tokenizer, before the text alone (lm-evaluation-harness's rolling windows: bos, or eos where there is none)
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = Prefix::None, help_heading = "Scoring")]
    pub prefix: Prefix,

    /// Memory for what a portion of texts is turned into on its way through the layers and into the file, e.g. 2G: with more of
    /// it each expert meets more rows at once; auto takes what is fastest; changes no result
    #[arg(long, value_name = "SIZE|auto", default_value_t = Memory::Auto, help_heading = "Speed and memory")]
    pub activation_memory: Memory,

    /// Keep the rank of each scored token among all tokens, the likeliest 1
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Results")]
    pub ranks: bool,

    /// Keep the N likeliest tokens in place of each scored one, with their log-probabilities
    #[arg(long, value_name = "N", value_parser = count(0, 1024), default_value_t = 0, help_heading = "Results")]
    pub top: usize,
}

/// What stands before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefix {
    /// Nothing.
    None,
    /// The tokenizer's beginning-of-sentence token.
    Bos,
    /// Its end-of-sentence token.
    Eos,
}
