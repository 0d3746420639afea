//! What a run says of itself: progress on the way, a summary and a report at the end.

use super::desk::Progress;
use super::plan::dtype_name;
use super::task::{Figures, Task};
use crate::comm::{gather_texts, mpi, Comm};
use crate::metrics::memory::{self, size};
use crate::moe::buffer::pool::Tally;
use crate::moe::Context;
use crate::results::Status;
use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};
use serde_json::{json, Value};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Between two lines of a log.
const INTERVAL: Duration = Duration::from_secs(30);

/// Environment variables that say how a job was launched.
const ENVIRONMENT: [&str; 12] = [
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_JOB_NUM_NODES",
    "SLURM_NTASKS",
    "SLURM_STEP_NUM_TASKS",
    "SLURM_CPUS_PER_TASK",
    "SLURM_CLUSTER_NAME",
    "OMPI_COMM_WORLD_SIZE",
    "OMP_NUM_THREADS",
    "SLUICE_ISA",
];

/// Shows how far the job is: a bar on a terminal, a line now and then in a log.
pub struct Meterman {
    bar: Option<ProgressBar>,
    kept: u64,
    total: u64,
    started: Instant,
    said: Instant,
}

impl Meterman {
    /// For a job of `total` rows of which `kept` are done. Silent unless `speaks`.
    pub fn new(total: u64, kept: u64, speaks: bool) -> Meterman {
        let bar = (speaks && std::io::stderr().is_terminal()).then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} rows  {msg}  ETA {eta}");
            let bar = ProgressBar::new(total).with_position(kept);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let now = Instant::now();
        let total = if speaks { total } else { 0 };
        Meterman {
            bar,
            kept,
            total,
            started: now,
            said: now,
        }
    }

    /// Shows what is done by now.
    pub fn show(&mut self, done: Progress) {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = done.tokens as f64 / seconds.max(1e-3);
        let rows = self.kept + done.rows;
        if let Some(bar) = &self.bar {
            bar.set_position(rows);
            bar.set_message(format!("{rate:.0} tokens/s"));
        } else if self.total > 0 && self.said.elapsed() >= INTERVAL {
            self.said = Instant::now();
            let left = (self.total - rows) as f64 * seconds / (done.rows as f64).max(1.0);
            log::info!(
                "rows {rows}/{} ({:.1} %), {rate:.0} tokens/s, ETA {}, memory {}",
                self.total,
                100.0 * rows as f64 / self.total as f64,
                clock(left),
                size(memory::now())
            );
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// What one rank has to say at the end.
#[derive(Serialize, Deserialize)]
pub struct RankSummary {
    rank: usize,
    group: usize,
    phases: Vec<(String, f64, u64)>,
    peak_memory: u64,
    weights: u64,
    held: u64,
    threads: usize,
    isa: String,
    seconds: f64,
    cpu_seconds: f64,
    rows: u64,
    tokens: u64,
    /// Rows of this rank that could not be used.
    failed: u64,
    loads: Vec<Vec<u64>>,
    buffer: Option<Buffered>,
}

/// What a rank's buffer of experts did.
#[derive(Serialize, Deserialize)]
struct Buffered {
    /// Experts in memory at most.
    slots: usize,
    /// Experts that there are.
    experts: usize,
    /// Bytes of the slots.
    bytes: u64,
    tally: Tally,
}

/// What the rank knows of its run besides the context.
pub struct Run {
    /// Group of the rank.
    pub group: usize,
    /// Bytes of packed weights.
    pub weights: u64,
    /// Bytes that rows under way may come to fill.
    pub held: u64,
    /// Wall time from the first batch to the last closed segment.
    pub seconds: f64,
    /// CPU time of its threads meanwhile.
    pub cpu_seconds: f64,
    /// What its group did.
    pub progress: Progress,
    /// Rows of this rank that could not be used.
    pub failed: u64,
}

/// Every rank's summary, on every rank (collective).
///
/// # Errors
/// Never, but for a rank that says nonsense.
pub fn gather(world: &dyn Comm, ctx: &Context, run: &Run) -> Result<Vec<RankSummary>> {
    let leader = ctx.comm.rank() == 0;
    let own = RankSummary {
        rank: world.rank(),
        group: run.group,
        phases: ctx.meter.rows().map(|(name, s, b)| (name.to_string(), s, b)).collect(),
        peak_memory: memory::peak(),
        weights: run.weights,
        held: run.held,
        threads: ctx.device.threads(),
        isa: ctx.device.isa().name().to_string(),
        seconds: run.seconds,
        cpu_seconds: run.cpu_seconds,
        rows: if leader { run.progress.rows } else { 0 },
        tokens: if leader { run.progress.tokens } else { 0 },
        failed: run.failed,
        loads: ctx.loads.clone(),
        buffer: ctx.buffer.as_ref().map(|buffer| {
            let (slots, bytes) = buffer.held();
            Buffered {
                slots,
                experts: buffer.experts(),
                bytes,
                tally: buffer.tally(),
            }
        }),
    };
    let all = gather_texts(world, &serde_json::to_string(&own)?);
    all.iter()
        .map(|text| serde_json::from_str(text).context("the summary of a rank"))
        .collect()
}

/// Takes this process's peak of memory anew: rank 0 has put the file together since all ranks were heard.
pub fn look_again(ranks: &mut [RankSummary]) {
    if let Some(own) = ranks.first_mut() {
        own.peak_memory = memory::peak();
    }
}

/// Rows that could not be used, over all ranks.
pub fn failed(ranks: &[RankSummary]) -> u64 {
    ranks.iter().map(|r| r.failed).sum()
}

/// Largest over mean expert load of each MoE layer, over all ranks; 0 for a layer that saw no token.
pub fn imbalance(ranks: &[RankSummary]) -> Vec<f64> {
    let layers = ranks.first().map_or(0, |r| r.loads.len());
    let of = |layer: usize| {
        let experts = ranks[0].loads[layer].len();
        let total = |e: usize| ranks.iter().map(|r| r.loads[layer][e]).sum::<u64>();
        let loads: Vec<u64> = (0..experts).map(total).collect();
        let (largest, sum) = (loads.iter().copied().max().unwrap_or(0), loads.iter().sum::<u64>());
        if sum == 0 {
            0.0
        } else {
            largest as f64 * experts as f64 / sum as f64
        }
    };
    (0..layers).map(of).collect()
}

/// The run report (JSON), in the shape that lm-evaluation-harness uses: results, config, versions, environment.
///
/// # Errors
/// When the options cannot be written as JSON.
pub fn report(task: &impl Task, ranks: &[RankSummary], figures: Option<&dyn Figures>) -> Result<Value> {
    let seconds = ranks.iter().map(|r| r.seconds).fold(0.0, f64::max);
    let tokens: u64 = ranks.iter().map(|r| r.tokens).sum();
    let phases = ranks.iter().map(|r| {
        let named = r
            .phases
            .iter()
            .map(|(name, s, b)| (name.clone(), json!({"seconds": s, "bytes": b})));
        json!({"rank": r.rank, "group": r.group, "phases": named.collect::<serde_json::Map<_, _>>()})
    });
    // Named one by one: a cluster's environment also holds secrets (SLURM_JWT).
    let named = |name: &String| ENVIRONMENT.contains(&name.as_str());
    let environment = std::env::vars()
        .filter(|(name, _)| named(name))
        .map(|(name, value)| (name, value.into()));
    let environment: serde_json::Map<String, Value> = environment.collect();
    Ok(json!({
        "results": {
            "rows": ranks.iter().map(|r| r.rows).sum::<u64>(),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 },
            "all_rows": figures.map(|q| q.tally().statuses.iter().sum::<u64>()),
            "all_tokens": figures.map(|q| q.tally().tokens),
            "by_status": figures.map(|q| Status::ALL.iter().zip(q.tally().statuses).map(|(s, n)| (s.name().to_string(), json!(n))).collect::<serde_json::Map<_, _>>()),
            "metrics": figures.map(|q| q.figures().into_iter().map(|(n, x)| (n, json!(x))).collect::<serde_json::Map<_, _>>()),
            "cpu_seconds": ranks.iter().map(|r| r.cpu_seconds).collect::<Vec<_>>(),
            "phases": phases.collect::<Vec<_>>(),
            "peak_memory_bytes": ranks.iter().map(|r| r.peak_memory).collect::<Vec<_>>(),
            "weight_bytes": ranks.iter().map(|r| r.weights).collect::<Vec<_>>(),
            "held_bytes_at_most": ranks.iter().map(|r| r.held).collect::<Vec<_>>(),
            "buffer": ranks.iter().map(|r| &r.buffer).collect::<Vec<_>>(),
            "imbalance": imbalance(ranks),
            "experts": ranks.first().map_or(0, |r| r.loads.first().map_or(0, Vec::len)),
        },
        "config": task.setup().arguments,
        "dtype": dtype_name(task.setup().opened.dtype),
        "ranks": ranks.len(),
        "threads": ranks.iter().map(|r| r.threads).collect::<Vec<_>>(),
        "isa": ranks.iter().map(|r| r.isa.clone()).collect::<Vec<_>>(),
        "versions": {"sluice": env!("CARGO_PKG_VERSION"), "mpi": mpi::library(), "hdf5": hdf5_version()},
        "git_hash": option_env!("SLUICE_GIT_HASH"),
        "date": jiff::Timestamp::now().strftime("%FT%TZ").to_string(),
        "environment": environment,
    }))
}

/// The summary for people.
///
/// # Errors
/// When it cannot be written, which is no reason to fail: the results are there.
pub fn print(
    to: &mut dyn Write,
    task: &impl Task,
    ranks: &[RankSummary],
    figures: Option<&dyn Figures>,
    kept: u64,
) -> std::io::Result<()> {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut line = |label: &str, text: String| lines.push((label.to_string(), text));
    let seconds = ranks.iter().map(|r| r.seconds).fold(0.0, f64::max);
    let (rows, tokens) = (
        ranks.iter().map(|r| r.rows).sum::<u64>(),
        ranks.iter().map(|r| r.tokens).sum::<u64>(),
    );
    let rate = if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 };
    line(
        "rows",
        format!("{rows} in {} ({kept} kept from earlier starts)", clock(seconds)),
    );
    line(
        "tokens",
        format!(
            "{tokens} {}, {rate:.0} tokens/s on {} ranks",
            task.tokens(),
            ranks.len()
        ),
    );
    if let Some(q) = figures {
        let named = Status::ALL.iter().zip(q.tally().statuses).filter(|(_, n)| *n > 0);
        let named: Vec<String> = named.map(|(s, n)| format!("{n} {}", s.name())).collect();
        line("by status", named.join(", "));
        for (name, figure) in q.figures() {
            let digits = if figure.abs() < 10.0 { 4 } else { 2 };
            line(&name, format!("{figure:.digits$}"));
        }
    }
    let total = |name: &str| {
        ranks
            .iter()
            .flat_map(|r| &r.phases)
            .filter(|p| p.0 == name)
            .map(|p| p.1)
            .sum::<f64>()
    };
    let names = ranks
        .first()
        .into_iter()
        .flat_map(|r| r.phases.iter().map(|p| p.0.as_str()));
    let all: f64 = ranks.iter().flat_map(|r| &r.phases).map(|p| p.1).sum();
    let shares = names
        .map(|n| (n, 100.0 * total(n) / all.max(1e-9)))
        .filter(|s| s.1 >= 0.5);
    let shares: Vec<String> = shares.map(|(n, s)| format!("{n} {s:.0} %")).collect();
    line("time", shares.join(", "));
    if let Some(r) = ranks.iter().max_by_key(|r| r.peak_memory) {
        let (peak, weights, held) = (size(r.peak_memory), size(r.weights), size(r.held));
        let slots = r.buffer.as_ref().map(|b| format!("experts {}, ", size(b.bytes)));
        let (slots, what) = (slots.unwrap_or_default(), task.held());
        line(
            "memory",
            format!(
                "{peak} at most, on rank {} (weights {weights}, {slots}{what} up to {held})",
                r.rank
            ),
        );
    }
    for (label, text) in buffered(ranks) {
        line(label, text);
    }
    let worst = imbalance(ranks).into_iter().fold(0.0, f64::max);
    line(
        "imbalance",
        format!("{worst:.2} (largest over mean expert load, worst layer)"),
    );
    to.write_all(aligned(&lines).as_bytes())
}

/// What the buffers of experts did, where there are any: of all ranks together.
fn buffered(ranks: &[RankSummary]) -> Vec<(&'static str, String)> {
    let all: Vec<&Buffered> = ranks.iter().filter_map(|r| r.buffer.as_ref()).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let sum = |field: fn(&Buffered) -> u64| all.iter().map(|b| field(b)).sum::<u64>();
    let seconds = |field: fn(&Buffered) -> f64| all.iter().map(|b| field(b)).fold(0.0, f64::max);
    let (uses, loads) = (sum(|b| b.tally.uses), sum(|b| b.tally.loads));
    let held = format!(
        "{} of {} in memory ({}); {:.1} % of {uses} uses found theirs; {loads} loaded, {} of them ahead",
        sum(|b| b.slots as u64),
        sum(|b| b.experts as u64),
        size(sum(|b| b.bytes)),
        100.0 * sum(|b| b.tally.found) as f64 / (uses as f64).max(1.0),
        sum(|b| b.tally.ahead),
    );
    // Ranks go through the layers together.
    let sweeps = |[passes, loads]: [fn(&Tally) -> u64; 2], name: &str| {
        let passes = all.iter().map(|b| passes(&b.tally)).max().unwrap_or(0);
        let loads = all.iter().map(|b| loads(&b.tally)).sum::<u64>();
        (passes > 0).then(|| format!("{:.1} experts a sweep in {passes} {name}", loads as f64 / passes as f64))
    };
    let swept = [
        sweeps([|t| t.encode[0], |t| t.encode[1]], "of encoding"),
        sweeps([|t| t.decode[0], |t| t.decode[1]], "of decoding"),
    ];
    let swept: Vec<String> = swept.into_iter().flatten().collect();
    let copied = format!(
        "{}; {} read in {:.1} s beside the work, {:.1} s waited",
        swept.join(", "),
        size(sum(|b| b.tally.bytes)),
        seconds(|b| b.tally.reading),
        seconds(|b| b.tally.waited)
    );
    vec![("experts", held), ("loaded", copied)]
}

/// Labels and what goes with each, in two columns.
fn aligned(lines: &[(String, String)]) -> String {
    let width = lines.iter().map(|(label, _)| label.len()).max().unwrap_or(0).max(11);
    let of = |(label, text): &(String, String)| format!("{label:<width$} {text}\n");
    lines.iter().map(of).collect()
}

fn hdf5_version() -> String {
    let (a, b, c) = hdf5::library_version();
    format!("{a}.{b}.{c}")
}

/// Seconds as h:mm:ss, short ones with a decimal.
fn clock(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        _ => format!("{}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(loads: Vec<Vec<u64>>) -> RankSummary {
        RankSummary {
            rank: 0,
            group: 0,
            phases: Vec::new(),
            peak_memory: 0,
            weights: 0,
            held: 0,
            threads: 1,
            isa: String::new(),
            seconds: 1.0,
            cpu_seconds: 1.0,
            rows: 0,
            tokens: 0,
            failed: 0,
            loads,
            buffer: None,
        }
    }

    #[test]
    fn imbalance_is_the_largest_load_over_the_mean_of_all_ranks() {
        let ranks = [
            rank(vec![vec![3, 1, 0, 0], vec![0; 4]]),
            rank(vec![vec![3, 1, 0, 0], vec![0; 4]]),
        ];
        assert_eq!(imbalance(&ranks), [3.0, 0.0]);
        assert!(imbalance(&[]).is_empty());
    }

    #[test]
    fn the_longest_label_has_room() {
        let line = |label: &str| (label.to_string(), "x".to_string());
        assert_eq!(aligned(&[line("rows")]), "rows        x\n");
        let lines = aligned(&[line("rows"), line("word_perplexity")]);
        assert_eq!(lines, "rows            x\nword_perplexity x\n");
    }

    #[test]
    fn figures_for_people() {
        assert_eq!(
            [clock(59.94), clock(60.0), clock(3725.9)],
            ["59.9 s", "0:01:00", "1:02:05"]
        );
    }
}
