//! A folder to run jobs in, and what such a run said.

use sluicegate::results::{Results, Row};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;
use tempfile::TempDir;

/// A run above this many seconds hangs. The slowest of these takes a minute on one busy core.
const PATIENCE: u32 = 120;

/// One job at a time: ranks that wait for messages take whole cores from each other.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The bundled checkpoint and corpus.
pub fn bundled(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(path)
}

/// Something that is not part of the repository; nothing, and a line saying so, where it is absent.
pub fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SLUICE_SHARED").map(PathBuf::from);
    let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let found = root.join(path);
    if !found.exists() {
        eprintln!("skipped: {} is not there", found.display());
        return None;
    }
    Some(found)
}

/// A temporary folder for inputs and outputs.
pub struct Place(TempDir);

/// How a run ended and what it printed.
#[derive(Debug)]
pub struct End {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// A folder; nothing, and a line saying so, where no ranks can be started.
    pub fn new() -> Option<Place> {
        static MPIRUN: OnceLock<bool> = OnceLock::new();
        let there = *MPIRUN.get_or_init(|| Command::new("mpirun").arg("--version").output().is_ok());
        if !there {
            assert!(
                std::env::var_os("SLUICE_NO_SKIP").is_none(),
                "mpirun is not there, and SLUICE_NO_SKIP is set"
            );
            eprintln!("skipped: mpirun is not there");
            return None;
        }
        Some(Place(tempfile::tempdir().expect("a folder")))
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A path in it, as an argument.
    pub fn arg(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Writes a file into it.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    /// Whether a run has left this file, or its parts.
    pub fn left(&self, out: &str) -> bool {
        self.path(out).exists() || self.path(&format!("{out}.parts")).exists()
    }

    /// `mpirun -n RANKS sluice translate INPUT --model MODEL --output OUT FLAGS`, a thread a rank.
    pub fn translate(&self, ranks: usize, model: &Path, input: &Path, out: &str, flags: &str) -> End {
        self.run_job("translate", ranks, model, input, out, flags)
    }

    /// The same with another job.
    pub fn run_job(&self, job: &str, ranks: usize, model: &Path, input: &Path, out: &str, flags: &str) -> End {
        self.start(ranks, &[], None, &self.job_of(job, model, input, out, flags))
    }

    /// The same, which must succeed; gives the rows.
    #[track_caller]
    pub fn rows(&self, ranks: usize, model: &Path, input: &Path, out: &str, flags: &str) -> Vec<Row> {
        self.translate(ranks, model, input, out, flags).ok();
        read(&self.path(out))
    }

    /// The same, which must be refused: exit code 2, one error, which says all of `words`, and nothing left behind.
    #[track_caller]
    pub fn refused(&self, ranks: usize, model: &Path, input: &Path, flags: &str, words: &[&str]) {
        let end = self.translate(ranks, model, input, "refused.h5", flags);
        end.refused(words);
        assert!(!self.left("refused.h5"), "something is left behind: {words:?}");
    }

    /// The arguments of a translation.
    pub fn job(&self, model: &Path, input: &Path, out: &str, flags: &str) -> Vec<String> {
        self.job_of("translate", model, input, out, flags)
    }

    /// The arguments of a job.
    pub fn job_of(&self, job: &str, model: &Path, input: &Path, out: &str, flags: &str) -> Vec<String> {
        let out = self.arg(out);
        let (model, input) = (model.display().to_string(), input.display().to_string());
        let fixed = [job, &input, "--model", &model, "--output", &out];
        let flags = flags.split_whitespace();
        fixed.into_iter().chain(flags).map(str::to_string).collect()
    }

    /// Starts ranks with these arguments, environment and standard input.
    pub fn start(&self, ranks: usize, env: &[(&str, &str)], stdin: Option<&Path>, arguments: &[String]) -> End {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "10", &PATIENCE.to_string(), "mpirun", "--oversubscribe"])
            .args(["--bind-to", "none", "-n", &ranks.to_string()])
            .arg(env!("CARGO_BIN_EXE_sluice"))
            .args(arguments);
        let of_ranks = ["translate", "score", "generate"].contains(&arguments[0].as_str());
        if of_ranks && !arguments.iter().any(|a| a == "--threads") {
            command.args(["--threads", "1"]);
        }
        self.run(command, env, stdin)
    }

    /// Starts one job whose ranks have command lines of their own, so many of each.
    pub fn mixed(&self, commands: &[(usize, Vec<String>)]) -> End {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "10", &PATIENCE.to_string(), "mpirun", "--oversubscribe"])
            .args(["--bind-to", "none"]);
        for (i, (ranks, arguments)) in commands.iter().enumerate() {
            command
                .args((i > 0).then_some(":"))
                .args(["-n", &ranks.to_string(), env!("CARGO_BIN_EXE_sluice")])
                .args(arguments)
                .args(["--threads", "1"]);
        }
        self.run(command, &[], None)
    }

    /// `sluice ARGUMENTS`, alone.
    pub fn sluice(&self, env: &[(&str, &str)], arguments: &[&str]) -> End {
        let mut command = Command::new("timeout");
        command
            .args(["-k", "10", &PATIENCE.to_string(), env!("CARGO_BIN_EXE_sluice")])
            .args(arguments);
        self.run(command, env, None)
    }

    /// `mpirun -n 1 sluice ARGUMENTS`, which may take no more than so many MiB of addresses.
    pub fn limited(&self, mebibytes: usize, arguments: &[String]) -> End {
        let limit = format!("ulimit -v {}; exec \"$@\"", mebibytes << 10);
        let mut command = Command::new("timeout");
        command
            .args([
                "-k",
                "10",
                &PATIENCE.to_string(),
                "mpirun",
                "--bind-to",
                "none",
                "-n",
                "1",
            ])
            .args(["sh", "-c", &limit, "sh", env!("CARGO_BIN_EXE_sluice")])
            .args(arguments)
            .args(["--threads", "1"]);
        self.run(command, &[], None)
    }

    /// `sluice ARGUMENTS` as a member of a control group.
    pub fn grouped(&self, group: &Path, arguments: &[String]) -> End {
        let join = format!("echo $$ > {}/cgroup.procs && exec \"$@\"", group.display());
        let mut command = Command::new("timeout");
        command
            .args(["-k", "10", &PATIENCE.to_string(), "sh", "-c", &join, "sh"])
            .arg(env!("CARGO_BIN_EXE_sluice"))
            .args(arguments)
            .args(["--threads", "2"]);
        self.run(command, &[], None)
    }

    /// What `sluice show` prints of an output.
    pub fn show(&self, out: &str, flags: &[&str]) -> String {
        let path = self.arg(out);
        let arguments: Vec<&str> = ["show", &path].iter().chain(flags).copied().collect();
        self.sluice(&[], &arguments).ok()
    }

    fn run(&self, mut command: Command, env: &[(&str, &str)], stdin: Option<&Path>) -> End {
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Files, not pipes: a rank that outlives its launcher would keep a pipe open for ever.
        let said = tempfile::tempdir().expect("a folder");
        let (out, err) = (said.path().join("out"), said.path().join("err"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let starts = ["OMPI_COMM_", "PMI", "SLURM_", "RUST_LOG", "SLUICE_CRASH_AT"];
            if starts.iter().any(|start| name.starts_with(start)) {
                command.env_remove(name);
            }
        }
        for name in ["OMPI", "PRTE"] {
            command.env(format!("{name}_ALLOW_RUN_AS_ROOT"), "1");
            command.env(format!("{name}_ALLOW_RUN_AS_ROOT_CONFIRM"), "1");
        }
        let started = Instant::now();
        let status = command
            .env("OMPI_MCA_btl_vader_single_copy_mechanism", "none")
            .env("OMPI_MCA_mpi_yield_when_idle", "1")
            .envs(env.iter().copied())
            .stdin(stdin.map_or_else(Stdio::null, |path| File::open(path).expect("a file").into()))
            .stdout(File::create(&out).expect("a file"))
            .stderr(File::create(&err).expect("a file"))
            .status()
            .expect("timeout starts");
        let text = |path| String::from_utf8_lossy(&fs::read(path).expect("a file")).into_owned();
        let end = End {
            code: status.code().unwrap_or(-1),
            stdout: text(&out),
            stderr: text(&err),
        };
        // By the clock: the exit code 137 is also that of a rank that was killed.
        let hangs = started.elapsed().as_secs() >= u64::from(PATIENCE);
        assert!(!hangs, "hangs: {command:?}: {end:#?}");
        end
    }
}

impl End {
    /// Done: exit code 0. Gives what was printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.errors()), (0, 0), "{self:#?}");
        self.stdout
    }

    /// Lines that report an error.
    pub fn errors(&self) -> usize {
        self.stderr.matches("sluice: error:").count()
    }

    /// Refused or failed: exit code 2 and one error, which says all of `words`.
    #[track_caller]
    pub fn refused(&self, words: &[&str]) {
        assert_eq!((self.code, self.errors()), (2, 1), "{words:?}: {self:#?}");
        self.says(words);
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
    }

    /// Standard error says all of `words`.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        for word in words {
            assert!(self.stderr.contains(word), "{word:?} is not in {self:#?}");
        }
    }
}

/// All rows of a results file, which must stand in order: several outputs of an input row share its number.
#[track_caller]
pub fn read(out: &Path) -> Vec<Row> {
    let results = Results::open(out).expect("results");
    let rows = results.read(0..results.rows()).expect("rows");
    let outputs = results.identity().outputs;
    let in_order = rows.iter().zip(0..).all(|(row, i)| row.index == i / outputs);
    assert!(in_order, "rows are in order");
    rows
}
