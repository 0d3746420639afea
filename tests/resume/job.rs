//! Starting the program on ranks, and looking at what it leaves.

use super::found::{found, Found};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A job that hasn't ended by then hangs.
const HUNG: Duration = Duration::from_secs(120);

/// The jobs of different tests would only slow each other down, and HDF5 hands its open files' locks to children.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// What is run on a bench.
#[derive(Clone, Copy)]
pub struct Job {
    name: &'static str,
    model: &'static str,
    input: &'static str,
    /// Lines of the input; one that has fewer is read again from its start.
    pub rows: u64,
    /// What results depend on.
    options: &'static str,
}

pub const TRANSLATE: Job = Job {
    name: "translate",
    model: "en-fr-de",
    input: "demo.eng",
    rows: 40,
    options: "--source eng_Latn --target fra_Latn --scores --routing tokens",
};
pub const SCORE: Job = Job {
    name: "score",
    model: "lm",
    input: "guide.txt",
    rows: 150,
    options: "--window 16 --stride 8 --ranks --top 3 --routing tokens",
};
pub const GENERATE: Job = Job {
    name: "generate",
    model: "lm",
    input: "guide.txt",
    rows: 60,
    options: "--max-new-tokens 24 --temperature 0.9 --top-p 0.95 --seed 5 --scores --routing tokens",
};

impl Job {
    /// The same over so many rows.
    pub const fn over(self, rows: u64) -> Job {
        Job { rows, ..self }
    }
}

/// A folder with a job's input and references, for one test.
pub struct Bench {
    pub job: Job,
    folder: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// How a job is started, besides its options.
#[derive(Clone, Default)]
pub struct Start<'a> {
    pub ranks: usize,
    /// A variable and its value for one rank, or for all.
    pub variable: Option<(&'a str, &'a str, Option<usize>)>,
    pub stdin: Option<&'a str>,
}

/// What a job said and how it ended.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A job at work.
pub struct Running {
    pub child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

impl Bench {
    /// One to translate on; none (and a line saying so) without `mpirun`.
    pub fn new() -> Option<Bench> {
        Bench::of(TRANSLATE)
    }

    /// The same for another job.
    pub fn of(job: Job) -> Option<Bench> {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if Command::new("mpirun").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("SLUICE_NO_SKIP").is_none(),
                "mpirun is not there, and SLUICE_NO_SKIP is set"
            );
            eprintln!("skipped: mpirun is not there");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        for name in [job.input, "demo.fra", "demo.deu"] {
            let text = fs::read_to_string(here("inputs/demo").join(name)).expect("the demo");
            let lines: Vec<&str> = text.lines().cycle().take(job.rows as usize).collect();
            fs::write(folder.path().join(name), lines.join("\n") + "\n").expect("written");
        }
        Some(Bench {
            job,
            folder,
            _turn: turn,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The usual options and then `more`, for the output `out`.
    pub fn start(&self, start: &Start, out: &str, more: &str) -> Running {
        let path = |name: &str| self.path(name).display().to_string();
        let input = match start.stdin {
            Some(_) => "-".to_owned(),
            None => path(self.job.input),
        };
        let Job {
            name, model, options, ..
        } = self.job;
        let more = format!("{options} --threads 1 --segment-seconds 0.1 {more}");
        let mut options: Vec<String> = [name.into(), input, "-o".into(), path(out)].into();
        options.extend(["-m".into(), here("inputs").join(model).display().to_string()]);
        options.extend(more.split_whitespace().map(str::to_owned));
        let mut command = Command::new("mpirun");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if ["OMPI_", "PMI", "SLURM_", "RUST_LOG", "SLUICE_"]
                .iter()
                .any(|s| name.starts_with(s))
            {
                command.env_remove(name);
            }
        }
        command
            .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
            .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.args(["--oversubscribe", "--bind-to", "none"]);
        // A part of the command for each rank, so that one of them can get the variable.
        for rank in 0..start.ranks {
            command.args((rank > 0).then_some(":")).args(["-n", "1"]);
            if let Some((name, value, _)) = start.variable.filter(|(.., to)| to.is_none_or(|to| to == rank)) {
                command.args(["env", &format!("{name}={value}")]);
            }
            command.arg(env!("CARGO_BIN_EXE_sluice")).args(&options);
        }
        static JOBS: AtomicU32 = AtomicU32::new(0);
        let number = JOBS.fetch_add(1, Ordering::SeqCst);
        let (stdout, stderr) = (
            self.path(&format!("stdout-{number}")),
            self.path(&format!("stderr-{number}")),
        );
        let stdin = match start.stdin {
            Some(text) => {
                fs::write(self.path("stdin"), text).expect("written");
                File::open(self.path("stdin")).expect("stdin").into()
            }
            None => Stdio::null(),
        };
        command.stdin(stdin);
        command
            .stdout(File::create(&stdout).expect("a file"))
            .stderr(File::create(&stderr).expect("a file"));
        let child = command.spawn().expect("mpirun");
        Running { child, stdout, stderr }
    }

    /// Starts and waits.
    pub fn run(&self, start: &Start, out: &str, more: &str) -> Ended {
        self.start(start, out, more).wait()
    }

    /// Runs to the end without trouble.
    pub fn done(&self, ranks: usize, out: &str, more: &str) -> Ended {
        let start = Start {
            ranks,
            ..Start::default()
        };
        let ended = self.run(&start, out, more);
        assert_eq!(ended.code, Some(0), "{out} {more}: {}", ended.stderr);
        ended
    }

    /// Rows in the segments that have a record.
    pub fn kept(&self, out: &str) -> u64 {
        let Ok(entries) = fs::read_dir(self.path(&format!("{out}.parts"))) else {
            return 0;
        };
        let paths = entries.flatten().map(|entry| entry.path());
        let records = paths.filter(|p| p.extension().is_some_and(|e| e == "json") && !p.ends_with("job.json"));
        // A record that is just being written has another name until it is whole.
        let rows = |path: PathBuf| json(&path)["rows"].as_u64().expect("rows");
        records.map(rows).sum()
    }

    /// Goes on with the same job under other conditions, and checks that what was finished is not computed again, that
    /// nothing is left over, and that the result is that of `plain`.
    pub fn resume(&self, ranks: usize, out: &str, more: &str, plain: &[Found]) {
        let kept = self.kept(out);
        let (finished, rows) = (self.path(out).exists(), self.job.rows);
        let report = self.path(&format!("{out}.json"));
        let _ = fs::remove_file(&report);
        let ended = self.done(ranks, out, &format!("{more} --report {}", report.display()));
        if finished {
            assert!(ended.stdout.contains("is finished already"), "{}", ended.stdout);
        } else {
            let said = format!("resuming: {kept} of {rows} rows are kept");
            assert_eq!(
                ended.stderr.contains(&said),
                kept > 0,
                "{out}: {said}: {}",
                ended.stderr
            );
            assert_eq!(json(&report)["results"]["rows"].as_u64(), Some(rows - kept), "{out}");
        }
        self.same(out, plain);
    }

    /// The output is there, equal to `plain`, and nothing else.
    pub fn same(&self, out: &str, plain: &[Found]) {
        let here = found(&self.path(out));
        for (here, plain) in here.iter().zip(plain) {
            assert!(here == plain, "{out}: {} differs from {}", here.0, plain.0);
        }
        assert_eq!(here.len(), plain.len(), "{out}");
        for left in ["parts", "merging", "parts.merged", "stdin.txt"] {
            assert!(!self.path(&format!("{out}.{left}")).exists(), "{out}.{left} is left");
        }
    }
}

impl Running {
    /// Waits for the end.
    pub fn wait(mut self) -> Ended {
        let since = Instant::now();
        let status = loop {
            match self.child.try_wait().expect("a child") {
                Some(status) => break status,
                None if since.elapsed() > HUNG => {
                    let ranks = self.ranks();
                    kill("KILL", ranks.into_iter().chain([self.child.id()]));
                    panic!(
                        "the job hangs: {}",
                        fs::read_to_string(&self.stderr).unwrap_or_default()
                    );
                }
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        self.ended(status)
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned();
        Ended {
            code: status.code(),
            stdout: text(&self.stdout),
            stderr: text(&self.stderr),
        }
    }

    /// Waits until `there`; false if the job ended before.
    pub fn until(&mut self, mut there: impl FnMut(&Running) -> bool) -> bool {
        loop {
            if there(self) {
                return true;
            }
            if self.child.try_wait().expect("a child").is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has the job said this?
    pub fn said(&self, text: &str) -> bool {
        String::from_utf8_lossy(&fs::read(&self.stderr).unwrap_or_default()).contains(text)
    }

    /// The ranks' processes, in rank order.
    pub fn ranks(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
                continue;
            };
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let parent = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.split(' ').nth(1)?.parse().ok());
            if parent == Some(self.child.id()) {
                let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
                let rank = String::from_utf8_lossy(&environment)
                    .split('\0')
                    .find_map(|v| v.strip_prefix("OMPI_COMM_WORLD_RANK=")?.parse::<u32>().ok());
                found.extend(rank.map(|rank| (rank, pid)));
            }
        }
        found.sort_unstable();
        found.into_iter().map(|(_, pid)| pid).collect()
    }
}

impl Ended {
    /// The lines that tell of an error.
    pub fn errors(&self) -> Vec<&str> {
        self.stderr
            .lines()
            .filter(|line| line.starts_with("sluice: error:"))
            .collect()
    }
}

/// Sends a signal to processes, and waits until they are gone if it is KILL.
pub fn kill(signal: &str, processes: impl IntoIterator<Item = u32>) {
    let processes: Vec<String> = processes.into_iter().map(|pid| pid.to_string()).collect();
    let killed = Command::new("kill")
        .arg(format!("-{signal}"))
        .args(&processes)
        .stderr(Stdio::null())
        .status();
    killed.expect("kill");
    let alive = |pid: &String| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
    };
    while signal == "KILL" && processes.iter().any(alive) {
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub fn json(path: &Path) -> serde_json::Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
