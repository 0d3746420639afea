//! One rank at work: lockstep with its group until all rows are done, segments written on the way.

use super::desk::{Desk, Progress};
use super::feed::Feed;
use super::plan::Model;
use crate::cli::translate::{Routing, TranslateArgs};
use crate::comm::{agree, crash::fail_point, signal, ReportedElsewhere};
use crate::corpus::Record;
use crate::decode::batch::{Batch, Finished, Output, Request};
use crate::decode::lockstep::{next, Next, Report, NO_SHARE, REPORT_BYTES};
use crate::decode::trace::Counts;
use crate::metrics::meter::Phase as Lap;
use crate::model::Model as Network;
use crate::moe::Context;
use crate::results::{Parts, Phase, RoutingLayout, Row, RowRoutes, SegmentName, Status, StepCounts, Timing};
use anyhow::{anyhow, Result};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A segment is closed early when its rows hold this much.
const SEGMENT_BYTES: usize = 64 << 20;

/// How a rank's work ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// All rows are done.
    Done,
    /// Asked to stop by this signal; what was finished is kept.
    Stopped(u8),
}

/// What a rank needs besides the model.
pub struct Rank<'a> {
    /// The job's options.
    pub args: &'a TranslateArgs,
    /// Tokenizer and settings.
    pub model: &'a Model,
    /// The folder of segments.
    pub parts: &'a Parts,
    /// Which start of the job this is.
    pub attempt: u32,
    /// Rank in the whole job.
    pub world_rank: usize,
    /// Group this rank is in.
    pub group: usize,
    /// Where shares come from, on a group's leader.
    pub desk: Option<Desk<'a>>,
    /// Where rows come from.
    pub feed: Feed,
    /// Called before each step with the group's progress, and on rank 0 with that of the other groups.
    pub show: &'a mut dyn FnMut(Progress, Progress),
    /// Rows that could not be used.
    pub failed: u64,
}

/// Rows on their way through a rank.
struct Books {
    /// Records in flight, by output key.
    pending: HashMap<u64, Pending>,
    rows: Vec<Row>,
    counts: Counts,
    bytes: usize,
    seq: u32,
    opened: Instant,
    /// This rank's part.
    progress: Progress,
    /// Its group's, as of the last step.
    group: Progress,
}

/// What is known of an output before it is finished.
struct Pending {
    record: Record,
    source: String,
    target: String,
    cut: bool,
}

impl Rank<'_> {
    /// Works until the group has nothing left. Collective over the group of `ctx`.
    ///
    /// # Errors
    /// The first thing that went wrong on this rank, or that another rank has said what did. Finished rows are kept.
    pub fn work(&mut self, ctx: &mut Context, batch: &mut Batch, model: &mut dyn Network) -> Result<End> {
        let mut books = Books::new();
        let mut failure = None;
        let end = self.steps(ctx, batch, model, &mut books, &mut failure);
        let kept = self.write(ctx, model, &mut books);
        let own = match failure {
            Some(error) => Err(error),
            None => end.and_then(|end| kept.map(|()| end)),
        };
        agree(ctx.comm, own)
    }

    fn steps(
        &mut self,
        ctx: &mut Context,
        batch: &mut Batch,
        model: &mut dyn Network,
        books: &mut Books,
        failure: &mut Option<anyhow::Error>,
    ) -> Result<End> {
        for step in 0u64.. {
            let reports = self.exchange_reports(ctx, batch, books, failure.is_some() || ctx.failure.is_some());
            // All ranks judge by the same books: those before this step's share and rows.
            let exhausted = self.feed.exhausted();
            books.group = Progress {
                rows: reports.iter().map(|r| r.rows).sum(),
                tokens: reports.iter().map(|r| r.tokens).sum(),
            };
            let others = self.desk.as_ref().map(Desk::others).unwrap_or_default();
            (self.show)(books.group, others);
            let decided = next(&reports, exhausted);
            match decided {
                Next::Fail(rank) if rank == ctx.comm.rank() => {
                    *failure = failure.take().or(ctx.failure.take());
                    return Err(anyhow!("this rank has failed"));
                }
                Next::Fail(_) => return Err(ReportedElsewhere.into()),
                Next::Stop(signal) => return Ok(End::Stopped(signal)),
                Next::Done => return Ok(End::Done),
                Next::Idle | Next::Work { .. } => {}
            }
            let wants: Vec<u32> = reports.iter().map(|r| r.wants).collect();
            let mut taken = self.feed.add(reports[0].share);
            for (record, targets) in self.feed.deal(&wants, ctx.comm.rank()) {
                taken = taken.and_then(|()| self.take(batch, books, record, &targets));
            }
            *failure = failure.take().or(taken.err());
            ctx.meter.lap(Lap::Input);
            match decided {
                Next::Work { encode } => {
                    batch.encode(ctx, model, 2 * step, encode);
                    for finished in batch.step(ctx, model, 2 * step + 1) {
                        if let Err(error) = self.finish(ctx, model, books, finished) {
                            failure.get_or_insert(error);
                        }
                    }
                }
                // A claim is under way: don't spin at full speed.
                _ if self.feed.queued() == 0 && !self.feed.no_more() => std::thread::sleep(Duration::from_micros(200)),
                _ => {}
            }
            let due = books.opened.elapsed().as_secs_f64() >= self.args.segment_seconds;
            if !books.rows.is_empty() && (due || books.bytes >= SEGMENT_BYTES) {
                if let Err(error) = self.write(ctx, model, books) {
                    failure.get_or_insert(error);
                }
            }
        }
        unreachable!("steps end by agreement")
    }

    /// Tells the group this rank's state and hears all others'.
    fn exchange_reports(&mut self, ctx: &mut Context, batch: &Batch, books: &Books, failed: bool) -> Vec<Report> {
        let share = match &mut self.desk {
            Some(desk) => {
                desk.answer();
                // A group keeps about as many rows ready as it could take on next.
                let hungry = !self.feed.no_more() && self.feed.queued() < 16 * ctx.comm.size();
                desk.claim(hungry, books.group)
            }
            None => NO_SHARE,
        };
        let stopped = match (signal::received(), &self.desk) {
            (0, Some(desk)) => desk.stopped(),
            (signal, _) => signal,
        };
        let report = Report {
            wants: batch.wants(),
            waiting: batch.waiting() as u32,
            budget: batch.budget() as u32,
            active: batch.active() as u32,
            failed,
            stop: stopped,
            share,
            rows: books.progress.rows,
            tokens: books.progress.tokens,
        };
        let mut all = Vec::new();
        ctx.comm.all_gather(&report.to_bytes(), &mut all);
        ctx.meter.lap(Lap::Schedule);
        all.chunks_exact(REPORT_BYTES).map(Report::from_bytes).collect()
    }

    /// Takes a record on: blank and unusable ones are finished at once, the others are tokenized.
    fn take(&mut self, batch: &mut Batch, books: &mut Books, record: Record, targets: &[usize]) -> Result<()> {
        let per_record = self.args.target.len().max(1) as u64;
        fail_point("input")?;
        let source = record.source_lang.clone().or_else(|| self.args.source.clone());
        let mut outputs = Vec::new();
        let ids = match (&record.problem, &source) {
            (None, Some(source)) if !record.is_blank() => Some(self.model.tokenizer.source(&record.text, source)?),
            _ => None,
        };
        for &t in targets {
            let key = record.index * per_record + t as u64;
            let target = record.target_lang.clone().or_else(|| self.args.target.get(t).cloned());
            let source = source.clone().unwrap_or_default();
            let blank = record.is_blank() && record.problem.is_none();
            match (&ids, &target) {
                (Some(ids), Some(target)) => {
                    let forced = Some(self.model.tokenizer.target_lang_id(target)?);
                    outputs.push(Output {
                        key,
                        forced,
                        credits_source: t == 0,
                    });
                    let (record, target, cut) = (record.clone(), target.clone(), ids.cut);
                    books.pending.insert(
                        key,
                        Pending {
                            record,
                            source,
                            target,
                            cut,
                        },
                    );
                }
                _ => {
                    let status = if blank { Status::Blank } else { Status::Failed };
                    if !blank {
                        let why = record
                            .problem
                            .clone()
                            .unwrap_or_else(|| "no language is named for it".into());
                        log::warn!("row {}: {why}", record.index);
                        self.failed += 1;
                    }
                    books.add(empty_row(key, &record, source, target.unwrap_or_default(), status));
                }
            }
        }
        if let (Some(ids), false) = (ids, outputs.is_empty()) {
            batch.push(Request { ids: ids.ids, outputs });
        }
        Ok(())
    }

    /// Turns a finished search into a row.
    fn finish(&self, ctx: &mut Context, model: &dyn Network, books: &mut Books, f: Finished) -> Result<()> {
        let Some(p) = books.pending.remove(&f.key) else {
            return Err(anyhow!("row {} is not in flight", f.key));
        };
        let (experts, top_k) = (model.shape().experts, model.shape().top_k);
        let h = f.hypothesis;
        let routes = f.trace.map(|trace| {
            trace.count(experts, &mut books.counts);
            trace.tokens(top_k, &h.path)
        });
        let ended = h.ids.last().is_some_and(|id| self.model.settings.eos.contains(id));
        let status = match (p.cut, ended) {
            (_, false) => Status::LengthLimit,
            (true, true) => Status::InputCut,
            (false, true) => Status::Ok,
        };
        books.progress.tokens += h.ids.len() as u64 - 1;
        books.add(Row {
            index: f.key,
            id: p.record.id,
            input: p.record.text,
            output: self.model.tokenizer.decode(&h.ids)?,
            status,
            score: h.score,
            ids: h.ids[1..].to_vec(),
            logprobs: if self.args.scores { h.logprobs } else { Vec::new() },
            source_lang: p.source,
            target_lang: p.target,
            routes: routes
                .filter(|_| self.args.routing == Some(Routing::Tokens))
                .map(|r| RowRoutes {
                    encoder_ids: r.encoder.0,
                    encoder_weights: r.encoder.1,
                    decoder_ids: r.decoder.0,
                    decoder_weights: r.decoder.1,
                }),
        });
        ctx.meter.lap(Lap::Output);
        Ok(())
    }

    /// Closes a segment with what is finished.
    fn write(&self, ctx: &mut Context, model: &dyn Network, books: &mut Books) -> Result<()> {
        let rank = self.world_rank as u32;
        let layout = self.args.routing.map(|_| layout(model));
        let counts = std::mem::take(&mut books.counts).into_iter();
        let steps: Vec<StepCounts> = counts
            .map(|((step, decoding), counts)| StepCounts {
                attempt: self.attempt,
                group: self.group as u32,
                step,
                phase: if decoding { Phase::Decode } else { Phase::Encode },
                counts,
            })
            .collect();
        let phases = ctx
            .meter
            .rows()
            .map(|(name, seconds, bytes)| (name.to_string(), seconds, bytes))
            .collect();
        let timing = Timing {
            rank,
            attempt: self.attempt,
            phases,
        };
        let name = SegmentName {
            attempt: self.attempt,
            rank,
            seq: books.seq,
        };
        let mut rows = std::mem::take(&mut books.rows);
        let bytes = self
            .parts
            .write_segment(name, &mut rows, layout.as_ref(), &steps, &timing)?;
        ctx.meter.moved(Lap::Output, bytes as usize);
        books.seq += 1;
        books.bytes = 0;
        books.opened = Instant::now();
        ctx.meter.lap(Lap::Output);
        Ok(())
    }
}

impl Books {
    fn new() -> Books {
        Books {
            pending: HashMap::new(),
            rows: Vec::new(),
            counts: Counts::new(),
            bytes: 0,
            seq: 0,
            opened: Instant::now(),
            progress: Progress::default(),
            group: Progress::default(),
        }
    }

    fn add(&mut self, row: Row) {
        self.bytes += 64 + row.input.len() + row.output.len() + 8 * row.ids.len();
        self.bytes += row
            .routes
            .as_ref()
            .map_or(0, |r| 6 * (r.encoder_ids.len() + r.decoder_ids.len()));
        self.progress.rows += 1;
        self.rows.push(row);
    }
}

/// The row of a record that is not translated.
fn empty_row(index: u64, record: &Record, source_lang: String, target_lang: String, status: Status) -> Row {
    Row {
        index,
        id: record.id.clone(),
        input: record.text.clone(),
        output: String::new(),
        status,
        score: 0.0,
        ids: Vec::new(),
        logprobs: Vec::new(),
        source_lang,
        target_lang,
        routes: None,
    }
}

/// The routing part of the results file for a model.
fn layout(model: &dyn Network) -> RoutingLayout {
    let shape = model.shape();
    RoutingLayout {
        encoder_layers: shape.encoder_moe.clone(),
        decoder_layers: shape.decoder_moe.clone(),
        experts: shape.experts,
        top_k: shape.top_k,
    }
}
