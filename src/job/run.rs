//! A job over a corpus: an input through a model, over ranks, into one HDF5 file. What a job does with a row is its
//! [`Task`]'s to say.

mod alike;
mod buffer;
mod desk;
mod feed;
mod packing;
mod plan;
mod rank;
mod summary;
mod task;

use crate::cli::check;
use crate::cli::exit::Exit;
use crate::cli::run::{Device, Routing, RunArgs};
use crate::comm::crash::{crash_point, fail_point};
use crate::comm::{affinity, agree, gather_texts, launch, signal, Comm, ReportedElsewhere};
use crate::device::{Cpu, Dtype};
use crate::metrics::memory::{self, size};
use crate::metrics::meter::{cpu_seconds, Phase};
use crate::model::{Loading, Model};
use crate::moe::buffer::pool::Buffer;
use crate::moe::Context;
use crate::results::{Parts, Status};
use anyhow::{bail, Context as _, Result};
use desk::{Desk, Progress};
use feed::{Feed, Shares};
use plan::Prepared;
pub use plan::{dtype_name, spool_of, Opened};
use rank::{End, Rank};
use std::io::{stdout, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use summary::{Meterman, RankSummary, Run};
pub use task::{Counted, Done, Figures, Place, Planned, Setup, Taken, Task};

/// Runs a job; collective over all ranks. `open` opens its checkpoint.
///
/// # Errors
/// One rank's error is everybody's: it has it, the others get [`ReportedElsewhere`].
pub fn run<T: Task>(
    args: &RunArgs,
    inputs: &[PathBuf],
    open: impl FnOnce() -> Result<T>,
    world: &dyn Comm,
) -> Result<Exit> {
    let environment = launch::environment();
    let warnings = agree(world, launch::check_size(&environment, world.rank(), world.size()))?;
    let groups = agree(world, check::groups(world.size(), args.expert_parallel))?;
    let bindings = affinity::everybody(world)?;
    agree(world, check::threads(args.threads, bindings[world.rank()].mask.count()))?;
    let threads_of = |rank| args.threads.unwrap_or_else(|| launch::default_threads(&bindings, rank));
    // What is quick to see is refused first; one rank looks at the file system.
    let files = match world.rank() {
        0 => check::files(args, inputs),
        _ => Ok(()),
    };
    agree(world, files.and_then(|()| refuse_device(args)))?;
    let mut task = agree(world, open())?;
    let hosts = [0, world.rank()].map(|rank| bindings[rank].host.as_str());
    agree(world, alike::alike(&task, world, hosts))?;
    let (of_group, opened) = (world.size() / groups, &task.setup().opened);
    agree(
        world,
        buffer::check(&args.buffer, opened, of_group, world.rank() % of_group),
    )?;
    let (prepared, parts) = agree(world, prepare(&task, world))?;
    let (Some(scan), Some(parts)) = (&prepared.scan, parts) else {
        if world.rank() == 0 {
            if args.report.is_some() {
                log::warn!("--report belongs to a run; nothing is left to run here, so it is passed over");
            }
            if task.compares() {
                log::warn!(
                    "--references belong to a run; nothing is left to run here, so they are passed over: `sluice evaluate {} \
                     --references FILE` compares a finished output",
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
            .chain(&task.setup().opened.architecture.warnings())
            .chain(&task.setup().warnings)
            .chain(&binding)
            .for_each(|w| log::warn!("{w}"));
    }
    task.begin(scan, prepared.started);
    let host = &bindings[world.rank()].host;
    let neighbours = bindings.iter().filter(|b| b.host == *host).count();
    crash_point("prepared");
    let rows = scan.rows * task.outputs();
    let done = prepared.done_rows()?;
    let kept = done.count();
    let started = Started {
        task: &task,
        world,
        groups,
        threads: threads_of(world.rank()),
        neighbours,
        prepared: &prepared,
        kept,
        rows,
    };
    let (end, ranks) = if kept < rows {
        started.work(&parts)?
    } else {
        (End::Done, Vec::new())
    };
    match end {
        End::Stopped(signal) => {
            if world.rank() == 0 {
                log::warn!("stopped by signal {signal}: finished rows are kept, those in flight begin anew; the same command goes on from here");
            }
            Ok(Exit::Signal(signal))
        }
        End::Done => {
            signal::end_listening();
            agree(world, finish(&task, world, parts, ranks, kept))
        }
    }
}

fn refuse_device(args: &RunArgs) -> Result<()> {
    if args.device == Device::Cuda {
        bail!("--device cuda: this build has no CUDA device; use --device cpu");
    }
    Ok(())
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
fn prepare(task: &impl Task, world: &dyn Comm) -> Result<(Prepared, Option<Parts>)> {
    let mut bytes = Vec::new();
    let mut own = None;
    let mut error = None;
    if world.rank() == 0 {
        let made = fail_point("prepare").and_then(|()| plan::prepare(task));
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
        (Some(_), None) => Some(Parts::join(&task.run().output)?),
        (_, own) => own,
    };
    Ok((prepared, parts))
}

/// A job whose plan stands.
struct Started<'a, T> {
    task: &'a T,
    world: &'a dyn Comm,
    groups: usize,
    threads: usize,
    /// Ranks on this machine.
    neighbours: usize,
    prepared: &'a Prepared,
    kept: u64,
    rows: u64,
}

impl<T: Task> Started<'_, T> {
    /// Loads the model and works until no row is left, or a signal comes; collective over all ranks.
    fn work(&self, parts: &Parts) -> Result<(End, Vec<RankSummary>)> {
        let (world, args, dtype) = (self.world, self.task.run(), self.task.setup().opened.dtype);
        let group_size = world.size() / self.groups;
        let group = world.rank() / group_size;
        let comm = world.split(group);
        let device = agree(world, Cpu::new(self.threads))?;
        if dtype == Dtype::Bf16 {
            one_instruction_set(world, device.isa().name());
        }
        let loading = Instant::now();
        let loaded = fail_point("load").and_then(|()| self.load(comm.as_ref()));
        let mut net = agree(world, loaded)?;
        let buffer = buffer::of(
            &args.buffer,
            &self.task.setup().opened,
            self.threads,
            world,
            comm.as_ref(),
        )?;
        let keep = args.routing.is_some();
        let (layers, experts) = (net.shape().moe_layers(), net.shape().experts);
        let mut ctx = Context::new(&device, comm.as_ref(), layers, experts, keep);
        ctx.routes_by_token = args.routing == Some(Routing::Tokens);
        ctx.meter.since(loading, Phase::Load);
        // Its slots are full; what reading takes comes and goes.
        let held_back = buffer.as_ref().map_or(0, Buffer::staging);
        let lacks = buffer.as_ref().is_some_and(|buffer| buffer.held().0 < buffer.experts());
        ctx.buffer = buffer;
        let place = self.place(held_back, lacks);
        let Planned {
            work: mut batch,
            held,
            in_flight,
        } = agree(world, self.task.workload(net.as_ref(), &place))?;
        let weights = net.bytes();
        if world.rank() == 0 {
            let (ranks, weights, held) = (world.size(), size(weights), size(held));
            log::info!(
                "{} rows on {ranks} ranks in {} groups, {} threads each ({}, {}); rank 0 holds weights of {weights}, {} up to \
                 {held} for {in_flight} in flight",
                self.rows, self.groups, self.threads, device.isa().name(), dtype_name(dtype), self.task.held()
            );
        }
        let Some(scan) = &self.prepared.scan else {
            bail!("a job without input")
        };
        let shares = Shares::new(scan.windows.len(), self.groups);
        let feed = Feed::new(scan, shares, self.task.outputs() as usize, self.prepared.done_rows()?);
        let feed = agree(world, feed)?;
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
            task: self.task,
            parts,
            attempt,
            world_rank,
            group,
            desk,
            feed,
            scan,
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
            held,
            seconds,
            cpu_seconds,
            progress: progress.get(),
            failed: rank.failed,
        };
        Ok((self.all_ended(end), summary::gather(world, &ctx, &run)?))
    }

    /// Where the running batch is to find room beside `held_back` bytes, when it `lacks` experts; but for who speaks, the same on every rank
    /// (collective).
    fn place(&self, held_back: u64, lacks: bool) -> Place {
        let room = memory::machine().map_or(u64::MAX, |m| m.room(memory::now(), self.neighbours as u64));
        let shape = self.task.setup().opened.architecture.shape();
        let (rows, bytes) = self
            .prepared
            .scan
            .as_ref()
            .map_or((0, 0), |s| (s.rows - s.blank, s.bytes));
        Place {
            room: least(self.world, room.saturating_sub(shape.scratch_bytes() + held_back)),
            ranks: self.world.size() / self.groups,
            // Ranks may have different budgets, but read in portions of one size.
            buffered: least(self.world, u64::from(!lacks)) == 0,
            // About four bytes a token.
            mean_tokens: (bytes / rows.max(1) / 4) as usize,
            speaks: self.world.rank() == 0,
        }
    }

    fn load(&self, comm: &dyn Comm) -> Result<Box<dyn Model>> {
        let opened = &self.task.setup().opened;
        let speaks = self.world.rank() == 0;
        let mut said = Instant::now();
        let mut progress = |layer: usize, layers: usize| {
            if speaks && (layer == 0 || said.elapsed() > Duration::from_secs(10)) {
                said = Instant::now();
                log::info!("loading {}: layer {layer} of {layers}", self.task.run().model.display());
            }
        };
        opened.architecture.load(Loading {
            checkpoint: &opened.checkpoint,
            dtype: opened.dtype,
            threads: self.threads,
            rank: comm.rank(),
            ranks: comm.size(),
            buffered: self.task.run().buffer.budget().is_some(),
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

/// The least of all ranks' numbers (collective).
fn least(world: &dyn Comm, own: u64) -> u64 {
    let mut all = Vec::new();
    world.all_gather(&own.to_le_bytes(), &mut all);
    let numbers = all.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
    numbers.min().unwrap_or(own)
}

/// Rank 0 puts the file together and says how it went; the others have nothing left to do.
fn finish(task: &impl Task, world: &dyn Comm, parts: Parts, mut ranks: Vec<RankSummary>, kept: u64) -> Result<Exit> {
    if world.rank() != 0 {
        return Ok(Exit::Done);
    }
    fail_point("finish")?;
    let args = task.run();
    let mut figures = task.figures()?;
    let merged = !args.no_merge;
    if merged {
        let summary = parts.merge(figures.judge())?;
        log::info!(
            "{}: {} rows, {}",
            summary.out.display(),
            summary.rows,
            size(summary.bytes)
        );
        if plan::is_stdin(task.setup().inputs) {
            let _ = std::fs::remove_file(plan::spool_of(&args.output));
        }
    } else {
        log::info!("left unmerged: sluice merge {}", parts.dir().display());
    }
    let figures = merged.then_some(figures.as_ref());
    summary::look_again(&mut ranks);
    if !ranks.is_empty() {
        // A reader that went away is no reason to fail.
        let _ = summary::print(&mut stdout(), task, &ranks, figures, kept);
    }
    crash_point("report");
    if let Some(path) = &args.report {
        let report = summary::report(task, &ranks, figures)?;
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("--report {}", path.display()))?;
    }
    let failed = figures.map_or(summary::failed(&ranks), |f| f.tally().statuses[Status::Failed as usize]);
    if failed > 0 {
        log::warn!("{failed} rows failed (status 4)");
        return Ok(Exit::SomeRowsFailed);
    }
    Ok(Exit::Done)
}
