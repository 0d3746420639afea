//! `sluice merge`: makes the finished file of a run that was left unmerged.

use super::run::{Counted, Figures};
use super::score::Perplexity;
use crate::results::{merge, parts_path, Parts, Results, Status};
use anyhow::{ensure, Result};
use std::ffi::OsStr;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// What `sluice merge` is asked.
#[derive(Clone, Debug)]
pub struct MergeOptions {
    /// `OUT.h5.parts`, or `OUT.h5`, to whose name `.parts` is added.
    pub path: PathBuf,
}

/// What the job of these parts computes over all rows. BLEU needs references, which a run has.
fn figures(parts: &Path) -> Box<dyn Figures> {
    match Parts::job_of(parts).as_deref() {
        Ok("score") => Box::new(Perplexity::default()),
        _ => Box::new(Counted::default()),
    }
}

/// Merges, and writes a line about it; gives the number of rows that failed.
///
/// # Errors
/// See [`merge`]; also a folder whose name doesn't end in `.parts`.
pub fn run(options: &MergeOptions, to: &mut dyn Write) -> Result<u64> {
    let (parts, out) = places(&options.path)?;
    let mut figures = figures(&parts);
    let summary = merge(&parts, &out, figures.judge())?;
    // Standard input was kept for a resume; there is none any more.
    if Results::open(&out)?
        .identity()
        .config
        .get("inputs")
        .is_some_and(|inputs| *inputs == serde_json::json!(["-"]))
    {
        let _ = std::fs::remove_file(crate::job::run::spool_of(&out));
    }
    let line = if summary.already {
        format!(
            "{} was complete: removed what was left of {}",
            out.display(),
            parts.display()
        )
    } else {
        format!(
            "{}: {} rows from {} segments, {} bytes",
            summary.out.display(),
            summary.rows,
            summary.segments,
            summary.bytes
        )
    };
    match writeln!(to, "{line}") {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(figures.tally().statuses[Status::Failed as usize]),
    }
}

/// The parts folder and the file it becomes.
fn places(path: &Path) -> Result<(PathBuf, PathBuf)> {
    // Collecting the components drops a final slash, as shells add it to folders.
    let path: PathBuf = path.components().collect();
    if path.extension() == Some(OsStr::new("parts")) {
        let out = path.with_extension("");
        return Ok((path, out));
    }
    ensure!(
        !path.is_dir(),
        "{} is a folder, but its name doesn't end in .parts: nothing to merge",
        path.display()
    );
    Ok((parts_path(&path), path))
}

#[cfg(test)]
mod tests {
    use super::places;
    use std::path::{Path, PathBuf};

    #[test]
    fn finds_folder_and_file() {
        let expected = (PathBuf::from("a/OUT.h5.parts"), PathBuf::from("a/OUT.h5"));
        for given in ["a/OUT.h5.parts", "a/OUT.h5.parts/", "a/OUT.h5"] {
            assert_eq!(places(Path::new(given)).expect(given), expected);
        }
    }
}
