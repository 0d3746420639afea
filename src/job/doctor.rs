//! `sluice doctor`: what this machine, this launch and this checkpoint offer, what is missing and what to do.

mod machine;

use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::comm::launch::{binding_warnings, check_size, default_threads, Binding, Environment, Launcher};

/// How a finding is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// There and right.
    Found,
    /// Worth knowing; nothing to do for a run.
    Note,
    /// Sluice runs, but slower or less safely than it could.
    Warning,
    /// Sluice can't run like this.
    Missing,
}

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it is meant.
    pub state: State,
    /// What was looked at, e.g. `HDF5`.
    pub what: &'static str,
    /// What was found.
    pub found: String,
    /// What to do about it, if anything.
    pub cure: Option<String>,
}

impl Finding {
    /// A finding without a cure.
    pub fn new(state: State, what: &'static str, found: impl Into<String>) -> Finding {
        Finding {
            state,
            what,
            found: found.into(),
            cure: None,
        }
    }

    /// The same with what to do.
    pub fn cure(mut self, cure: impl Into<String>) -> Finding {
        self.cure = Some(cure.into());
        self
    }
}

/// What the caller knows of ranks and of the checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// MPI's number of ranks.
    pub ranks: usize,
    /// The MPI library's own name and version (`MPI_Get_library_version`).
    pub mpi_library: Option<String>,
    /// Rank 0's environment.
    pub environment: Environment,
    /// What each rank may use of its machine.
    pub bindings: Vec<Binding>,
    /// What was found of the checkpoint, a line a fact, where one was asked for; or why it can't be used.
    pub checkpoint: Option<Result<Vec<String>, String>>,
}

/// Writes the table, and returns whether sluice can run here. One rank calls it.
///
/// # Errors
/// Only when `out` can't be written.
pub fn doctor(facts: &Facts, out: &mut dyn Write) -> Result<bool> {
    let mut findings = vec![Finding::new(
        State::Found,
        "sluice",
        format!("{}, {}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH),
    )];
    findings.extend(launch(facts));
    findings.extend(binding(facts));
    findings.push(hdf5(Path::new(".")));
    findings.extend(machine::processor());
    findings.extend(machine::memory());
    findings.extend(machine::gpu());
    findings.extend(checkpoint(facts.checkpoint.as_ref()));
    write(&findings, out)?;
    Ok(findings.iter().all(|finding| finding.state != State::Missing))
}

/// The table: state, what, found; a cure on a line of its own.
fn write(findings: &[Finding], out: &mut dyn Write) -> Result<()> {
    for finding in findings {
        let state = match finding.state {
            State::Found => "ok",
            State::Note => "note",
            State::Warning => "warning",
            State::Missing => "MISSING",
        };
        writeln!(out, "{state:<8} {:<12} {}", finding.what, finding.found)?;
        if let Some(cure) = &finding.cure {
            writeln!(out, "{:<21} -> {cure}", "")?;
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    let verdict = match (count(State::Missing), count(State::Warning)) {
        (0, 0) => "ready to run".to_owned(),
        (0, warnings) => format!("ready to run; {warnings} to look at"),
        (missing, _) => format!("not ready: {missing} missing"),
    };
    writeln!(out, "\n{verdict}").context("cannot write the table")
}

/// MPI and how its ranks were launched.
fn launch(facts: &Facts) -> Vec<Finding> {
    let library = facts
        .mpi_library
        .as_deref()
        .map(|name| name.lines().next().unwrap_or(name).trim_end_matches('\0').trim());
    let mut findings = vec![match library {
        Some(name) => Finding::new(
            State::Found,
            "MPI",
            format!(
                "{name}; {} rank{}",
                facts.ranks,
                if facts.ranks == 1 { "" } else { "s" }
            ),
        ),
        None => Finding::new(State::Warning, "MPI", "the library doesn't tell its name"),
    }];
    let launcher = Launcher::of(&facts.environment);
    match check_size(&facts.environment, 0, facts.ranks) {
        Ok(warnings) if warnings.is_empty() => {
            findings.push(Finding::new(State::Found, "launch", launcher.to_string()))
        }
        Ok(warnings) => findings.extend(
            warnings
                .into_iter()
                .map(|text| Finding::new(State::Warning, "launch", text)),
        ),
        Err(error) => findings.push(Finding::new(State::Missing, "launch", format!("{error:#}"))),
    }
    if launcher == Launcher::Nobody {
        let cure = "see a launch with several: mpirun -n 4 sluice doctor, or srun -n 4 --mpi=pmix sluice doctor";
        let last = findings.pop().map(|finding| finding.cure(cure));
        findings.extend(last);
    }
    findings
}

/// What processors ranks are bound to, and the threads they would run.
fn binding(facts: &Facts) -> Vec<Finding> {
    let ranks = facts.bindings.iter().map(|binding| binding.rank);
    let threads: Vec<usize> = ranks.map(|rank| default_threads(&facts.bindings, rank)).collect();
    let line = |(binding, threads): (&Binding, &usize)| {
        let quota = binding
            .quota
            .map(|quota| format!(", {quota} by quota"))
            .unwrap_or_default();
        let found = format!(
            "rank {} on {}: processors {} of {}{quota}; threads by default: {threads}",
            binding.rank, binding.host, binding.mask, binding.online
        );
        Finding::new(State::Found, "binding", found)
    };
    // A thousand ranks would bury the rest.
    let mut findings: Vec<Finding> = facts.bindings.iter().zip(&threads).take(8).map(line).collect();
    if facts.bindings.len() > 8 {
        findings.push(Finding::new(
            State::Note,
            "binding",
            format!("and {} ranks more", facts.bindings.len() - 8),
        ));
    }
    let warnings = binding_warnings(&facts.environment, &facts.bindings, &threads);
    findings.extend(
        warnings
            .into_iter()
            .map(|text| Finding::new(State::Warning, "binding", text)),
    );
    findings
}

/// The HDF5 library, which file it is, and whether a file can be written and read in `folder` (locks included).
fn hdf5(folder: &Path) -> Finding {
    let (major, minor, release) = hdf5::library_version();
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let library = machine::mapped_library(&maps, "libhdf5").unwrap_or_else(|| "linked in".to_owned());
    let found = format!("{major}.{minor}.{release} ({library})");
    match write_and_read(folder) {
        Ok(()) => Finding::new(
            State::Found,
            "HDF5",
            format!("{found}; files and locks work in the current folder"),
        ),
        Err(error) => Finding::new(
            State::Warning,
            "HDF5",
            format!("{found}; no file in the current folder: {error:#}"),
        )
        .cure("write elsewhere; if it speaks of locks: export HDF5_USE_FILE_LOCKING=FALSE"),
    }
}

/// Makes a small file, closes it, reads it and removes it. HDF5 locks a file as it opens it.
fn write_and_read(folder: &Path) -> Result<()> {
    let path = folder.join(format!(".sluice-doctor-{}.h5", std::process::id()));
    let tried = (|| -> Result<()> {
        let file = hdf5::File::create(&path)?;
        file.new_dataset_builder().with_data(&[1u32, 2, 3]).create("data")?;
        file.close()?;
        let file = hdf5::File::open(&path)?;
        anyhow::ensure!(
            file.dataset("data")?.read_raw::<u32>()? == [1, 2, 3],
            "what was read is not what was written"
        );
        Ok(())
    })();
    // Not there if it could not be made.
    let _ = fs::remove_file(&path);
    tried
}

/// The checkpoint's lines, or why it can't be used.
fn checkpoint(lines: Option<&Result<Vec<String>, String>>) -> Vec<Finding> {
    match lines {
        None => vec![Finding::new(State::Note, "checkpoint", "none asked for").cure("sluice doctor --model DIR")],
        Some(Ok(lines)) => lines
            .iter()
            .map(|line| Finding::new(State::Found, "checkpoint", line))
            .collect(),
        Some(Err(error)) => vec![Finding::new(State::Missing, "checkpoint", error)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::affinity;

    fn table(facts: &Facts) -> (bool, String) {
        let mut out = Vec::new();
        let ready = doctor(facts, &mut out).unwrap();
        (ready, String::from_utf8(out).unwrap())
    }

    fn facts() -> Facts {
        Facts {
            ranks: 1,
            mpi_library: Some("Open MPI v4.1.4, package\0".to_owned()),
            bindings: vec![affinity::here(0)],
            ..Facts::default()
        }
    }

    #[test]
    fn a_plain_start_is_ready() {
        let (ready, table) = table(&facts());
        assert!(ready, "{table}");
        for part in [
            "Open MPI v4.1.4, package; 1 rank",
            "HDF5",
            "libhdf5",
            "rank 0 on",
            "memory",
            "GPU",
            "ready to run",
        ] {
            assert!(table.contains(part), "{part} is not in\n{table}");
        }
    }

    #[test]
    fn singletons_and_bad_checkpoints_are_not_ready() {
        let mut singleton = facts();
        singleton.environment = [("OMPI_COMM_WORLD_SIZE", "2")]
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .into();
        let (ready, text) = table(&singleton);
        assert!(
            !ready && text.contains("MISSING") && text.contains("not ready: 1 missing"),
            "{text}"
        );
        let checkpoint = Some(Err("m/model.safetensors: torn".to_owned()));
        let (ready, text) = table(&Facts { checkpoint, ..facts() });
        assert!(!ready && text.contains("torn"), "{text}");
        let checkpoint = Some(Ok(vec!["nllb-moe, 16 experts".to_owned()]));
        assert!(table(&Facts { checkpoint, ..facts() }).0);
    }

    #[test]
    fn a_folder_that_takes_no_file_is_told() {
        assert_eq!(hdf5(Path::new("/proc")).state, State::Warning);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(hdf5(folder.path()).state, State::Found);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
