//! The options of `sluice translate`.
//!
//! The config file's types follow from the value names here: `N` is a whole number, `X` a number, `BOOL` a switch,
//! anything else a string, and a list where the flag takes values between commas ([`super::config_file`]).

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

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
    /// them also as .gz and .zst; - is standard input
    #[arg(value_name = "INPUT", help_heading = "Input and output")]
    pub input: PathBuf,

    /// Checkpoint: a Hugging Face folder with config.json, tokenizer.json and safetensors
    #[arg(long, short, value_name = "DIR", help_heading = "Input and output")]
    pub model: PathBuf,

    /// Where the results go, one HDF5 file; while the job runs they grow in OUT.h5.parts beside it
    #[arg(long, short, value_name = "OUT.h5", help_heading = "Input and output")]
    pub output: PathBuf,

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

    /// Throw away what OUT.h5 and OUT.h5.parts hold; without it an unfinished output of the same job is resumed and a
    /// finished one left alone
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Input and output")]
    pub overwrite: bool,

    /// What a row that can't be used does (invalid UTF-8, broken JSON): fail refuses the job before work; skip gives
    /// that row status 4 and exit code 1
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = OnError::Fail, help_heading = "Input and output")]
    pub on_error: OnError,

    /// Take options from this TOML file, e.g. num-beams = 4; the command line wins
    #[arg(long, value_name = "FILE.toml", help_heading = "Input and output")]
    pub config: Option<PathBuf>,

    /// Beams of the search; 1 is greedy. Default: generation_config.json, else 1
    #[arg(long, value_name = "N", value_parser = count(1, 1024), help_heading = "Generation")]
    pub num_beams: Option<usize>,

    /// Longest output in generated tokens, language code and end of sentence included; wins over --max-length
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Generation")]
    pub max_new_tokens: Option<usize>,

    /// Shortest output in generated tokens. Default: generation_config.json, else none
    #[arg(long, value_name = "N", value_parser = count(0, MANY), help_heading = "Generation")]
    pub min_new_tokens: Option<usize>,

    /// Longest output in tokens, the decoder's start token included. Default: generation_config.json, else 20
    #[arg(long, value_name = "N", value_parser = count(2, MANY), help_heading = "Generation")]
    pub max_length: Option<usize>,

    /// Beam scores are divided by length to this power: above 0 favours longer outputs. Default:
    /// generation_config.json, else 1.0
    #[arg(long, value_name = "X", value_parser = finite, allow_negative_numbers = true, help_heading = "Generation")]
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

    /// Precision of weights and products. bf16 takes half of f32's memory, int8 a quarter: 8-bit weights, a scale for
    /// each output, and activations quantised row by row; routers, norms and biases stay f32. Default: as stored in the
    /// checkpoint
    #[arg(long, value_enum, value_name = "TYPE", help_heading = "Speed and memory")]
    pub dtype: Option<Dtype>,

    /// Threads of each rank, 8 for each core it is bound to at most. Default: those cores, divided by the ranks that share
    /// them
    #[arg(long, value_name = "N", value_parser = count(1, 4096), help_heading = "Speed and memory")]
    pub threads: Option<usize>,

    /// Where to compute; auto takes a GPU where there is one that this build can use
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = Device::Auto, help_heading = "Speed and memory")]
    pub device: Device,

    /// Ranks that hold one copy of the model together, sharing its experts; must divide the number of ranks. Default:
    /// all ranks, one copy
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Ranks")]
    pub expert_parallel: Option<usize>,

    /// Keep the log-probability of every generated token
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Results")]
    pub scores: bool,

    /// Keep what the experts did: counts per step and layer, or also the experts and weights of every token
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Results")]
    pub routing: Option<Routing>,

    /// Also write a report of the run (JSON): rows, tokens, speed, time per phase, memory, versions
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub report: Option<PathBuf>,

    /// Finished rows are put on disk every so many seconds: a kill costs at most that much work
    #[arg(long, value_name = "X", value_parser = seconds, default_value_t = 30.0, help_heading = "Results")]
    pub segment_seconds: f64,

    /// Leave the segments in OUT.h5.parts, so that many ranks don't wait while one joins them; `sluice merge` does it
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Results")]
    pub no_merge: bool,
}

/// What a row that can't be used does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The job is refused before work.
    Fail,
    /// The row gets status 4; the job goes on.
    Skip,
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

/// Precision of weights and products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// bfloat16 weights, sums in 32 bits.
    Bf16,
    /// 8-bit weights and activations, exact sums.
    Int8,
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Device {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
    /// A GPU where this build can use one, else the processor.
    Auto,
}

/// What is kept of the experts' work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Routing {
    /// Tokens per step, layer and expert.
    Counts,
    /// Also the chosen experts and weights per token.
    Tokens,
}

/// An upper bound that only catches slips of the keyboard.
const MANY: usize = 1 << 30;

/// A parser of whole numbers from `least` to `most`.
fn count(least: usize, most: usize) -> impl Fn(&str) -> Result<usize, String> + Clone + Send + Sync + 'static {
    move |text| match text.parse::<usize>() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        Ok(_) => Err(format!("it must be from {least} to {most}")),
        Err(_) => Err(format!("it must be a whole number from {least} to {most}")),
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

/// A parser of finite numbers.
fn finite(text: &str) -> Result<f32, String> {
    text.parse()
        .ok()
        .filter(|number: &f32| number.is_finite())
        .ok_or_else(|| "it must be a number, e.g. 1.0".to_owned())
}

/// A parser of times: from a tenth of a second to a day.
fn seconds(text: &str) -> Result<f64, String> {
    let number = text
        .parse::<f64>()
        .ok()
        .filter(|number| (0.1..=86_400.0).contains(number));
    number.ok_or_else(|| "it must be a number of seconds from 0.1 to 86400".to_owned())
}

/// A parser of language codes. Which codes a model knows is the tokenizer's to say; here only slips are caught.
fn code(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("a language code is missing, e.g. fra_Latn".to_owned()),
        code if code.contains(char::is_whitespace) => {
            Err("write several codes with commas: fra_Latn,deu_Latn".to_owned())
        }
        code => Ok(code.to_owned()),
    }
}
