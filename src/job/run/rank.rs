//! One rank at work: lockstep with its group until all rows are done, segments written on the way.

use super::desk::{Desk, Progress};
use super::feed::Feed;
use super::task::{Done, Taken, Task};
use crate::cli::run::Routing;
use crate::comm::{agree, crash::fail_point, signal, ReportedElsewhere};
use crate::corpus::{Record, Scan};
use crate::decode::lockstep::{next, Next, Report, NO_SHARE, REPORT_BYTES};
use crate::decode::trace::Counts;
use crate::decode::workload::{OfRow, Workload};
use crate::metrics::meter::Phase as Lap;
use crate::model::{Model, Shape};
use crate::moe::Context;
use crate::results::{Parts, Phase, RoutingLayout, Row, RowRoutes, SegmentName, Status, StepCounts, Timing};
use anyhow::{anyhow, Context as _, Result};
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
pub struct Rank<'a, T> {
    /// The job.
    pub task: &'a T,
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
    /// Where they stand.
    pub scan: &'a Scan,
    /// Called before each step with the group's progress, and on rank 0 with that of the other groups.
    pub show: &'a mut dyn FnMut(Progress, Progress),
    /// Rows that could not be used.
    pub failed: u64,
}

/// Rows on their way through a rank.
struct Books<P> {
    /// Rows in flight, by output key.
    pending: HashMap<u64, P>,
    /// What finished in the step before: it counts once all ranks have said that the step went well, since a rank that fails
    /// within it leaves the others without the outputs of its experts.
    finished: Vec<Done>,
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

impl<T: Task> Rank<'_, T> {
    /// Works until the group has nothing left. Collective over the group of `ctx`.
    ///
    /// # Errors
    /// The first thing that went wrong on this rank, or that another rank has said what did. Finished rows are kept.
    pub fn work(&mut self, ctx: &mut Context, batch: &mut T::Work, model: &mut dyn Model) -> Result<End> {
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
        batch: &mut T::Work,
        model: &mut dyn Model,
        books: &mut Books<T::Pending>,
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
            let decided = next(&reports, batch.portions(), exhausted);
            if !matches!(decided, Next::Fail(_)) {
                self.book(model.shape(), books);
            }
            match decided {
                Next::Fail(rank) if rank == ctx.comm.rank() => {
                    *failure = failure.take().or(ctx.failure.take()).map(|error| self.placed(error));
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
                    let mut ended = batch.read(ctx, model, 2 * step, encode);
                    ended.extend(batch.step(ctx, model, 2 * step + 1));
                    for finished in ended {
                        if let Err(error) = self.finish(ctx, books, finished) {
                            failure.get_or_insert(error);
                        }
                    }
                }
                // A claim is under way: don't spin at full speed.
                _ if self.feed.queued() == 0 && !self.feed.no_more() => std::thread::sleep(Duration::from_micros(200)),
                _ => {}
            }
            let due = books.opened.elapsed().as_secs_f64() >= self.task.run().segment_seconds;
            if !books.rows.is_empty() && (due || books.bytes >= SEGMENT_BYTES) {
                if let Err(error) = self.write(ctx, model, books) {
                    failure.get_or_insert(error);
                }
            }
        }
        unreachable!("steps end by agreement")
    }

    /// An error of a row with the file and line where it stands.
    fn placed(&self, error: anyhow::Error) -> anyhow::Error {
        match error.downcast::<OfRow>() {
            Ok(OfRow { key, why }) => why.context(self.scan.place(key / self.task.outputs()).to_string()),
            Err(other) => other,
        }
    }

    /// Tells the group this rank's state and hears all others'.
    fn exchange_reports(
        &mut self,
        ctx: &mut Context,
        batch: &T::Work,
        books: &Books<T::Pending>,
        failed: bool,
    ) -> Vec<Report> {
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
            waiting: saturating(batch.waiting()),
            budget: saturating(batch.budget()),
            active: saturating(batch.active()),
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

    /// Takes a record on: blank and unusable ones are finished at once.
    fn take(
        &mut self,
        batch: &mut T::Work,
        books: &mut Books<T::Pending>,
        record: Record,
        wanted: &[usize],
    ) -> Result<()> {
        fail_point("input")?;
        let Taken {
            request,
            pending,
            rows,
            why,
        } = (self.task.take(&record, wanted, batch)).with_context(|| self.scan.place(record.index).to_string())?;
        for row in rows {
            if row.status == Status::Failed {
                let place = self.scan.place(record.index);
                log::warn!("{place}: {}", why.as_deref().unwrap_or("the row cannot be used"));
                self.failed += 1;
            }
            books.progress.rows += 1;
            books.add(row);
        }
        books.pending.extend(pending);
        if let Some(request) = request {
            batch.push(request);
        }
        Ok(())
    }

    /// Turns what has finished into a row.
    fn finish(
        &self,
        ctx: &mut Context,
        books: &mut Books<T::Pending>,
        finished: <T::Work as Workload>::Finished,
    ) -> Result<()> {
        let key = self.task.key(&finished);
        let Some(pending) = books.pending.remove(&key) else {
            return Err(anyhow!("row {key} is not in flight"));
        };
        let done = self.task.finish(pending, finished);
        let done = done.map_err(|why| OfRow { key, why })?;
        books.progress.rows += 1;
        books.progress.tokens += done.tokens;
        books.finished.push(done);
        ctx.meter.lap(Lap::Output);
        Ok(())
    }

    /// Takes what has finished in the step before into the books.
    fn book(&self, shape: &Shape, books: &mut Books<T::Pending>) {
        for mut done in std::mem::take(&mut books.finished) {
            if let Some((trace, routes)) = done.routes {
                let before = books.counts.len();
                let layers = [source_layers(shape).len(), shape.decoder_moe.len()];
                trace.count(layers, shape.experts, &mut books.counts);
                let numbers = layers[0].max(layers[1]) * shape.experts;
                books.bytes += size_of::<u32>() * numbers * (books.counts.len() - before);
                if self.task.run().routing == Some(Routing::Tokens) {
                    done.row.routes = Some(RowRoutes {
                        encoder_ids: routes.encoder.0,
                        encoder_weights: routes.encoder.1,
                        decoder_ids: routes.decoder.0,
                        decoder_weights: routes.decoder.1,
                    });
                }
            }
            books.add(done.row);
        }
    }

    /// Closes a segment with what is finished.
    fn write(&self, ctx: &mut Context, model: &dyn Model, books: &mut Books<T::Pending>) -> Result<()> {
        let rank = self.world_rank as u32;
        let layout = self.task.run().routing.map(|_| layout(model));
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

/// As many as a report can tell.
fn saturating(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl<P> Books<P> {
    fn new() -> Self {
        Books {
            pending: HashMap::new(),
            finished: Vec::new(),
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
        self.bytes += 4 * (row.logprobs.len() + row.ranks.len() + row.top_ids.len() + row.top_logprobs.len());
        self.bytes += row
            .routes
            .as_ref()
            .map_or(0, |r| 6 * (r.encoder_ids.len() + r.decoder_ids.len()));
        self.rows.push(row);
    }
}

/// The routing part of the results file for a model.
fn layout(model: &dyn Model) -> RoutingLayout {
    let shape = model.shape();
    RoutingLayout {
        encoder_layers: source_layers(shape).to_vec(),
        decoder_layers: shape.decoder_moe.clone(),
        experts: shape.experts,
        top_k: shape.top_k,
    }
}

/// The MoE layers that sources go through: without an encoder prompts are read by the decoder's.
fn source_layers(shape: &Shape) -> &[String] {
    match shape.encoder {
        true => &shape.encoder_moe,
        false => &shape.decoder_moe,
    }
}
