//! What a translation job is, settled before any work: settings, languages, input, identity. Rank 0 refuses here.

use crate::checkpoint::generation::{EarlyStopping as Stored, GenerationDefaults};
use crate::checkpoint::{Checkpoint, StoredDtype};
use crate::cli::translate::{self as flags, OnError, TranslateArgs};
use crate::corpus::{self, Scan, Tokenizer, WindowLimits};
use crate::decode::search::{EarlyStopping, Settings};
use crate::device::Dtype;
use crate::job::references::References;
use crate::model::inventory::Owner;
use crate::model::{self, Architecture};
use crate::results::{DoneRows, JobIdentity, MetricValue, Opened, Parts, Results};
use anyhow::{bail, ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{json, Map, Value};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};

/// The checkpoint and what follows from it; every rank opens its own.
pub struct Model {
    /// Tensors.
    pub checkpoint: Checkpoint,
    /// `config.json`
    pub architecture: Box<dyn Architecture>,
    /// `tokenizer.json`
    pub tokenizer: Tokenizer,
    /// How to search: the command line over the checkpoint's defaults.
    pub settings: Settings,
    /// Precision of weights and products.
    pub dtype: Dtype,
    /// What the user should know before the run.
    pub warnings: Vec<String>,
}

/// What rank 0 tells the others.
#[derive(Default, Serialize, Deserialize)]
pub struct Prepared {
    /// The input; nothing if the job is finished already.
    pub scan: Option<Scan>,
    /// Which start of the job this is.
    pub attempt: u32,
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

/// What a checkpoint is, in lines for people (`sluice doctor --model`); all that a run would refuse is refused.
///
/// # Errors
/// Anything amiss with the folder.
pub fn describe(dir: &Path) -> Result<Vec<String>> {
    let (checkpoint, architecture, tokenizer) = open_folder(dir)?;
    GenerationDefaults::load(dir)?;
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
        format!(
            "{} languages, vocabulary {}",
            tokenizer.languages().len(),
            shape.vocab_size
        ),
        format!(
            "weights of each of N ranks: {:.2} GiB + {:.2} GiB / N in bf16, twice that in f32, half in int8; caches come on top",
            gib(dense, 2.0),
            gib(experts, 2.0)
        ),
    ];
    lines.extend(architecture.warnings());
    Ok(lines)
}

fn open_folder(dir: &Path) -> Result<(Checkpoint, Box<dyn Architecture>, Tokenizer)> {
    let (checkpoint, architecture) = model::open(dir)?;
    let tokenizer = Tokenizer::load(dir)?;
    let vocab_size = architecture.shape().vocab_size;
    ensure!(
        tokenizer.vocab_size() <= vocab_size,
        "{}: tokenizer.json has ids up to {}, config.json a vocab_size of {vocab_size}: they don't belong together",
        dir.display(),
        tokenizer.vocab_size() - 1
    );
    Ok((checkpoint, architecture, tokenizer))
}

impl Model {
    /// Opens and checks a checkpoint; no weights are read.
    ///
    /// # Errors
    /// Anything amiss with it, or with settings that it doesn't know.
    pub fn open(args: &TranslateArgs) -> Result<Model> {
        let dir = &args.model;
        let (checkpoint, architecture, tokenizer) = open_folder(dir)?;
        let defaults = GenerationDefaults::load(dir)?;
        let mut warnings = architecture.warnings();
        warnings.extend(defaults.not_followed.iter().map(|what| {
            format!(
                "{}: generation_config.json asks for {what}, which is not followed",
                dir.display()
            )
        }));
        let dtype = match (args.dtype, checkpoint.stored_dtype()) {
            (Some(flags::Dtype::F32), _) => Dtype::F32,
            (Some(flags::Dtype::Int8), _) => Dtype::Int8,
            (Some(flags::Dtype::Bf16), _) | (None, StoredDtype::Bf16) => Dtype::Bf16,
            (None, _) => Dtype::F32,
        };
        let settings = settings(args, &defaults, architecture.as_ref())?;
        Ok(Model {
            checkpoint,
            architecture,
            tokenizer,
            settings,
            dtype,
            warnings,
        })
    }
}

/// The command line over the checkpoint's defaults. Lengths count the decoder's start token.
fn settings(args: &TranslateArgs, defaults: &GenerationDefaults, architecture: &dyn Architecture) -> Result<Settings> {
    let (special, vocab_size) = (architecture.special_tokens(), architecture.shape().vocab_size);
    let max_length = match (args.max_new_tokens, args.max_length) {
        (Some(new), _) => new + 1,
        (None, Some(length)) => length,
        (None, None) => defaults.length_limit(1),
    };
    ensure!(
        max_length >= 2,
        "generation_config.json: max_length {max_length} leaves no room for a token behind the start token; give --max-new-tokens"
    );
    let length_penalty = args.length_penalty.unwrap_or(defaults.length_penalty);
    ensure!(
        length_penalty.abs() <= 100.0,
        "length penalty {length_penalty} (--length-penalty, or generation_config.json): expected -100 to 100"
    );
    let least_new = args.min_new_tokens.or(defaults.min_new_tokens).map_or(0, |n| n + 1);
    let min_length = defaults.min_length.unwrap_or(0).max(least_new);
    ensure!(
        min_length <= max_length,
        "--min-new-tokens: outputs of {} tokens at least and {} at most; lower one or raise --max-new-tokens",
        min_length.saturating_sub(1),
        max_length - 1
    );
    let early_stopping = match (args.early_stopping, defaults.early_stopping) {
        (Some(flags::EarlyStopping::True), _) | (None, Stored::True) => EarlyStopping::True,
        (Some(flags::EarlyStopping::False), _) | (None, Stored::False) => EarlyStopping::False,
        (Some(flags::EarlyStopping::Never), _) | (None, Stored::Never) => EarlyStopping::Never,
    };
    let eos = if defaults.eos_token_ids.is_empty() {
        special.eos.clone()
    } else {
        defaults.eos_token_ids.clone()
    };
    let settings = Settings {
        beams: args.num_beams.unwrap_or(defaults.num_beams).max(1),
        max_length,
        min_length,
        length_penalty,
        early_stopping,
        no_repeat_ngram: args.no_repeat_ngram_size.unwrap_or(defaults.no_repeat_ngram_size),
        start: defaults
            .decoder_start_token_id
            .or(special.decoder_start)
            .unwrap_or_default(),
        eos,
        forced_eos: defaults.forced_eos_token_id,
    };
    for id in settings.eos.iter().chain(&settings.forced_eos).chain([&settings.start]) {
        ensure!(
            (*id as usize) < vocab_size,
            "generation_config.json: token {id} is outside the vocabulary of {} (decoder_start_token_id, eos_token_id, \
             forced_eos_token_id)",
            vocab_size
        );
    }
    ensure!(
        settings.candidates() <= vocab_size,
        "--num-beams: {} beams need {} candidates a step, the vocabulary has {}",
        settings.beams,
        settings.candidates(),
        vocab_size
    );
    Ok(settings)
}

/// Rank 0, before any work: reads the input once, checks languages and references, and opens the output.
///
/// # Errors
/// Everything that can be refused early: see `docs/inputs.md` and `docs/results.md`.
pub fn prepare(args: &TranslateArgs, model: &Model) -> Result<(Prepared, Option<Parts>)> {
    flag_languages(args, &model.tokenizer)?;
    let input = stage(args)?;
    let mut found = examine(args, model, &input);
    if args.input == Path::new("-") {
        keep_spool(&spool_of(&args.output), &input, &mut found)?;
    }
    found
}

/// Of standard input that was just read, keeps under its name only what belongs to the accepted job: a refused command
/// must not take the place of the input that an unfinished job will need again.
fn keep_spool(spool: &Path, read: &Path, found: &mut Result<(Prepared, Option<Parts>)>) -> Result<()> {
    match found {
        Ok((Prepared { scan: Some(scan), .. }, _)) if read != spool => {
            std::fs::rename(read, spool).with_context(|| format!("{}: cannot be given its name", spool.display()))?;
            if let Some(name) = spool.file_name() {
                scan.path.set_file_name(name);
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

fn examine(args: &TranslateArgs, model: &Model, input: &Path) -> Result<(Prepared, Option<Parts>)> {
    corpus::refuse_overwrite(input, &args.output)?;
    log::info!("reading {}", input.display());
    let scan = corpus::scan(input, WindowLimits::default(), &mut |_, _| ())?;
    if let (OnError::Fail, Some(refusal)) = (args.on_error, scan.refusal()) {
        bail!("{refusal}");
    }
    languages(args, &scan, &model.tokenizer)?;
    references(args, &scan)?;
    let identity = identity(args, model, &scan)?;
    Ok(match Parts::open_or_create(&args.output, &identity, args.overwrite)? {
        Opened::AlreadyFinished => {
            let failed = failed_rows(&args.output)?;
            (
                Prepared {
                    failed,
                    ..Prepared::default()
                },
                None,
            )
        }
        Opened::Ready {
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
                    done,
                    failed: 0,
                },
                Some(parts),
            )
        }
    })
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

/// Where standard input is kept for all ranks and for a resume: beside the output.
pub fn spool_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".stdin.txt");
    name.into()
}

/// The input as a file: standard input is spooled; an empty one means what an earlier start has spooled.
fn stage(args: &TranslateArgs) -> Result<PathBuf> {
    if args.input != Path::new("-") {
        return Ok(args.input.clone());
    }
    let spool = spool_of(&args.output);
    let mut stdin = std::io::stdin().lock();
    let empty = stdin.fill_buf().context("standard input")?.is_empty();
    if empty && spool.exists() {
        return Ok(spool);
    }
    let mut name = args.output.as_os_str().to_owned();
    name.push(format!(".stdin-{}.txt", std::process::id()));
    let read = PathBuf::from(name);
    corpus::spool(stdin, &read)?;
    Ok(read)
}

/// Every language code that flags name must be one of the tokenizer's.
fn flag_languages(args: &TranslateArgs, tokenizer: &Tokenizer) -> Result<()> {
    for (flag, code) in args
        .source
        .iter()
        .map(|c| ("--source", c))
        .chain(args.target.iter().map(|c| ("--target", c)))
    {
        tokenizer
            .target_lang_id(code)
            .with_context(|| format!("{flag} {code}"))?;
    }
    Ok(())
}

/// Every language code that rows name must be one of the tokenizer's.
fn languages(args: &TranslateArgs, scan: &Scan, tokenizer: &Tokenizer) -> Result<()> {
    for (column, codes) in [("source_lang", &scan.source_langs), ("target_lang", &scan.target_langs)] {
        for (code, line) in codes {
            let place = || format!("{}, line {line}: {column} {code}", scan.path.display());
            tokenizer.target_lang_id(code).with_context(place)?;
        }
    }
    let rows = scan.rows > scan.blank;
    let missing =
        |flag: &Option<String>, line: Option<u64>| line.filter(|_| flag.is_none() && args.on_error == OnError::Fail);
    let nobody = |named: &BTreeMap<String, u64>| named.is_empty() && rows;
    if let Some(line) = missing(&args.source, scan.without_source)
        .or(nobody(&scan.source_langs).then_some(1))
        .filter(|_| args.source.is_none())
    {
        bail!(
            "--source is missing: the language of the input, e.g. --source eng_Latn; {}, line {line}, names no source_lang \
             of its own (a column in TSV and JSONL)",
            scan.path.display()
        );
    }
    let target = args.target.first().cloned();
    if let Some(line) = missing(&target, scan.without_target)
        .or(nobody(&scan.target_langs).then_some(1))
        .filter(|_| target.is_none())
    {
        bail!(
            "--target is missing: the language to translate to, e.g. --target fra_Latn; {}, line {line}, names no \
             target_lang of its own (a column in TSV and JSONL)",
            scan.path.display()
        );
    }
    ensure!(
        args.target.len() < 2 || scan.target_langs.is_empty(),
        "--target names {} languages, and rows of {} name their own: leave one of them out",
        args.target.len(),
        scan.path.display()
    );
    Ok(())
}

/// One reference file for each target, a line for each row.
fn references(args: &TranslateArgs, scan: &Scan) -> Result<()> {
    let (files, targets) = (args.references.len(), args.target.len().max(1));
    ensure!(
        files == 0 || files == targets,
        "--references names {files} files for {targets} target languages: one for each, in their order"
    );
    for path in &args.references {
        let found = References::scan(path)?;
        ensure!(
            found.rows == scan.rows,
            "--references {}: {} lines for {} rows of {}",
            path.display(),
            found.rows,
            scan.rows,
            scan.path.display()
        );
    }
    Ok(())
}

/// What the results depend on, and what the file says about the job.
fn identity(args: &TranslateArgs, model: &Model, scan: &Scan) -> Result<JobIdentity> {
    let s = &model.settings;
    let fields: Map<String, Value> = [
        ("input_sha256", json!(scan.digest)),
        ("source", json!(args.source)),
        ("target", json!(args.target)),
        ("dtype", json!(dtype_name(model.dtype))),
        ("num_beams", json!(s.beams)),
        ("max_length", json!(s.max_length)),
        ("min_length", json!(s.min_length)),
        ("length_penalty", json!(s.length_penalty)),
        (
            "early_stopping",
            json!(format!("{:?}", s.early_stopping).to_lowercase()),
        ),
        ("no_repeat_ngram_size", json!(s.no_repeat_ngram)),
        ("forced_eos_token_id", json!(s.forced_eos)),
        ("on_error", json!(args.on_error)),
        ("scores", json!(args.scores)),
        ("routing", json!(args.routing)),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into_iter()
    .collect();
    let mut config = serde_json::to_value(args)?;
    if let Value::Object(config) = &mut config {
        config.extend(fields.clone());
    }
    Ok(JobIdentity {
        job: "translate".into(),
        fields,
        config,
        command: std::env::args().collect::<Vec<_>>().join(" "),
        model_sha256: model.checkpoint.sha256()?,
        rows: scan.rows * args.target.len().max(1) as u64,
        outputs: args.target.len().max(1) as u64,
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
