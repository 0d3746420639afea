//! Options of jobs that generate text.

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::value::{count, finite, MANY};

/// How to search, and how much at once. Absent (`None`) means: what the checkpoint says.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct GenerationArgs {
    /// Beams of the search; 1 is greedy. Default: generation_config.json, else 1
    #[arg(long, value_name = "N", value_parser = count(1, 1024), help_heading = "Generation")]
    pub num_beams: Option<usize>,

    /// Longest output in generated tokens, language code and end of sentence included; wins over --max-length
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Generation")]
    pub max_new_tokens: Option<usize>,

    /// Shortest output in generated tokens. Default: generation_config.json's min_new_tokens, else its min_length, which
    /// counts the decoder's start token, or the prompt of a decoder-only model
    #[arg(long, value_name = "N", value_parser = count(0, MANY), help_heading = "Generation")]
    pub min_new_tokens: Option<usize>,

    /// Longest output in tokens, the decoder's start token, or the prompt of a decoder-only model, included. Default:
    /// generation_config.json, else 20 behind the start token. Generate has 128 new tokens instead where that file says
    /// nothing, or something that counts prompts
    #[arg(long, value_name = "N", value_parser = count(2, MANY), help_heading = "Generation")]
    pub max_length: Option<usize>,

    /// Beam scores are divided by length to this power: above 0 favours longer outputs. Default:
    /// generation_config.json, else 1.0
    #[arg(long, value_name = "X", value_parser = finite, help_heading = "Generation")]
    pub length_penalty: Option<f32>,

    /// When beam search ends: true at num-beams finished outputs; false when a better one is unlikely; never when it
    /// is impossible. Default: generation_config.json, else false
    #[arg(long, value_enum, value_name = "WHEN", help_heading = "Generation")]
    pub early_stopping: Option<EarlyStopping>,

    /// No sequence of N tokens comes twice in an output; 0 is off. Default: generation_config.json, else 0
    #[arg(long, value_name = "N", value_parser = count(0, MANY), help_heading = "Generation")]
    pub no_repeat_ngram_size: Option<usize>,

    /// Source tokens a rank works on at once: more is faster and takes more memory for caches (the run's first lines say
    /// how much); auto takes what keeps the experts busy, in half of the free memory at most (but one sentence); changes no result
    #[arg(long, value_name = "N|auto", value_parser = batch_tokens, default_value_t = BatchTokens::Auto)]
    #[arg(help_heading = "Speed and memory")]
    pub batch_tokens: BatchTokens,

    /// Keep the log-probability of every generated token
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Results")]
    pub scores: bool,
}

/// When beam search ends, as Hugging Face's `early_stopping`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EarlyStopping {
    /// At `num_beams` finished outputs.
    True,
    /// When a better output is unlikely.
    False,
    /// When a better output is impossible.
    Never,
}

/// Source tokens a rank works on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BatchTokens {
    /// As many as keep the experts busy.
    Auto,
    /// This many.
    #[serde(untagged)]
    Tokens(usize),
}

impl std::fmt::Display for BatchTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BatchTokens::Auto => f.write_str("auto"),
            BatchTokens::Tokens(tokens) => write!(f, "{tokens}"),
        }
    }
}

/// A parser of `--batch-tokens`.
fn batch_tokens(text: &str) -> Result<BatchTokens, String> {
    match text {
        "auto" => Ok(BatchTokens::Auto),
        number => count(1, MANY)(number)
            .map(BatchTokens::Tokens)
            .map_err(|why| format!("{why}, or auto")),
    }
}
