//! `sluice translate`: a corpus through an encoder-decoder, over ranks, into one HDF5 file.

mod desk;
mod feed;
mod plan;
mod quality;
mod rank;
mod summary;

use crate::cli::check;
use crate::cli::exit::Exit;
use crate::cli::translate::{BatchTokens, Device, TranslateArgs};
use crate::comm::crash::{crash_point, fail_point};
use crate::comm::{affinity, agree, gather_texts, launch, signal, Comm, ReportedElsewhere};
use crate::decode::batch::Batch;
use crate::decode::limits::{Demand, Limits};
use crate::device::{Cpu, Dtype};
use crate::metrics::memory;
use crate::metrics::meter::{cpu_seconds, Phase};
use crate::model::cache::Caches;
use crate::model::{Loading, Model as Network};
use crate::moe::Context;
use crate::results::{Parts, Status};
use anyhow::{anyhow, bail, Context as _, Result};
use desk::{Desk, Progress};
use feed::{Feed, Shares};
pub use plan::{describe, spool_of};
use plan::{Model, Prepared};
use quality::Quality;
use rank::{End, Rank};
use std::io::{stdout, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use summary::{size, Meterman, RankSummary, Run};

/// Runs the job; collective over all ranks.
///
/// # Errors
/// One rank's error is everybody's: it has it, the others get [`ReportedElsewhere`].
pub fn run(args: &TranslateArgs, world: &dyn Comm) -> Result<Exit> {
    let environment = launch::environment();
    let warnings = agree(world, launch::check_size(&environment, world.rank(), world.size()))?;
    let groups = agree(world, check::groups(world.size(), args.expert_parallel))?;
    let bindings = affinity::everybody(world)?;
    agree(world, check::threads(args.threads, bindings[world.rank()].mask.count()))?;
    let threads_of = |rank| args.threads.unwrap_or_else(|| launch::default_threads(&bindings, rank));
    // What is quick to see is refused first; one rank looks at the file system.
    let files = match world.rank() {
        0 => check::files(args),
        _ => Ok(()),
    };
    agree(world, files.and_then(|()| refuse_device(args)))?;
    let model = agree(world, Model::open(args))?;
    let (prepared, parts) = agree(world, prepare(args, &model, world))?;
    let (Some(scan), Some(parts)) = (&prepared.scan, parts) else {
        if world.rank() == 0 {
            if args.report.is_some() || !args.references.is_empty() {
                log::warn!(
                    "--report and --references belong to a run; nothing is left to run here, so they are passed over: \
                     `sluice evaluate {} --references FILE` compares a finished output",
                    args.output.display()
                );
            }
            let out = args.output.display();
            let _ = writeln!(stdout(), "{out} is finished already; --overwrite starts it anew");
        }
        return Ok(if prepared.failed > 0 {
            Exit::SomeRowsFailed
        } else {
            Exit::Done
        });
    };
    if world.rank() == 0 {
        let threads: Vec<usize> = bindings.iter().map(|b| threads_of(b.rank)).collect();
        let binding = launch::binding_warnings(&environment, &bindings, &threads);
        warnings
            .iter()
            .chain(&model.warnings)
            .chain(&binding)
            .for_each(|w| log::warn!("{w}"));
        same_language(args);
    }
    let host = &bindings[world.rank()].host;
    let neighbours = bindings.iter().filter(|b| b.host == *host).count();
    crash_point("prepared");
    let rows = scan.rows * args.target.len().max(1) as u64;
    let done = prepared.done_rows()?;
    let kept = done.count();
    let started = Started {
        args,
        world,
        groups,
        threads: threads_of(world.rank()),
        neighbours,
        prepared: &prepared,
        kept,
        rows,
    };
    let (end, ranks) = if kept < rows {
        started.work(&model, &parts)?
    } else {
        (End::Done, Vec::new())
    };
    match end {
        End::Stopped(signal) => {
            if world.rank() == 0 {
                log::warn!("stopped by signal {signal}: finished rows are kept; the same command goes on from here");
            }
            Ok(Exit::Signal(signal))
        }
        End::Done => {
            signal::end_listening();
            agree(world, finish(args, &model, world, parts, &ranks, kept))
        }
    }
}

fn refuse_device(args: &TranslateArgs) -> Result<()> {
    if args.device == Device::Cuda {
        bail!("--device cuda: this build has no CUDA device; use --device cpu");
    }
    Ok(())
}

fn same_language(args: &TranslateArgs) {
    for target in args.target.iter().filter(|t| Some(*t) == args.source.as_ref()) {
        log::warn!("--target {target} is also the source language: the model is asked to translate it into itself");
    }
}

/// In bfloat16 results are equal to the last bit on one instruction set only (collective).
fn one_instruction_set(world: &dyn Comm, own: &str) {
    let all: std::collections::BTreeSet<String> = gather_texts(world, own).into_iter().collect();
    if all.len() > 1 && world.rank() == 0 {
        let names = all.into_iter().collect::<Vec<_>>().join(", ");
        log::warn!(
            "ranks have different instruction sets ({names}): the last bits of scores depend on which rank a row is dealt to; \
             SLUICE_ISA=NAME, one that all machines have (avx512, avx2), makes them the same"
        );
    }
}

/// Rank 0 prepares and tells the others, who open what it made.
fn prepare(args: &TranslateArgs, model: &Model, world: &dyn Comm) -> Result<(Prepared, Option<Parts>)> {
    let mut bytes = Vec::new();
    let mut own = None;
    let mut error = None;
    if world.rank() == 0 {
        let made = fail_point("prepare").and_then(|()| plan::prepare(args, model));
        match made.and_then(|(prepared, parts)| Ok((serde_json::to_vec(&prepared)?, parts))) {
            Ok((told, parts)) => (bytes, own) = (told, parts),
            Err(e) => error = Some(e),
        }
    }
    world.broadcast(0, &mut bytes);
    if let Some(error) = error {
        return Err(error);
    }
    if bytes.is_empty() {
        return Err(ReportedElsewhere.into());
    }
    let prepared: Prepared = serde_json::from_slice(&bytes).context("the plan of rank 0")?;
    let parts = match (&prepared.scan, own) {
        (Some(_), None) => Some(Parts::join(&args.output)?),
        (_, own) => own,
    };
    Ok((prepared, parts))
}

/// A job whose plan stands.
struct Started<'a> {
    args: &'a TranslateArgs,
    world: &'a dyn Comm,
    groups: usize,
    threads: usize,
    /// Ranks on this machine.
    neighbours: usize,
    prepared: &'a Prepared,
    kept: u64,
    rows: u64,
}

impl Started<'_> {
    /// Loads the model and works until no row is left, or a signal comes; collective over all ranks.
    fn work(&self, model: &Model, parts: &Parts) -> Result<(End, Vec<RankSummary>)> {
        let (world, args) = (self.world, self.args);
        let group_size = world.size() / self.groups;
        let group = world.rank() / group_size;
        let comm = world.split(group);
        let device = agree(world, Cpu::new(self.threads))?;
        if model.dtype == Dtype::Bf16 {
            one_instruction_set(world, device.isa().name());
        }
        let loading = Instant::now();
        let loaded = fail_point("load").and_then(|()| self.load(model, comm.as_ref()));
        let mut net = agree(world, loaded)?;
        let keep = args.routing.is_some();
        let (layers, experts) = (net.shape().moe_layers(), net.shape().experts);
        let mut ctx = Context::new(&device, comm.as_ref(), layers, experts, keep);
        ctx.meter.since(loading, Phase::Load);
        let limits = agree(world, self.limits(model, net.as_ref()))?;
        let caches = limits.cache_bytes(&model.settings, row_bytes(net.as_ref()));
        let weights = net.bytes();
        if world.rank() == 0 {
            let (ranks, weights, caches) = (world.size(), size(weights), size(caches));
            log::info!(
                "{} rows on {ranks} ranks in {} groups, {} threads each ({}, {}); rank 0 holds weights of {weights}, caches up to \
                 {caches} for {} outputs and {} source tokens in flight",
                self.rows, self.groups, self.threads, device.isa().name(), plan::dtype_name(model.dtype), limits.outputs, limits.tokens
            );
        }
        let Some(scan) = &self.prepared.scan else {
            bail!("a job without input")
        };
        let shares = Shares::new(scan.windows.len(), self.groups);
        let feed = Feed::new(scan, shares, args.target.len().max(1), self.prepared.done_rows()?);
        let feed = agree(world, feed)?;
        let mut batch = Batch::new(model.settings.clone(), limits, net.as_ref());
        let meterman = std::cell::RefCell::new(Meterman::new(self.rows, self.kept, world.rank() == 0));
        let progress = std::cell::Cell::new(Progress::default());
        let mut show = |group: Progress, others: Progress| {
            progress.set(group);
            let all = Progress {
                rows: group.rows + others.rows,
                tokens: group.tokens + others.tokens,
            };
            meterman.borrow_mut().show(all);
        };
        let desk = (comm.rank() == 0).then(|| Desk::new(world, shares, self.groups));
        let (attempt, world_rank) = (self.prepared.attempt, world.rank());
        let (started, cpu_started) = (Instant::now(), cpu_seconds());
        let mut rank = Rank {
            args,
            model,
            parts,
            attempt,
            world_rank,
            group,
            desk,
            feed,
            show: &mut show,
            failed: 0,
        };
        // Until now a signal just ends the process, as it does when all rows are done: there is nothing to keep.
        signal::listen();
        let end = rank.work(&mut ctx, &mut batch, net.as_mut());
        let (seconds, cpu_seconds) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu_started);
        let end = self.settle(end, rank.desk.take(), progress.get());
        meterman.borrow().finish();
        let end = end?;
        let run = Run {
            group,
            weights,
            caches,
            seconds,
            cpu_seconds,
            progress: progress.get(),
            failed: rank.failed,
        };
        Ok((self.all_ended(end), summary::gather(world, &ctx, &run)?))
    }

    /// What a rank takes on at once, cut to its share of the memory that is left; the same on every rank (collective).
    fn limits(&self, model: &Model, net: &dyn Network) -> Result<Limits> {
        let (settings, row) = (&model.settings, row_bytes(net));
        let room = memory::machine().map_or(u64::MAX, |m| m.room(memory::now(), self.neighbours as u64));
        let room = least(self.world, room);
        let wanted = match self.args.batch_tokens {
            BatchTokens::Tokens(tokens) => Limits::of(tokens, self.args.target.len()),
            BatchTokens::Auto => self.demand(net).limits(settings.beams),
        };
        let allowed = match self.args.batch_tokens {
            BatchTokens::Tokens(_) => wanted,
            BatchTokens::Auto => wanted.scaled(room / 2, settings, row),
        };
        let limits = allowed.fit(room, settings, row).map_err(|needed| {
            anyhow!(
                "the least caches (--batch-tokens of source, one sentence of output at full length) come to {}, this rank's \
                 share of the free memory is {}: give a lower --batch-tokens, --max-new-tokens or --num-beams",
                size(needed),
                size(room)
            )
        })?;
        if limits != wanted && self.world.rank() == 0 {
            let [n, all] = [limits.outputs, wanted.outputs].map(|outputs| outputs / limits.per_sentence);
            log::info!(
                "{n} sentences in flight instead of {all}: the free memory of a rank is {}, caches take {} of it at most",
                size(room),
                size(limits.cache_bytes(settings, row))
            );
        }
        Ok(limits)
    }

    /// What `--batch-tokens auto` goes by.
    fn demand(&self, net: &dyn Network) -> Demand {
        let (experts, top_k) = (net.shape().experts, net.shape().top_k);
        let (rows, bytes) = self
            .prepared
            .scan
            .as_ref()
            .map_or((0, 0), |s| (s.rows - s.blank, s.bytes));
        Demand {
            experts,
            top_k,
            ranks: self.world.size() / self.groups,
            outputs: self.args.target.len(),
            // About four bytes a token; a sentence longer than 512 tokens is rare, however long a line.
            mean_tokens: (bytes / rows.max(1) / 4).min(512) as usize,
        }
    }

    fn load(&self, model: &Model, comm: &dyn Comm) -> Result<Box<dyn Network>> {
        let speaks = self.world.rank() == 0;
        let mut said = Instant::now();
        let mut progress = |layer: usize, layers: usize| {
            if speaks && (layer == 0 || said.elapsed() > Duration::from_secs(10)) {
                said = Instant::now();
                log::info!("loading {}: layer {layer} of {layers}", self.args.model.display());
            }
        };
        model.architecture.load(Loading {
            checkpoint: &model.checkpoint,
            dtype: model.dtype,
            threads: self.threads,
            rank: comm.rank(),
            ranks: comm.size(),
            progress: &mut progress,
        })
    }

    /// Waits for all groups; one that stops or fails stops them all, and its error is everybody's (collective).
    fn settle(&self, end: Result<End>, desk: Option<Desk>, progress: Progress) -> Result<End> {
        let code = match &end {
            Ok(End::Done) => 0,
            Ok(End::Stopped(signal)) => *signal,
            Err(_) => desk::FAILED,
        };
        if let Some(mut desk) = desk {
            desk.leave(code, progress);
        }
        agree(self.world, end)
    }

    /// Stopped if any rank was asked to.
    fn all_ended(&self, own: End) -> End {
        let signal = match own {
            End::Done => signal::received(),
            End::Stopped(signal) => signal,
        };
        let mut all = Vec::new();
        self.world.all_gather(&[signal], &mut all);
        match all.into_iter().find(|&s| s != 0) {
            Some(signal) => End::Stopped(signal),
            None => End::Done,
        }
    }
}

/// Bytes of a cache row.
fn row_bytes(net: &dyn Network) -> u64 {
    Caches::row_bytes(net.cache_type(), net.shape())
}

/// The least of all ranks' numbers (collective).
fn least(world: &dyn Comm, own: u64) -> u64 {
    let mut all = Vec::new();
    world.all_gather(&own.to_le_bytes(), &mut all);
    let numbers = all.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
    numbers.min().unwrap_or(own)
}

/// Rank 0 puts the file together and says how it went; the others have nothing left to do.
fn finish(
    args: &TranslateArgs,
    model: &Model,
    world: &dyn Comm,
    parts: Parts,
    ranks: &[RankSummary],
    kept: u64,
) -> Result<Exit> {
    if world.rank() != 0 {
        return Ok(Exit::Done);
    }
    fail_point("finish")?;
    let mut quality = Quality::new(&args.target, &args.references)?;
    let merged = !args.no_merge;
    if merged {
        let summary = parts.merge(&mut quality)?;
        log::info!(
            "{}: {} rows, {}",
            summary.out.display(),
            summary.rows,
            size(summary.bytes)
        );
        if args.input == Path::new("-") {
            let _ = std::fs::remove_file(plan::spool_of(&args.output));
        }
    } else {
        log::info!("left unmerged: sluice merge {}", parts.dir().display());
    }
    let quality = merged.then_some(&quality);
    if !ranks.is_empty() {
        // A reader that went away is no reason to fail.
        let _ = summary::print(&mut stdout(), ranks, quality, kept);
    }
    crash_point("report");
    if let Some(path) = &args.report {
        let report = summary::report(args, model, ranks, quality);
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("--report {}", path.display()))?;
    }
    let failed = quality.map_or(summary::failed(ranks), |q| q.tally.statuses[Status::Failed as usize]);
    if failed > 0 {
        log::warn!("{failed} rows failed (status 4)");
        return Ok(Exit::SomeRowsFailed);
    }
    Ok(Exit::Done)
}
