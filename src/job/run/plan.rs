//! What a job over a corpus is, settled before any work: checkpoint, input, identity. Rank 0 refuses here.

use super::task::{Setup, Task};
use crate::checkpoint::{Checkpoint, StoredDtype};
use crate::cli::run::{self as flags, OnError};
use crate::corpus::{self, Scan, WindowLimits};
use crate::device::Dtype;
use crate::model::inventory::Owner;
use crate::model::{self, Architecture};
use crate::results::{DoneRows, JobIdentity, MetricValue, Opened as Output, Parts, Results};
use anyhow::{bail, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The name of the input's digest among the fields of a [`JobIdentity`].
const INPUT_SHA256: &str = "input_sha256";

/// A checkpoint and what follows from it; every rank opens its own.
pub struct Opened {
    /// Tensors.
    pub checkpoint: Arc<Checkpoint>,
    /// `config.json`
    pub architecture: Box<dyn Architecture>,
    /// Precision of weights and products.
    pub dtype: Dtype,
}

impl Opened {
    /// Opens and checks a checkpoint; no weights are read. They will be held in `dtype`, or as they are stored.
    ///
    /// # Errors
    /// Anything amiss with it.
    pub fn open(dir: &Path, dtype: Option<flags::Dtype>) -> Result<Opened> {
        let (checkpoint, architecture) = model::open(dir)?;
        let dtype = match (dtype, checkpoint.stored_dtype()) {
            (Some(flags::Dtype::F32), _) => Dtype::F32,
            (Some(flags::Dtype::Int8), _) => Dtype::Int8,
            (Some(flags::Dtype::Bf16), _) | (None, StoredDtype::Bf16) => Dtype::Bf16,
            (None, _) => Dtype::F32,
        };
        Ok(Opened {
            checkpoint,
            architecture,
            dtype,
        })
    }

    /// Refuses a tokenizer with ids that the model doesn't have.
    ///
    /// # Errors
    /// Names the folder and both sizes.
    pub fn check_vocabulary(&self, dir: &Path, tokens: usize) -> Result<()> {
        let vocab_size = self.architecture.shape().vocab_size;
        anyhow::ensure!(
            tokens <= vocab_size,
            "{}: tokenizer.json has ids up to {}, config.json a vocab_size of {vocab_size}: they don't belong together",
            dir.display(),
            tokens - 1
        );
        Ok(())
    }

    /// What the checkpoint is, in lines for people.
    pub fn describe(&self) -> Vec<String> {
        let (checkpoint, architecture) = (&self.checkpoint, &self.architecture);
        let inventory = architecture.inventory(&|name| checkpoint.info(name).is_some());
        let elements = |dense: bool| -> usize {
            let some = inventory.iter().filter(|t| (t.owner == Owner::Dense) == dense);
            some.map(|t| t.elements()).sum()
        };
        let (dense, experts) = (elements(true) as f64, elements(false) as f64);
        let shape = architecture.shape();
        let gib = |elements: f64, bytes: f64| elements * bytes / (1u64 << 30) as f64;
        let mut lines = vec![
            format!(
                "{}, {:.1} M parameters stored in {}: {} MoE layers with {} experts, top-{}",
                architecture.family(),
                (dense + experts) / 1e6,
                checkpoint.stored_dtype().name(),
                shape.moe_layers(),
                shape.experts,
                shape.top_k
            ),
            format!("vocabulary {}", shape.vocab_size),
            format!(
                "weights of each of N ranks: {:.2} GiB + {:.2} GiB / N in bf16, twice that in f32, half in int8; caches come on top",
                gib(dense, 2.0),
                gib(experts, 2.0)
            ),
        ];
        lines.extend(architecture.warnings());
        lines
    }
}

/// What rank 0 tells the others.
#[derive(Default, Serialize, Deserialize)]
pub struct Prepared {
    /// The input; nothing if the job is finished already.
    pub scan: Option<Scan>,
    /// Which start of the job this is.
    pub attempt: u32,
    /// When it was first started, in seconds since 1970.
    pub started: i64,
    /// Finished outputs, as ranges.
    pub done: Vec<(u64, u64)>,
    /// Rows that failed in a job that is finished already.
    pub failed: u64,
}

impl Prepared {
    /// The finished outputs.
    ///
    /// # Errors
    /// When ranges overlap, which they never do.
    pub fn done_rows(&self) -> Result<DoneRows> {
        let mut done = DoneRows::default();
        for &(first, end) in &self.done {
            done.insert(first..end)
                .map_err(|row| anyhow::anyhow!("row {row} is finished twice"))?;
        }
        Ok(done)
    }
}

/// Rank 0, before any work: reads the input once, and opens the output.
///
/// # Errors
/// Everything that can be refused early: see `docs/inputs.md` and `docs/results.md`.
pub fn prepare(task: &impl Task) -> Result<(Prepared, Option<Parts>)> {
    task.check()?;
    let output = &task.run().output;
    let paths = corpus::paths(task.setup().inputs)?;
    if !is_stdin(&paths) {
        return examine(task, &paths);
    }
    let input = stage(output)?;
    let mut found = examine(task, std::slice::from_ref(&input));
    keep_spool(&spool_of(output), &input, &mut found)?;
    found
}

/// Of standard input that was just read, keeps under its name only what belongs to the accepted job: a refused command
/// must not take the place of the input that an unfinished job will need again.
fn keep_spool(spool: &Path, read: &Path, found: &mut Result<(Prepared, Option<Parts>)>) -> Result<()> {
    match found {
        Ok((Prepared { scan: Some(scan), .. }, _)) if read != spool => {
            std::fs::rename(read, spool).with_context(|| format!("{}: cannot be given its name", spool.display()))?;
            if let Some(name) = spool.file_name() {
                scan.files[0].path.set_file_name(name);
            }
        }
        Ok((Prepared { scan: Some(_), .. }, _)) => {}
        found => {
            // Nothing is to be done: neither is needed. Refused: only the one that was just read isn't.
            if found.is_ok() || read != spool {
                let _ = std::fs::remove_file(read);
            }
            if found.is_ok() {
                let _ = std::fs::remove_file(spool);
            }
        }
    }
    Ok(())
}

fn examine(task: &impl Task, paths: &[PathBuf]) -> Result<(Prepared, Option<Parts>)> {
    let args = task.run();
    for path in paths {
        corpus::refuse_overwrite(path, &args.output)?;
    }
    match paths {
        [one] => log::info!("reading {}", one.display()),
        all => log::info!("reading {} files", all.len()),
    }
    let (reading, shared, limits) = (task.reading(), task.shared_settings(), WindowLimits::default());
    let scan = corpus::scan_for_job(paths, &reading, &shared, limits, &mut |_, _| ())?;
    if let (OnError::Fail, Some(refusal)) = (args.on_error, scan.refusal()) {
        bail!("{refusal}");
    }
    task.examine(&scan)?;
    let mut identity = identity(task, &scan)?;
    if scan.rows == 0 && is_stdin(task.setup().inputs) && !args.overwrite {
        suppose_read_before(&mut identity, &args.output);
    }
    Ok(match Parts::open_or_create(&args.output, &identity, args.overwrite)? {
        Output::AlreadyFinished => {
            let failed = failed_rows(&args.output)?;
            (
                Prepared {
                    failed,
                    ..Prepared::default()
                },
                None,
            )
        }
        Output::Ready {
            parts,
            attempt,
            kept_rows,
            done,
        } => {
            if kept_rows > 0 {
                log::info!(
                    "resuming: {kept_rows} of {} rows are kept from earlier starts",
                    identity.rows
                );
            }
            let done = done.ranges().map(|r| (r.start, r.end)).collect();
            (
                Prepared {
                    scan: Some(scan),
                    attempt,
                    started: parts.started(),
                    done,
                    failed: 0,
                },
                Some(parts),
            )
        }
    })
}

/// Standard input is there only once: an empty one beside a finished output that was made of it means what was read then,
/// as it does beside an unfinished one.
fn suppose_read_before(identity: &mut JobIdentity, out: &Path) {
    // What can't be read, and that there is no output, is said where it is opened.
    let Ok(there) = Results::open(out) else { return };
    let there = there.identity();
    let from_stdin = there.config.get("inputs").is_some_and(|inputs| *inputs == json!(["-"]));
    if let Some(digest) = there.fields.get(INPUT_SHA256).filter(|_| from_stdin) {
        identity.fields.insert(INPUT_SHA256.to_string(), digest.clone());
        identity.rows = there.rows;
    }
}

/// Rows that failed in a finished file.
fn failed_rows(out: &Path) -> Result<u64> {
    let metrics = Results::open(out)?.metrics()?;
    let failed = metrics.into_iter().find(|m| m.name == "rows_failed");
    Ok(match failed.map(|m| m.value) {
        Some(MetricValue::Count(n)) => n,
        _ => 0,
    })
}

/// Whether the input is standard input.
pub fn is_stdin(inputs: &[PathBuf]) -> bool {
    matches!(inputs, [one] if one == Path::new("-"))
}

/// Where standard input is kept for all ranks and for a resume: beside the output.
pub fn spool_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".stdin.txt");
    name.into()
}

/// Standard input as a file; an empty one means what an earlier start has spooled.
fn stage(output: &Path) -> Result<PathBuf> {
    let spool = spool_of(output);
    let mut stdin = std::io::stdin().lock();
    let empty = stdin.fill_buf().context("standard input")?.is_empty();
    if empty && spool.exists() {
        return Ok(spool);
    }
    let mut name = output.as_os_str().to_owned();
    name.push(format!(".stdin-{}.txt", std::process::id()));
    let read = PathBuf::from(name);
    corpus::spool(stdin, &read)?;
    Ok(read)
}

/// What the results depend on, and what the file says about the job. Whether rows that cannot be used are skipped isn't
/// among it: a job that has failed on one goes on with `--on-error skip`.
fn identity(task: &impl Task, scan: &Scan) -> Result<JobIdentity> {
    let Setup {
        name,
        run: args,
        arguments,
        opened,
        ..
    } = task.setup();
    let common = [
        (INPUT_SHA256, json!(scan.digest)),
        ("reading", json!(task.reading())),
        ("dtype", json!(dtype_name(opened.dtype))),
        ("routing", json!(args.routing)),
    ];
    let fields: Map<String, Value> = common
        .into_iter()
        .chain(task.fields())
        .map(|(name, value)| (name.to_string(), value))
        .collect();
    let mut config = arguments.clone();
    if let Value::Object(config) = &mut config {
        config.extend(fields.clone());
    }
    Ok(JobIdentity {
        job: name.to_string(),
        fields,
        config,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        model_sha256: opened.checkpoint.sha256()?,
        rows: scan.rows * task.outputs(),
        outputs: task.outputs(),
    })
}

/// The name of a precision, as on the command line.
pub fn dtype_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "f32",
        Dtype::Bf16 => "bf16",
        Dtype::Int8 => "int8",
    }
}
