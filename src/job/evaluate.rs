//! `sluice evaluate`: finished files compared with references, and scored texts summed up.
//!
//! Files are read a block of rows at a time. Every file gets its own figures; only scored texts of one model are added up
//! over files, as the shards of a corpus.

mod print;

use crate::cli::exit::Exit;
use crate::cli::EvaluateArgs;
use crate::corpus::Scan;
use crate::job::references::References;
use crate::metrics::measure::{Figure, Measure};
use crate::metrics::perplexity::Sums;
use crate::results::{Results, Row, Status};
use anyhow::{bail, ensure, Context, Result};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

/// Rows held in memory at a time, at most.
const BLOCK: u64 = 4096;

/// Languages that an error names.
const NAMED: usize = 12;

/// The rows of a file that have something to be compared, and what came of it.
struct System {
    file: PathBuf,
    job: String,
    model_sha256: String,
    /// Language of the rows; none if they have several or none.
    target: Option<String>,
    references: Vec<PathBuf>,
    statuses: [u64; Status::ALL.len()],
    figures: Vec<Figure>,
}

/// A file of scored texts.
struct Scored {
    file: PathBuf,
    model_sha256: String,
    /// Window, stride and prefix: which tokens have a score, and with how much before them.
    windows: [Value; 3],
    statuses: [u64; Status::ALL.len()],
    sums: Sums,
}

/// Files of references for the rows of one target language, or for all.
struct Group {
    target: Option<String>,
    files: Vec<PathBuf>,
    scans: Vec<Scan>,
}

/// Computes what `args` ask for and writes it as a table or as JSON.
///
/// # Errors
/// A file is no finished result (see [`Results::open`]), is damaged, or holds neither texts nor scores; references are
/// missing, can't be read or have another number of lines; `to` can't be written.
pub fn run(args: &EvaluateArgs, to: &mut dyn Write) -> Result<Exit> {
    let mut seen = BTreeSet::new();
    let (mut texts, mut scored) = (Vec::new(), Vec::new());
    for path in &args.paths {
        let results = Results::open(path)?;
        ensure!(
            seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())),
            "{} is given twice: name each file once",
            path.display()
        );
        match (results.has_output(), results.identity().job == "score") {
            (_, true) => scored.push(results),
            (true, _) => texts.push(results),
            (false, false) => bail!(
                "{} holds neither output texts nor scores (its job is `{}`): nothing can be evaluated",
                path.display(),
                results.identity().job
            ),
        }
    }
    let groups = groups(args, &texts)?;
    let measures = args.measures()?;
    let mut systems = Vec::new();
    for results in &texts {
        systems.extend(compare(results, &groups, &measures)?);
    }
    let scored: Vec<Scored> = scored.iter().map(sum_up).collect::<Result<_>>()?;
    let text = if args.json {
        print::json(&systems, &scored)?
    } else {
        print::table(&systems, &scored)
    };
    to.write_all(text.as_bytes())?;
    to.flush()?;
    let statuses = systems
        .iter()
        .map(|s| s.statuses)
        .chain(scored.iter().map(|s| s.statuses));
    let failed: u64 = statuses.map(|statuses| statuses[Status::Failed as usize]).sum();
    Ok(if failed > 0 { Exit::SomeRowsFailed } else { Exit::Done })
}

/// Which references belong to which rows of the files `texts`.
fn groups(args: &EvaluateArgs, texts: &[Results]) -> Result<Vec<Group>> {
    let Some(first) = texts.first() else {
        ensure!(
            args.references.is_empty() && args.target.is_none() && args.metrics.is_empty(),
            "--references, --target and --metrics are for output texts; these files hold scores: leave them out"
        );
        return Ok(Vec::new());
    };
    ensure!(
        !args.references.is_empty(),
        "{} holds output texts: give --references FILE, a text file with a line for each line of its input",
        first.path().display()
    );
    let mut by_target: Vec<(Option<String>, Vec<PathBuf>)> = Vec::new();
    for reference in &args.references {
        let (code, file) = of_target(reference);
        match by_target.iter_mut().find(|(target, _)| *target == code) {
            Some((_, files)) => files.push(file),
            None => by_target.push((code, vec![file])),
        }
    }
    ensure!(
        by_target.len() == 1 || by_target.iter().all(|(code, _)| code.is_some()),
        "--references: some files are for one target language (CODE=FILE) and some for any; write CODE=FILE for each"
    );
    if let Some(target) = &args.target {
        by_target.retain(|(code, _)| code.as_ref().is_none_or(|code| code == target));
        ensure!(
            !by_target.is_empty(),
            "--references names no file for --target {target}: add {target}=FILE"
        );
        by_target[0].0 = Some(target.clone());
    }
    if by_target[0].0.is_none() {
        if let Some(several) = texts.iter().find(|results| results.identity().outputs > 1) {
            bail!(
                "{} has {} target languages: name one with --target CODE, or give each its references, --references \
                 CODE=FILE CODE=FILE",
                several.path().display(),
                several.identity().outputs
            );
        }
    }
    let open = |(target, files): (Option<String>, Vec<PathBuf>)| -> Result<Group> {
        let scans = files.iter().map(|file| References::scan(file)).collect::<Result<_>>()?;
        Ok(Group { target, files, scans })
    };
    by_target.into_iter().map(open).collect()
}

/// `CODE=FILE` as the two; a file of that very name is a file.
fn of_target(reference: &Path) -> (Option<String>, PathBuf) {
    let named = reference.to_str().filter(|_| !reference.exists());
    match named.and_then(|name| name.split_once('=')) {
        Some((code, file)) if !code.is_empty() && !code.contains(['/', '.']) => (Some(code.to_owned()), file.into()),
        _ => (None, reference.to_owned()),
    }
}

/// The rows of one group, while a file is read.
struct Comparison<'a> {
    group: &'a Group,
    references: Vec<References>,
    measures: Vec<Measure>,
    statuses: [u64; Status::ALL.len()],
    /// The rows' languages.
    targets: BTreeSet<String>,
    /// Output and references of rows that were read and not compared yet.
    waiting: Vec<(String, Vec<String>)>,
}

/// Compares a file with every group of references.
fn compare(results: &Results, groups: &[Group], measures: &[Measure]) -> Result<Vec<System>> {
    let path = results.path().display();
    let records = results.rows() / results.identity().outputs;
    let mut comparisons = Vec::new();
    for group in groups {
        for (file, scan) in group.files.iter().zip(&group.scans) {
            ensure!(
                scan.rows == records,
                "--references {}: {} lines, while {path} has {records} input lines: they must belong together line by line",
                file.display(),
                scan.rows
            );
        }
        comparisons.push(Comparison {
            group,
            references: group.scans.iter().map(References::open).collect::<Result<_>>()?,
            measures: measures.to_vec(),
            statuses: Default::default(),
            targets: BTreeSet::new(),
            waiting: Vec::new(),
        });
    }
    let mut languages: BTreeMap<String, u64> = BTreeMap::new();
    for block in results.blocks(BLOCK) {
        for row in block? {
            for comparison in &mut comparisons {
                comparison.read(&row)?;
            }
            *languages.entry(row.target_lang).or_default() += 1;
        }
        for comparison in &mut comparisons {
            comparison.add_waiting(measures)?;
        }
    }
    let system = |comparison: Comparison| -> Result<System> {
        let rows: u64 = comparison.statuses.iter().sum();
        if let Some(target) = comparison.group.target.as_ref().filter(|_| rows == 0 && records > 0) {
            let found = languages.keys().map(String::as_str).filter(|code| !code.is_empty());
            let found: Vec<&str> = found.take(NAMED).collect();
            ensure!(
                !found.is_empty(),
                "{path} has no row of the target language {target}: its rows name none; leave {target} out"
            );
            bail!(
                "{path} has no row of the target language {target}: it has {}",
                found.join(", ")
            );
        }
        let mut targets = comparison.targets.into_iter();
        let only = targets
            .next()
            .filter(|target| !target.is_empty() && targets.next().is_none());
        Ok(System {
            file: results.path().to_owned(),
            job: results.identity().job.clone(),
            model_sha256: results.identity().model_sha256.clone(),
            target: comparison.group.target.clone().or(only),
            references: comparison.group.files.clone(),
            statuses: comparison.statuses,
            figures: comparison.measures.iter().flat_map(Measure::figures).collect(),
        })
    };
    comparisons.into_iter().map(system).collect()
}

impl Comparison<'_> {
    /// Takes a row if it belongs to the group.
    fn read(&mut self, row: &Row) -> Result<()> {
        if self
            .group
            .target
            .as_ref()
            .is_some_and(|target| *target != row.target_lang)
        {
            return Ok(());
        }
        self.statuses[row.status as usize] += 1;
        if !self.targets.contains(&row.target_lang) {
            self.targets.insert(row.target_lang.clone());
        }
        let mut references = Vec::with_capacity(self.references.len());
        for file in &mut self.references {
            references.push(file.line(row.index)?.to_owned());
        }
        let output = match row.status {
            Status::Blank | Status::Failed => String::new(),
            _ => row.output.clone(),
        };
        self.waiting.push((output, references));
        Ok(())
    }

    /// Compares what waits, on all processors. Measures add up to the same in any order.
    fn add_waiting(&mut self, fresh: &[Measure]) -> Result<()> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = self.waiting.len().div_ceil(threads).max(1);
        let compare = |rows: &[(String, Vec<String>)]| {
            let mut measures = fresh.to_vec();
            for (output, references) in rows {
                let references: Vec<&str> = references.iter().map(String::as_str).collect();
                measures.iter_mut().for_each(|m| m.add(output, &references));
            }
            measures
        };
        let parts: Vec<Vec<Measure>> = thread::scope(|scope| {
            let threads: Vec<_> = self
                .waiting
                .chunks(share)
                .map(|rows| scope.spawn(|| compare(rows)))
                .collect();
            let join = |thread: thread::ScopedJoinHandle<_>| match thread.join() {
                Ok(measures) => measures,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            threads.into_iter().map(join).collect()
        });
        for part in parts {
            for (measure, more) in self.measures.iter_mut().zip(&part) {
                measure.merge(more)?;
            }
        }
        self.waiting.clear();
        Ok(())
    }
}

/// Adds up a file of scored texts. Blank and failed rows have nothing to count.
fn sum_up(results: &Results) -> Result<Scored> {
    let (mut sums, mut statuses) = (Sums::default(), [0; Status::ALL.len()]);
    for block in results.blocks(BLOCK) {
        for row in block.with_context(|| format!("{}", results.path().display()))? {
            statuses[row.status as usize] += 1;
            if !matches!(row.status, Status::Blank | Status::Failed) {
                let added = sums.add(row.scored_text(), &row.logprobs);
                added.with_context(|| format!("{} is damaged: row {}", results.path().display(), row.index))?;
            }
        }
    }
    let setting = |name: &str| results.identity().fields.get(name).cloned().unwrap_or_default();
    Ok(Scored {
        file: results.path().to_owned(),
        model_sha256: results.identity().model_sha256.clone(),
        windows: ["window", "stride", "prefix_token_id"].map(setting),
        statuses,
        sums,
    })
}
