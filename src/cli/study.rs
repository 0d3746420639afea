//! The options of `sluice study`.

use std::path::PathBuf;

use anyhow::{ensure, Result};
use clap::{ArgAction, Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::run::Dtype;
use super::value::{bytes, count, Numbers, MANY};
use crate::moe::buffer::residency::{Eviction, Prefetch};

/// What stands under `sluice study buffer --help`.
pub const AFTER_BUFFER: &str = "\
A run that was made with --routing counts says which experts each layer needed at each step. The study goes through these
needs again with fewer slots than experts, under every policy of eviction, and counts the experts that had to be loaded. `min`
is Belady's rule, which knows what is to come: with as many slots no policy loads less. Loads ahead count as loads.
The model isn't needed; with it (or --expert-bytes) slots are bytes too.

Examples:
  sluice translate in.txt --model M --source eng_Latn --target fra_Latn --output run.h5 --routing counts
  sluice study buffer --trace run.h5 --slots 1..16 --output study.h5
  sluice study buffer --trace run.h5 --slots 1,2,4,8 --ranks 4 --model M --output study.h5 --figures figures
  sluice study buffer --trace run.h5 --policies lookahead,lifo --placement place.json --output study.h5";

/// Arguments of `sluice study`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct StudyArgs {
    /// What to study.
    #[command(subcommand)]
    pub study: Study,
}

/// The studies.
#[derive(Debug, Clone, PartialEq, Subcommand, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Study {
    /// How many experts would be loaded with fewer slots than experts, by policy, slots and placement
    #[command(after_long_help = AFTER_BUFFER)]
    Buffer(Box<BufferArgs>),
}

/// Arguments of `sluice study buffer`.
#[derive(Debug, Clone, PartialEq, Args, Serialize)]
pub struct BufferArgs {
    /// The output file of a finished run that was made with --routing
    #[arg(long, value_name = "RUN.h5", help_heading = "Input and output")]
    pub trace: PathBuf,

    /// Where the counts go, one HDF5 file
    #[arg(long, short, value_name = "STUDY.h5", help_heading = "Input and output")]
    pub output: PathBuf,

    /// Replace an output that is there
    #[arg(long, value_name = "BOOL", default_value_t = false, default_missing_value = "true", num_args = 0..=1)]
    #[arg(require_equals = true, action = ArgAction::Set, hide_possible_values = true, hide_default_value = true)]
    #[arg(help_heading = "Input and output")]
    pub overwrite: bool,

    /// Draw misses and memory against slots into this folder, each figure as SVG and PNG
    #[arg(long, value_name = "DIR", help_heading = "Input and output")]
    pub figures: Option<PathBuf>,

    /// Print JSON instead of tables: every figure unrounded
    #[arg(long, help_heading = "Input and output")]
    pub json: bool,

    /// Slots per layer and rank: numbers and ranges, e.g. 1..16 (both ends count) or 1,2,4,8. Those above a rank's experts
    /// are left out
    #[arg(long, value_name = "N,...", default_value = "1..16", value_parser = Numbers::parser(1, 1 << 16))]
    #[arg(help_heading = "Buffer")]
    pub slots: Numbers,

    /// Policies of eviction; `min` is always there beside them. Default: all
    #[arg(long, value_enum, value_name = "NAME,...", value_delimiter = ',', num_args = 1.., help_heading = "Buffer")]
    pub policies: Vec<Policy>,

    /// Who shares slots: rank is one pool of slots times layers, layer a pool of its own for each
    #[arg(long, value_enum, value_name = "POOL", default_value_t = Pool::Rank, help_heading = "Buffer")]
    pub pool: Pool,

    /// Fetch ahead what the next layer is likely to need by what it needed before (lookahead only), or not
    #[arg(long, value_enum, value_name = "HOW", default_value_t = PrefetchName::Off, help_heading = "Buffer")]
    pub prefetch: PrefetchName,

    /// Ranks that share a copy of the experts. Default: as many as the run had
    #[arg(long, value_name = "N", value_parser = count(1, MANY), help_heading = "Experts")]
    pub ranks: Option<usize>,

    /// Also study this placement of experts on ranks, a JSON file: {"ranks": 2, "layers": {"NAME": [rank of expert 0, ...]}}
    #[arg(long, value_name = "PLACE.json", help_heading = "Experts")]
    pub placement: Option<PathBuf>,

    /// Bytes of an expert, e.g. 12M, to give slots in bytes where the checkpoint isn't at hand
    #[arg(long, value_name = "SIZE", value_parser = bytes, conflicts_with = "model", help_heading = "Experts")]
    pub expert_bytes: Option<u64>,

    /// The checkpoint of the run: its experts' bytes and those of its dense weights
    #[arg(long, short, value_name = "DIR", help_heading = "Experts")]
    pub model: Option<PathBuf>,

    /// Precision of the weights with --model. Default: that of the run
    #[arg(long, value_enum, value_name = "TYPE", requires = "model", help_heading = "Experts")]
    pub dtype: Option<Dtype>,
}

/// A policy of eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// What isn't needed for longest goes, by what is known of the schedule; what is resident runs first.
    Lookahead,
    /// The paper's: first what this visit doesn't need, then what was loaded last.
    Lifo,
    /// What was loaded last goes.
    PlainLifo,
    /// What was not used for longest goes.
    Lru,
    /// What was loaded first goes.
    Fifo,
    /// What was used in the fewest visits goes.
    Lfu,
}

/// Who shares slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    /// A layer's experts on a rank.
    Layer,
    /// A rank's experts.
    Rank,
}

/// What is fetched before it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefetchName {
    /// Nothing.
    Off,
    /// What the next layer is likely to need.
    Trace,
}

impl Policy {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Policy::Lookahead => "lookahead",
            Policy::Lifo => "lifo",
            Policy::PlainLifo => "plain-lifo",
            Policy::Lru => "lru",
            Policy::Fifo => "fifo",
            Policy::Lfu => "lfu",
        }
    }

    /// What it is among the policies.
    pub fn eviction(self) -> Eviction {
        match self {
            Policy::Lookahead => Eviction::Lookahead,
            Policy::Lifo => Eviction::Lifo,
            Policy::PlainLifo => Eviction::PlainLifo,
            Policy::Lru => Eviction::Lru,
            Policy::Fifo => Eviction::Fifo,
            Policy::Lfu => Eviction::Lfu,
        }
    }
}

impl PrefetchName {
    /// What it is for the replay.
    pub fn prefetch(self) -> Prefetch {
        match self {
            PrefetchName::Off => Prefetch::Off,
            PrefetchName::Trace => Prefetch::Trace,
        }
    }
}

impl BufferArgs {
    /// The policies asked for, each once.
    pub fn policies(&self) -> Vec<Policy> {
        let mut policies = Vec::new();
        let all = match self.policies[..] {
            [] => Policy::value_variants(),
            _ => &self.policies,
        };
        for policy in all {
            if !policies.contains(policy) {
                policies.push(*policy);
            }
        }
        policies
    }
}

/// Checks options against each other.
///
/// # Errors
/// Names an option that would change nothing.
pub fn check(args: &StudyArgs) -> Result<()> {
    let Study::Buffer(args) = &args.study;
    ensure!(
        args.prefetch == PrefetchName::Off || args.policies().contains(&Policy::Lookahead),
        "--prefetch trace changes nothing without --policies lookahead: name it there, or leave --prefetch out"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{parse, Command};

    fn buffer(line: &str) -> Result<BufferArgs, String> {
        let arguments = ["sluice", "study", "buffer", "--trace", "r.h5", "-o", "s.h5"].into_iter();
        let parsed = parse(arguments.chain(line.split_whitespace())).map_err(|e| format!("{e:#}"))?;
        match parsed.command {
            Command::Study(StudyArgs {
                study: Study::Buffer(args),
            }) => Ok(*args),
            _ => panic!("not study buffer"),
        }
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let args = buffer("").unwrap();
        assert_eq!(args.slots.numbers(), (1..=16).collect::<Vec<_>>());
        assert_eq!(args.policies().len(), 6);
        assert_eq!(
            (args.pool, args.prefetch, args.ranks),
            (Pool::Rank, PrefetchName::Off, None)
        );
    }

    #[test]
    fn lists_and_ranges_are_taken() {
        let args = buffer("--slots 1,2,4..6 --policies lru,lookahead,lru --expert-bytes 12M").unwrap();
        assert_eq!(args.slots.numbers(), [1, 2, 4, 5, 6]);
        assert_eq!(args.policies(), [Policy::Lru, Policy::Lookahead]);
        assert_eq!(args.expert_bytes, Some(12 << 20));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (line, part) in [
            ("--slots 0", "from 1"),
            ("--slots 5..2", "5..2"),
            ("--slots a", "1..16"),
            ("--policies belady", "lookahead"),
            ("--policies lru --prefetch trace", "--policies lookahead"),
            ("--prefetch gate", "trace"),
            ("--dtype int8", "--model"),
            ("--model m --expert-bytes 1M", "--expert-bytes"),
            ("--expert-bytes auto", "512M"),
            ("--ranks 0", "from 1"),
            ("--ranks -1", "from 1"),
        ] {
            let error = buffer(line).expect_err(line);
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
