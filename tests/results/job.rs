//! A job of small rows: written in segments, merged, and looked at.

use serde_json::json;
use sluicegate::job;
use sluicegate::job::show::{ShowFormat, ShowOptions};
use sluicegate::results::{
    parts_path, DoneRows, JobIdentity, Opened, Parts, Phase, RoutingLayout, Row, RowRoutes, SegmentName, Status,
    StepCounts, Tally, Timing,
};
use std::path::{Path, PathBuf};
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// HDF5 opens files so that a child process inherits them with their locks: while a test starts one, none other runs.
static CHILDREN: RwLock<()> = RwLock::new(());

pub struct Folder<Gate> {
    temporary: tempfile::TempDir,
    _gate: Gate,
}

impl<Gate> Folder<Gate> {
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }
}

/// A folder for a test that starts no child process.
pub fn folder() -> Folder<RwLockReadGuard<'static, ()>> {
    let gate = CHILDREN.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    Folder {
        temporary: tempfile::tempdir().expect("a folder"),
        _gate: gate,
    }
}

/// A folder for a test that does.
pub fn folder_alone() -> Folder<RwLockWriteGuard<'static, ()>> {
    let gate = CHILDREN.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    Folder {
        temporary: tempfile::tempdir().expect("a folder"),
        _gate: gate,
    }
}

/// A small generator, so that "random" splits are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

pub fn identity(rows: u64) -> JobIdentity {
    JobIdentity {
        job: "translate".into(),
        fields: json!({"source": "eng_Latn", "target": "fra_Latn", "num_beams": 1})
            .as_object()
            .cloned()
            .unwrap_or_default(),
        config: json!({"batch_tokens": 512}),
        command: "sluice translate --source eng_Latn".into(),
        model_sha256: "00ff".into(),
        outputs: 1,
        rows,
    }
}

pub fn layout() -> RoutingLayout {
    RoutingLayout {
        encoder_layers: vec!["encoder.layers.1".into(), "encoder.layers.3".into()],
        decoder_layers: vec!["decoder.layers.1".into()],
        experts: 4,
        top_k: 2,
    }
}

/// Row `index`, every field telling its number; some blank, some without routes.
pub fn row(index: u64) -> Row {
    let tokens = (index % 5) as usize;
    let blank = index % 7 == 3;
    let (encoder, decoder) = ((tokens + 1) * 4, tokens * 2);
    Row {
        index,
        id: (index % 3 != 1).then(|| format!("doc-{index}")),
        input: if blank {
            " ".into()
        } else {
            format!("line {index} \u{2028} é\t{}", "x".repeat(index as usize % 50))
        },
        output: if blank { String::new() } else { format!("ligne {index}") },
        status: if blank { Status::Blank } else { Status::Ok },
        score: -(index as f32) / 3.0,
        ids: (0..tokens as u32).map(|token| token * 1000 + index as u32).collect(),
        logprobs: (0..tokens).map(|token| -0.1 * token as f32).collect(),
        ranks: (0..tokens as u32).map(|token| 1 + token * index as u32).collect(),
        top_ids: (0..2 * tokens as u32).map(|i| i * 7 + index as u32).collect(),
        top_logprobs: (0..2 * tokens).map(|i| -0.01 * i as f32).collect(),
        source_lang: "eng_Latn".into(),
        target_lang: if index.is_multiple_of(2) {
            "fra_Latn".into()
        } else {
            "deu_Latn".into()
        },
        routes: (!blank).then(|| RowRoutes {
            encoder_ids: (0..encoder).map(|i| ((i + index as usize) % 4) as u16).collect(),
            encoder_weights: (0..encoder).map(|i| i as f32 / 8.0 + index as f32).collect(),
            decoder_ids: (0..decoder).map(|i| ((i + 3 * index as usize) % 4) as u16).collect(),
            decoder_weights: (0..decoder).map(|i| i as f32 / 16.0).collect(),
        }),
    }
}

/// What row `index` adds to the trace: its encoding in step `index / 10`, then a decoding step a token.
pub fn trace(index: u64) -> Vec<StepCounts> {
    let entry = |step, phase, counts| StepCounts {
        attempt: 1,
        group: 0,
        step,
        phase,
        counts,
    };
    let mut steps = vec![entry(
        index / 10,
        Phase::Encode,
        (0..8).map(|i| (i + index as u32) % 3).collect(),
    )];
    steps.extend((0..index % 5).map(|token| entry(index / 10 + token, Phase::Decode, vec![1, 0, index as u32 % 2, 2])));
    steps
}

pub fn open(out: &Path, rows: u64) -> (Parts, DoneRows) {
    match Parts::open_or_create(out, &identity(rows), false).expect("open") {
        Opened::Ready { parts, done, .. } => (parts, done),
        Opened::AlreadyFinished => panic!("{} is finished", out.display()),
    }
}

/// A segment without a trace or times.
pub fn write_plain(parts: &Parts, rank: u32, mut rows: Vec<Row>) {
    let name = SegmentName {
        attempt: parts.attempt(),
        rank,
        seq: 0,
    };
    parts
        .write_segment(name, &mut rows, None, &[], &Timing::default())
        .expect("a segment");
}

pub fn write(parts: &Parts, rank: u32, seq: u32, mut rows: Vec<Row>) -> PathBuf {
    let steps: Vec<_> = rows.iter().flat_map(|row| trace(row.index)).collect();
    let timing = Timing {
        rank,
        attempt: parts.attempt(),
        phases: vec![
            ("gate".into(), f64::from(seq) + 0.5, 10),
            ("experts".into(), f64::from(rank), 1 << 40),
        ],
    };
    let name = SegmentName {
        attempt: parts.attempt(),
        rank,
        seq,
    };
    parts
        .write_segment(name, &mut rows, Some(&layout()), &steps, &timing)
        .expect("a segment");
    parts
        .dir()
        .join(format!("a{:04}-r{rank:05}-s{seq:06}.h5", parts.attempt()))
}

/// Rows 0 to `rows` in segments as `dice` fall: shuffled inside windows, over four ranks.
pub fn run_split(out: &Path, rows: u64, dice: &mut Dice) {
    let (parts, _) = open(out, rows);
    let mut order: Vec<u64> = (0..rows).collect();
    for i in (1..order.len()).rev() {
        let near = (i as u64).saturating_sub(40);
        order.swap(i, (near + dice.below(i as u64 - near + 1)) as usize);
    }
    let mut seq = 0;
    while !order.is_empty() {
        let take = (1 + dice.below(60) as usize).min(order.len());
        let rows: Vec<Row> = order.drain(..take).map(row).collect();
        write(&parts, dice.below(4) as u32, seq, rows);
        seq += 1;
    }
    assert!(parts.is_complete().expect("records"));
    let summary = parts.merge(&mut Tally::default()).expect("a merge");
    assert_eq!(
        (summary.rows, summary.segments as u32, summary.already),
        (rows, seq, false)
    );
    assert!(!parts_path(out).exists());
}

pub fn show(path: &Path, format: ShowFormat, summary: bool) -> String {
    let mut to = Vec::new();
    job::show::run(
        &ShowOptions {
            path: path.to_owned(),
            format,
            summary,
        },
        &mut to,
    )
    .expect("shown");
    String::from_utf8(to).expect("UTF-8")
}
