//! A folder with finished files of known rows, and the program that evaluates them.

use serde_json::{json, Value};
use sluicegate::results::{JobIdentity, Opened, Parts, Row, SegmentName, Status, Tally, Timing};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard};

/// HDF5 opens files so that a child process inherits them with their locks: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

pub struct Place {
    folder: tempfile::TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// A file's job: how many outputs a record has, and what kind of job it was.
pub struct Job<'a> {
    pub name: &'a str,
    pub outputs: u64,
    pub model: &'a str,
}

pub const TRANSLATE: Job = Job {
    name: "translate",
    outputs: 1,
    model: "m",
};
pub const SCORE: Job = Job {
    name: "score",
    outputs: 1,
    model: "m",
};

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

    pub fn text<T: AsRef<str>>(&self, name: &str, lines: &[T]) {
        let text: String = lines.iter().map(|line| line.as_ref().to_owned() + "\n").collect();
        fs::write(self.path(name), text).unwrap();
    }

    /// A finished file of these rows.
    pub fn results(&self, name: &str, job: &Job, mut rows: Vec<Row>) {
        (0..).zip(&mut rows).for_each(|(index, row)| row.index = index);
        let identity = JobIdentity {
            job: job.name.into(),
            fields: Default::default(),
            config: json!({}),
            command: "sluice".into(),
            model_sha256: job.model.into(),
            rows: rows.len() as u64,
            outputs: job.outputs,
        };
        let Ok(Opened::Ready { parts, .. }) = Parts::open_or_create(&self.path(name), &identity, false) else {
            panic!("{name} can't be made")
        };
        let segment = SegmentName {
            attempt: parts.attempt(),
            rank: 0,
            seq: 0,
        };
        let timing = Timing {
            rank: 0,
            attempt: parts.attempt(),
            phases: Vec::new(),
        };
        parts.write_segment(segment, &mut rows, None, &[], &timing).unwrap();
        parts.merge(&mut Tally::default()).unwrap();
    }

    /// `sluice evaluate` in the folder.
    pub fn evaluate(&self, line: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["OMPI_", "PMI", "SLURM_"].iter().any(|start| text.starts_with(start)) {
                command.env_remove(&name);
            }
        }
        let command = command.current_dir(self.folder.path()).arg("evaluate");
        command.args(line.split_whitespace()).output().unwrap()
    }

    /// What it prints, with this exit code.
    pub fn prints(&self, code: i32, line: &str) -> String {
        let output = self.evaluate(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.prints(0, &format!("{line} --json"))).unwrap()
    }

    /// It is refused, and says all of these.
    pub fn refused(&self, line: &str, parts: &[&str]) {
        let output = self.evaluate(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {stderr}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(stderr.contains(part), "{line}: {part} is not in {stderr}");
        }
    }
}

pub fn row(output: &str) -> Row {
    Row {
        input: "in".into(),
        output: output.into(),
        target_lang: "fra_Latn".into(),
        ..Row::default()
    }
}

pub fn scored(text: &str, logprobs: &[f32], status: Status) -> Row {
    Row {
        input: text.into(),
        ids: logprobs.iter().map(|_| 7).collect(),
        logprobs: logprobs.to_vec(),
        status,
        ..Row::default()
    }
}
