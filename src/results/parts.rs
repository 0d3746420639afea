//! `OUT.h5.parts/`: what a job keeps while it runs, so that nothing finished is lost.
//!
//! `job.json` says which job it is and how often it was started, `lock` who writes; `a0001-r00003-s000007.h5` is the
//! seventh segment of rank 3 in the first attempt, the `.json` beside it its record.

use super::attribute::set_text;
use super::done::DoneRows;
use super::durable::{checksum, folder_of, rename, sync_folder, with_suffix};
use super::identity::JobIdentity;
use super::lock::Lock;
use super::merge::{merge_locked, Judge, MergeSummary};
use super::record::{ranges_of, Record};
use super::resume::{add_rows, clear, finished, keep, read_job, remove, segments, start};
use super::row::{RoutingLayout, Row, StepCounts, Timing};
use super::trace::{sum_steps, StepRun};
use super::writer::{make_file, Contents, RowWriter};
use super::CREATOR;
use crate::comm::crash::{crash_point, fail_point};
use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Names a segment; each is written once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentName {
    /// Which start of the job, from 1.
    pub attempt: u32,
    /// The rank that writes it.
    pub rank: u32,
    /// The rank's segments within the attempt, counting up.
    pub seq: u32,
}

/// The parts folder of an output.
#[derive(Debug)]
pub struct Parts {
    dir: PathBuf,
    out: PathBuf,
    identity: JobIdentity,
    attempt: u32,
    started: i64,
    lock: Option<Lock>,
}

/// What [`Parts::open_or_create`] found.
// There is one such value a process: boxing its larger half would save nothing.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Opened {
    /// There is work to do, or to merge.
    Ready {
        /// The folder; it holds the lock.
        parts: Parts,
        /// Which start of the job this is, from 1.
        attempt: u32,
        /// Rows that earlier attempts finished.
        kept_rows: u64,
        /// Which rows those are.
        done: DoneRows,
    },
    /// The output is there, complete, of the same job.
    AlreadyFinished,
}

/// The parts folder of `out`: `OUT.h5.parts`.
pub fn parts_path(out: &Path) -> PathBuf {
    with_suffix(out, ".parts")
}

impl Parts {
    /// Opens or makes the parts folder of `out` for `identity`; for one rank only, the others [`join`](Parts::join).
    ///
    /// Segments that are torn or without a record are reported and removed: their rows are computed again.
    ///
    /// # Errors
    /// Another job is running on it; the output or the folder belongs to another job (each field that differs is named)
    /// or isn't ours, unless `overwrite`, which removes both; the folder is missing or not writable; the same row lies
    /// in two segments.
    pub fn open_or_create(out: &Path, identity: &JobIdentity, overwrite: bool) -> Result<Opened> {
        let folder = folder_of(out);
        ensure!(
            folder.is_dir(),
            "--output {}: there is no folder {}; make it first",
            out.display(),
            folder.display()
        );
        ensure!(
            !out.is_dir(),
            "--output {}: that is a folder; name a file",
            out.display()
        );
        let dir = parts_path(out);
        if !overwrite && finished(out, identity)? && !dir.exists() {
            // A kill in the very act of clearing away leaves this.
            let _ = fs::remove_dir_all(with_suffix(&dir, ".merged"));
            return Ok(Opened::AlreadyFinished);
        }
        match fs::create_dir(&dir) {
            Ok(()) => sync_folder(folder),
            Err(_) if dir.is_dir() => {}
            Err(_) if dir.symlink_metadata().is_ok() => bail!(
                "--output {}: {} is no folder of segments; remove it or name another output",
                out.display(),
                dir.display()
            ),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("--output {}: cannot make the folder {}", out.display(), dir.display()))
            }
        }
        let lock = Lock::take(&dir.join("lock"))?;
        if overwrite {
            clear(out, &dir)?;
        } else if finished(out, identity)? {
            log::info!(
                "{} is complete: removing what is left of {}",
                out.display(),
                dir.display()
            );
            remove(&dir, lock);
            return Ok(Opened::AlreadyFinished);
        }
        let _ = fs::remove_file(with_suffix(out, ".merging"));
        let _ = fs::remove_dir_all(with_suffix(&dir, ".merged"));
        let job = start(out, &dir, identity)?;
        let done = keep(&dir)?;
        let parts = Parts {
            dir,
            out: out.to_owned(),
            identity: job.identity,
            attempt: job.attempt,
            started: job.started,
            lock: Some(lock),
        };
        Ok(Opened::Ready {
            parts,
            attempt: job.attempt,
            kept_rows: done.count(),
            done,
        })
    }

    /// The job whose segments the folder `dir` holds.
    ///
    /// # Errors
    /// It holds none.
    pub fn job_of(dir: &Path) -> Result<String> {
        Ok(read_job(dir)?.identity.job)
    }

    /// Opens the folder that another rank made, waiting a few seconds for a slow network file system to show it.
    pub fn join(out: &Path) -> Result<Parts> {
        let dir = parts_path(out);
        let since = Instant::now();
        loop {
            match read_job(&dir) {
                Ok(job) => {
                    return Ok(Parts {
                        dir,
                        out: out.to_owned(),
                        identity: job.identity,
                        attempt: job.attempt,
                        started: job.started,
                        lock: None,
                    });
                }
                Err(error) if since.elapsed() > Duration::from_secs(10) => {
                    return Err(error.context(format!(
                    "{} was made by another rank but is not seen here: is it on a file system that all ranks share?",
                    dir.display()
                )))
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The output that the parts belong to.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// Which start of the job this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// When the job was first started, in seconds since 1970: the same on every rank and at every start.
    pub fn started(&self) -> i64 {
        self.started
    }

    /// Writes a segment and its record; gives the segment's bytes. Rows are sorted by their number on the way. A
    /// segment without rows is fine (a rank's last timing).
    ///
    /// # Errors
    /// The disk is full or the folder not writable; a row twice, or beyond the job's rows; expert counts or routes that
    /// don't fit `layout`; a segment of that name exists.
    pub fn write_segment(
        &self,
        name: SegmentName,
        rows: &mut [Row],
        layout: Option<&RoutingLayout>,
        steps: &[StepCounts],
        timing: &Timing,
    ) -> Result<u64> {
        fail_point("segment")?;
        rows.sort_by_key(|row| row.index);
        self.check(rows, layout, steps)?;
        let steps = sum_steps(steps)?;
        let path = self
            .dir
            .join(format!("a{:04}-r{:05}-s{:06}.h5", name.attempt, name.rank, name.seq));
        ensure!(
            !path.exists(),
            "{} exists: a segment is written only once",
            path.display()
        );
        let scores = self.identity.job == "score";
        let output = !scores || rows.iter().any(|row| !row.output.is_empty());
        let mut contents = Contents::of(rows, output, layout);
        contents.logprobs |= scores;
        let temporary = with_suffix(&path, ".tmp");
        let written = make_file(&temporary, |file| {
            set_text(file, "creator", CREATOR)?;
            set_text(file, "creator_version", env!("CARGO_PKG_VERSION"))?;
            set_text(file, "job", &self.identity.job)?;
            let mut writer = RowWriter::create(file, &contents, rows.len() as u64)?;
            writer.append(rows)?;
            writer.append_steps(&steps)?;
            writer.finish()
        });
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        written?;
        let (sha256, bytes) = checksum(&temporary)?;
        crash_point("segment-before-rename");
        rename(&temporary, &path)?;
        crash_point("segment-after-rename");
        let record = Record {
            creator_version: env!("CARGO_PKG_VERSION").to_owned(),
            rows: rows.len() as u64,
            span: rows
                .first()
                .zip(rows.last())
                .map(|(first, last)| (first.index, last.index)),
            ranges: ranges_of(rows.iter().map(|row| row.index)),
            contents,
            steps: StepRun::of(&steps),
            timing: timing.clone(),
            seq: name.seq,
            bytes,
            sha256,
        };
        record.write(&path)?;
        crash_point("record-after-rename");
        Ok(bytes)
    }

    fn check(&self, rows: &[Row], layout: Option<&RoutingLayout>, steps: &[StepCounts]) -> Result<()> {
        if let Some(pair) = rows.windows(2).find(|pair| pair[0].index == pair[1].index) {
            bail!("row {} is twice in one segment", pair[0].index);
        }
        if let Some(row) = rows.last().filter(|row| row.index >= self.identity.rows) {
            bail!("row {} is beyond the job's {} rows", row.index, self.identity.rows);
        }
        ensure!(
            layout.is_some() || (steps.is_empty() && rows.iter().all(|row| row.routes.is_none())),
            "expert counts or routes were given without the layers they belong to"
        );
        Ok(())
    }

    /// Which rows are finished, from the records (which `open_or_create` compared with the segments).
    pub fn done(&self) -> Result<DoneRows> {
        let mut done = DoneRows::default();
        for segment in segments(&self.dir)? {
            add_rows(&self.dir, &mut done, &segment, &Record::read(&segment)?)?;
        }
        Ok(done)
    }

    /// Are all rows finished?
    pub fn is_complete(&self) -> Result<bool> {
        Ok(self.done()?.count() == self.identity.rows)
    }

    /// Makes the finished file and removes the folder: [`merge`](super::merge()) for the process that holds the lock.
    pub fn merge(self, judge: &mut dyn Judge) -> Result<MergeSummary> {
        let lock = match self.lock {
            Some(lock) => lock,
            None => Lock::take(&self.dir.join("lock"))?,
        };
        merge_locked(&self.dir, &self.out, judge, lock)
    }
}
