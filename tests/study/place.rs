//! A folder with runs' files, and the program that studies them.

use serde_json::{json, Value};
use sluicegate::results::{JobIdentity, Opened, Parts, RoutingLayout, Row, SegmentName, StepCounts, Tally, Timing};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

/// HDF5 opens files so that a child process inherits them with their locks: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Place {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// What the experts did in one start of a job.
pub struct Start {
    pub ranks: u32,
    pub steps: Vec<StepCounts>,
}

/// The bundled checkpoint and corpus.
pub fn bundled(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(path)
}

impl Place {
    pub fn new() -> Place {
        Place {
            _alone: ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Names of what is in the folder.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// A finished file with a row for each start of its job, in which the experts did this.
    pub fn run(&self, name: &str, layout: Option<&RoutingLayout>, starts: Vec<Start>) {
        let identity = JobIdentity {
            job: "translate".into(),
            fields: Default::default(),
            config: json!({}),
            command: "sluice".into(),
            model_sha256: "m".into(),
            rows: starts.len() as u64,
            outputs: 1,
        };
        for (index, start) in (0u64..).zip(starts) {
            let Ok(Opened::Ready { parts, attempt, .. }) = Parts::open_or_create(&self.path(name), &identity, false)
            else {
                panic!("{name} can't be made")
            };
            for rank in 0..start.ranks {
                let timing = Timing {
                    rank,
                    attempt,
                    phases: vec![("gate".into(), 1.0, 0)],
                };
                let row = Row {
                    index,
                    input: "in".into(),
                    output: "out".into(),
                    ..Row::default()
                };
                let mut rows = if rank == 0 { vec![row] } else { Vec::new() };
                let steps: Vec<StepCounts> = match rank {
                    0 => start
                        .steps
                        .iter()
                        .map(|s| StepCounts { attempt, ..s.clone() })
                        .collect(),
                    _ => Vec::new(),
                };
                let segment = SegmentName { attempt, rank, seq: 0 };
                parts
                    .write_segment(segment, &mut rows, layout, &steps, &timing)
                    .unwrap();
            }
            if index + 1 == identity.rows {
                parts.merge(&mut Tally::default()).unwrap();
            }
        }
    }

    /// A command in the folder, without a launcher's variables.
    pub fn command(&self, program: &str, line: &str) -> Output {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["OMPI_COMM_", "PMI", "SLURM_", "RUST_LOG"]
                .iter()
                .any(|start| text.starts_with(start))
            {
                command.env_remove(&name);
            }
        }
        for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
            command.env(name, "1");
        }
        let command = command
            .current_dir(self.folder.path())
            .env("OMPI_MCA_mpi_yield_when_idle", "1");
        command.args(line.split_whitespace()).output().unwrap()
    }

    /// What `sluice study buffer` prints.
    #[track_caller]
    pub fn study(&self, line: &str) -> String {
        let output = self.command(env!("CARGO_BIN_EXE_sluice"), &format!("study buffer {line}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.study(&format!("{line} --json"))).unwrap()
    }

    /// It is refused with one error, which says all of these, and leaves nothing behind.
    #[track_caller]
    pub fn refused(&self, line: &str, parts: &[&str]) {
        let before = self.names();
        let output = self.command(env!("CARGO_BIN_EXE_sluice"), &format!("study buffer {line}"));
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        assert_eq!(stderr.matches("sluice: error:").count(), 1, "{line}: {stderr}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(stderr.contains(part), "{line}: {part} is not in {stderr}");
        }
        assert_eq!(self.names(), before, "{line} leaves something behind");
    }
}

/// `[placement, policy, slots]` of a dataset under `/buffer`, flat.
pub fn counts(path: &Path, name: &str) -> (Vec<usize>, Vec<u64>) {
    let file = hdf5::File::open(path).unwrap();
    let data = file.dataset(&format!("buffer/{name}")).unwrap();
    (data.shape(), data.read_raw().unwrap())
}
