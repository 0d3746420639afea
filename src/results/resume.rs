//! What an earlier attempt left: whose it is, what of it counts, and how it is discarded.

use super::done::DoneRows;
use super::durable::{folder_of, sync_folder, with_suffix, write_whole};
use super::identity::JobIdentity;
use super::lock::Lock;
use super::reader::Results;
use super::record::Record;
use super::seal::{sealed, unseal};
use anyhow::{anyhow, bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Which job a parts folder belongs to.
#[derive(Serialize, Deserialize)]
pub(crate) struct JobFile {
    pub identity: JobIdentity,
    /// How often the job was started.
    pub attempt: u32,
    /// When it was first started, in seconds since 1970.
    #[serde(default)]
    pub started: i64,
    pub creator_version: String,
}

/// Is `out` there as the finished result of this job? Anything else in its place is an error.
pub(crate) fn finished(out: &Path, identity: &JobIdentity) -> Result<bool> {
    if !out.exists() {
        return Ok(false);
    }
    let there = Results::open(out).with_context(|| {
        format!(
            "--output {} exists and is no finished result; give another name, or --overwrite to discard it",
            out.display()
        )
    })?;
    refuse_difference(out, there.identity(), identity)?;
    Ok(true)
}

fn refuse_difference(what: &Path, there: &JobIdentity, now: &JobIdentity) -> Result<()> {
    let differences = there.differences(now);
    if differences.is_empty() {
        return Ok(());
    }
    bail!(
        "{} belongs to another job:\n  {}\ngive another --output, or --overwrite to discard it",
        what.display(),
        differences.join("\n  ")
    )
}

/// Reads `job.json`.
pub(crate) fn read_job(dir: &Path) -> Result<JobFile> {
    let path = dir.join("job.json");
    let json = fs::read(&path)
        .with_context(|| format!("cannot read {}: is {} a parts folder?", path.display(), dir.display()))?;
    let damaged = || format!("{} is damaged", path.display());
    let job: JobFile = unseal(&json).with_context(damaged)?;
    job.identity.check().with_context(damaged)?;
    Ok(job)
}

/// Enters this start of the job into `job.json`; gives its number.
pub(crate) fn start(out: &Path, dir: &Path, identity: &JobIdentity) -> Result<JobFile> {
    let path = dir.join("job.json");
    let (before, started) = if path.exists() {
        let advice = || format!("--output {}: give --overwrite to start anew", out.display());
        let job = read_job(dir).with_context(advice)?;
        refuse_difference(dir, &job.identity, identity)?;
        (job.attempt, job.started)
    } else {
        // A kill right at the start leaves the lock, or a temporary file.
        let ours = |path: &PathBuf| path.ends_with("lock") || path.extension().is_some_and(|e| e == "tmp");
        if let Some(foreign) = files(dir)?
            .iter()
            .find(|path| !ours(path) && path.extension().is_none_or(|e| e != "h5" && e != "json"))
        {
            bail!(
                "{} holds {}, which is no file of a job: give another --output, or move that folder away",
                dir.display(),
                foreign.display()
            );
        }
        let held = segments(dir)?.len();
        ensure!(
            held == 0,
            "{} holds {held} segments but no job.json, so that nobody knows whose they are: give another --output, or \
             --overwrite to discard them",
            dir.display()
        );
        (0, jiff::Timestamp::now().as_second())
    };
    let job = JobFile {
        identity: identity.clone(),
        attempt: before + 1,
        started,
        creator_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let json = sealed(&job).context("cannot write the job's identity as JSON")?;
    write_whole(&path, &json, || ())?;
    Ok(job)
}

/// The segments that have a record, sorted by name.
pub(crate) fn segments(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = files(dir)?;
    found.retain(|path| path.extension().is_some_and(|ending| ending == "json") && !path.ends_with("job.json"));
    Ok(found.into_iter().map(|record| record.with_extension("h5")).collect())
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let context = || format!("cannot list {}", dir.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(context)? {
        found.push(entry.with_context(context)?.path());
    }
    found.sort();
    Ok(found)
}

/// Adds a segment's rows; a row that is in two segments is an error that names both.
pub(crate) fn add_rows(dir: &Path, done: &mut DoneRows, segment: &Path, record: &Record) -> Result<()> {
    for (start, end) in &record.ranges {
        done.insert(*start..*end).map_err(|row| {
            let holds = |record: &Record| record.ranges.iter().any(|(start, end)| (*start..*end).contains(&row));
            let other = segments(dir)
                .unwrap_or_default()
                .into_iter()
                .find(|other| other != segment && Record::read(other).is_ok_and(|record| holds(&record)))
                .unwrap_or_else(|| segment.to_owned());
            anyhow!(
                "row {row} is in two segments, {} and {}: keep one of them (remove the other with its .json) and run the \
                 command again",
                other.display(),
                segment.display()
            )
        })?;
    }
    Ok(())
}

/// What earlier attempts finished; removes what they left half done.
pub(crate) fn keep(dir: &Path) -> Result<DoneRows> {
    let mut done = DoneRows::default();
    for segment in segments(dir)? {
        let record = Record::read(&segment).and_then(|record| record.verify(&segment).map(|()| record));
        match record {
            Ok(record) => add_rows(dir, &mut done, &segment, &record)?,
            Err(error) => {
                log::warn!("left out, its rows are computed again: {error:#}");
                discard(&Record::path(&segment))?;
            }
        }
    }
    for path in files(dir)? {
        let ending = path.extension().and_then(|ending| ending.to_str());
        if ending == Some("tmp") || (ending == Some("h5") && !Record::path(&path).exists()) {
            log::info!("removing {}, which was never finished", path.display());
            discard(&path)?;
        }
    }
    sync_folder(dir);
    Ok(done)
}

fn discard(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// Discards the output and all parts; the job's own file goes last.
pub(crate) fn clear(out: &Path, dir: &Path) -> Result<()> {
    if out.exists() {
        discard(out)?;
    }
    let mut found = files(dir)?;
    found.retain(|path| {
        let ending = path.extension().and_then(|ending| ending.to_str());
        matches!(ending, Some("h5" | "json" | "tmp"))
    });
    found.sort_by_key(|path| {
        (
            path.ends_with("job.json"),
            path.extension().is_some_and(|ending| ending == "h5"),
        )
    });
    found.iter().try_for_each(|path| discard(path))?;
    sync_folder(dir);
    Ok(())
}

/// Removes a folder whose results are safe. A failure is only reported: the next start tries again.
pub(crate) fn remove(dir: &Path, lock: Lock) {
    let gone = with_suffix(dir, ".merged");
    let _ = fs::remove_dir_all(&gone);
    let doomed = match fs::rename(dir, &gone) {
        Ok(()) => gone.as_path(),
        Err(_) => dir,
    };
    drop(lock);
    if let Err(error) = fs::remove_dir_all(doomed) {
        log::warn!("cannot remove {}: {error}; it is not needed any more", doomed.display());
    }
    sync_folder(folder_of(dir));
}
