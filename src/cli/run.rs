//! Options that all jobs over a corpus have.

use std::path::PathBuf;

use clap::{ArgAction, Args, ValueEnum};
use serde::Serialize;

use super::buffer::BufferArgs;
use super::value::{count, seconds, MANY};

/// Model, output, ranks and results of a job over a corpus.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct RunArgs {
    /// Checkpoint: a Hugging Face folder with config.json, tokenizer.json and safetensors
    #[arg(long, short, value_name = "DIR", help_heading = "Input and output")]
    pub model: PathBuf,

    /// Where the results go, one HDF5 file; while the job runs they grow in OUT.h5.parts beside it
    #[arg(long, short, value_name = "OUT.h5", help_heading = "Input and output")]
    pub output: PathBuf,

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

    /// Which experts are in memory.
    #[command(flatten)]
    #[serde(flatten)]
    pub buffer: BufferArgs,

    /// Ranks that hold one copy of the model together, sharing its experts; must divide the number of ranks. Default:
    /// all ranks, one copy
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Ranks")]
    pub expert_parallel: Option<usize>,

    /// Keep what the experts did: counts per step and layer, or also the experts and weights of every token
    #[arg(long, value_enum, value_name = "WHAT", help_heading = "Results")]
    pub routing: Option<Routing>,

    /// Also write a report of the run (JSON): rows, tokens, speed, time per phase, memory, versions
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub report: Option<PathBuf>,

    /// Finished rows are put on disk every so many seconds: a kill costs those since, and what is in flight
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
