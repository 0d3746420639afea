//! The results room: segments, resume, merge, reading back, `show` and `merge`.

use serde_json::json;
use sluicegate::job;
use sluicegate::job::show::{ShowFormat, ShowOptions};
use sluicegate::results::{
    merge, parts_path, DoneRows, JobIdentity, Judge, Metric, MetricValue, Opened, Parts, Phase, Results, RoutingLayout,
    Row, RowRoutes, SegmentName, Status, StepCounts, Tally, Timing,
};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// HDF5 opens files so that a child process inherits them with their locks: while a test starts one, none other runs.
static CHILDREN: RwLock<()> = RwLock::new(());

struct Folder<Gate> {
    temporary: tempfile::TempDir,
    _gate: Gate,
}

impl<Gate> Folder<Gate> {
    fn path(&self) -> &Path {
        self.temporary.path()
    }
}

/// A folder for a test that starts no child process.
fn folder() -> Folder<RwLockReadGuard<'static, ()>> {
    let gate = CHILDREN.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    Folder {
        temporary: tempfile::tempdir().expect("a folder"),
        _gate: gate,
    }
}

/// A folder for a test that does.
fn folder_alone() -> Folder<RwLockWriteGuard<'static, ()>> {
    let gate = CHILDREN.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    Folder {
        temporary: tempfile::tempdir().expect("a folder"),
        _gate: gate,
    }
}

/// A small generator, so that "random" splits are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

fn identity(rows: u64) -> JobIdentity {
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

fn layout() -> RoutingLayout {
    RoutingLayout {
        encoder_layers: vec!["encoder.layers.1".into(), "encoder.layers.3".into()],
        decoder_layers: vec!["decoder.layers.1".into()],
        experts: 4,
        top_k: 2,
    }
}

/// Row `index`, every field telling its number; some blank, some without routes.
fn row(index: u64) -> Row {
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
fn trace(index: u64) -> Vec<StepCounts> {
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

fn open(out: &Path, rows: u64) -> (Parts, DoneRows) {
    match Parts::open_or_create(out, &identity(rows), false).expect("open") {
        Opened::Ready { parts, done, .. } => (parts, done),
        Opened::AlreadyFinished => panic!("{} is finished", out.display()),
    }
}

fn write(parts: &Parts, rank: u32, seq: u32, mut rows: Vec<Row>) -> PathBuf {
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

/// Every dataset of a file but the timing: its path, shape and bytes as h5dump-like raw values.
fn datasets(path: &Path) -> Vec<(String, Vec<usize>, Vec<u8>)> {
    fn walk(group: &hdf5::Group, found: &mut Vec<(String, Vec<usize>, Vec<u8>)>) {
        for data in group.datasets().expect("datasets") {
            use hdf5::types::{FloatSize, IntSize, TypeDescriptor, VarLenUnicode};
            macro_rules! bytes {
                ($t:ty) => {
                    data.read_raw::<$t>()
                        .expect("values")
                        .iter()
                        .flat_map(|value| value.to_le_bytes())
                        .collect()
                };
            }
            let bytes: Vec<u8> = match data.dtype().and_then(|kind| kind.to_descriptor()).expect("a type") {
                TypeDescriptor::Unsigned(IntSize::U1) => bytes!(u8),
                TypeDescriptor::Unsigned(IntSize::U2) => bytes!(u16),
                TypeDescriptor::Unsigned(IntSize::U4) => bytes!(u32),
                TypeDescriptor::Unsigned(IntSize::U8) => bytes!(u64),
                TypeDescriptor::Float(FloatSize::U4) => bytes!(f32),
                TypeDescriptor::Float(FloatSize::U8) => bytes!(f64),
                TypeDescriptor::VarLenUnicode => {
                    let texts = data.read_raw::<VarLenUnicode>().expect("texts");
                    texts
                        .iter()
                        .flat_map(|text| [text.as_bytes(), b"\0"].concat())
                        .collect()
                }
                other => panic!("{} has the type {other}", data.name()),
            };
            for name in ["long_name", "units"] {
                assert!(data.attr(name).is_ok(), "{} has no {name}", data.name());
            }
            found.push((data.name(), data.shape(), bytes));
        }
        for inner in group.groups().expect("groups") {
            if inner.name() != "/timing" {
                walk(&inner, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(&hdf5::File::open(path).expect("a file"), &mut found);
    found
}

/// Rows 0 to `rows` in segments as `dice` fall: shuffled inside windows, over four ranks.
fn run_split(out: &Path, rows: u64, dice: &mut Dice) {
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

#[test]
fn merged_file_does_not_depend_on_the_split() {
    let folder = folder();
    let mut dice = Dice(1);
    let mut first = None;
    for round in 0..4 {
        let out = folder.path().join(format!("{round}.h5"));
        run_split(&out, 300, &mut dice);
        let found = datasets(&out);
        assert!(found.len() > 20);
        assert_eq!(first.get_or_insert_with(|| found.clone()), &found);
        let results = Results::open(&out).expect("results");
        let rows: Vec<Row> = results.blocks(64).flat_map(|block| block.expect("a block")).collect();
        assert!(rows.iter().eq((0..300).map(row).collect::<Vec<_>>().iter()));
        assert_eq!(results.tokens(), 600);
        assert_eq!(results.identity(), &identity(300));
        assert_eq!(results.attribute("job").expect("job"), "translate");
        assert_eq!(results.attribute("file_time").expect("time").len(), 20);
    }
}

#[test]
fn rows_span_several_windows() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let rows = 40_000;
    let (parts, _) = open(&out, rows);
    for part in 0..3u32 {
        write(
            &parts,
            part,
            0,
            (0..rows)
                .filter(|index| index % 3 == u64::from(part))
                .map(row)
                .collect(),
        );
    }
    parts.merge(&mut Tally::default()).expect("a merge");
    let results = Results::open(&out).expect("results");
    assert_eq!(results.rows(), rows);
    for at in [0, 16_383, 16_384, 32_767, 32_768, 39_999] {
        assert_eq!(results.read(at..at + 1).expect("a row"), [row(at)]);
    }
    assert_eq!(results.read(39_998..50_000).expect("rows"), [row(39_998), row(39_999)]);
}

#[test]
fn expert_counts_add_up() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    run_split(&out, 100, &mut Dice(9));
    let results = Results::open(&out).expect("results");
    assert_eq!(results.routing(), Some(&layout()));
    for phase in Phase::ALL {
        let mut plain: std::collections::BTreeMap<u64, Vec<u32>> = Default::default();
        for step in (0..100).flat_map(trace).filter(|step| step.phase == phase) {
            let sum = plain.entry(step.step).or_insert_with(|| vec![0; step.counts.len()]);
            sum.iter_mut().zip(&step.counts).for_each(|(sum, count)| *sum += count);
        }
        let steps = results.read_steps(phase, 0..u64::MAX).expect("steps");
        assert!(steps
            .iter()
            .map(|step| (step.step, &step.counts))
            .eq(plain.iter().map(|(step, counts)| (*step, counts))));
        let totals: Vec<u64> = (0..layout().layers(phase).len() * 4)
            .map(|i| plain.values().map(|counts| u64::from(counts[i])).sum())
            .collect();
        assert_eq!(results.expert_totals(phase).expect("totals"), totals);
        assert_eq!(results.steps(phase), plain.len() as u64);
    }
}

#[test]
fn the_last_timing_of_a_rank_counts() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 3);
    write(&parts, 1, 0, vec![row(0)]);
    write(&parts, 1, 1, vec![row(2), row(1)]);
    write(&parts, 0, 7, vec![]);
    parts.merge(&mut Tally::default()).expect("a merge");
    let timing = Results::open(&out)
        .and_then(|results| results.timing())
        .expect("timing");
    let seen: Vec<_> = timing
        .iter()
        .map(|t| (t.attempt, t.rank, t.phase.as_str(), t.seconds, t.bytes))
        .collect();
    assert_eq!(
        seen,
        [
            (1, 0, "gate", 7.5, 10),
            (1, 0, "experts", 0.0, 1 << 40),
            (1, 1, "gate", 1.5, 10),
            (1, 1, "experts", 1.0, 1 << 40)
        ]
    );
}

#[test]
fn resume_keeps_whole_segments_and_drops_torn_ones() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let rows = 50;
    let (parts, done) = open(&out, rows);
    assert_eq!((done.count(), parts.attempt()), (0, 1));
    let paths: Vec<_> = (0..5)
        .map(|part| {
            write(
                &parts,
                part,
                0,
                (0..10).map(|i| row(u64::from(part) * 10 + i)).collect(),
            )
        })
        .collect();
    drop(parts);
    // One segment cut, one changed in the middle, one record cut, one record lost; one stays whole.
    let bytes = fs::read(&paths[0]).expect("bytes");
    fs::write(&paths[0], &bytes[..bytes.len() / 2]).expect("cut");
    let mut bytes = fs::read(&paths[1]).expect("bytes");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&paths[1], &bytes).expect("changed");
    let record = fs::read(paths[2].with_extension("json")).expect("record");
    fs::write(paths[2].with_extension("json"), &record[..record.len() - 9]).expect("cut");
    fs::remove_file(paths[3].with_extension("json")).expect("lost");
    fs::write(paths[4].with_extension("h5.tmp"), b"half").expect("half");

    let refused = merge(&parts_path(&out), &out, &mut Tally::default())
        .expect_err("torn")
        .to_string();
    assert!(refused.contains("run the job's command again"), "{refused}");

    let (parts, done) = open(&out, rows);
    assert_eq!(parts.attempt(), 2);
    assert!(done.ranges().eq(std::iter::once(40..50)));
    assert_eq!(parts.done().expect("records"), done);
    let left: Vec<_> = fs::read_dir(parts.dir())
        .expect("a folder")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left.len(), 4, "{left:?}"); // job.json, lock, one segment and its record
    let joined = Parts::join(&out).expect("another rank");
    assert_eq!(joined.attempt(), 2);
    write(
        &joined,
        0,
        0,
        (0..40).filter(|index| !done.contains(*index)).map(row).collect(),
    );
    parts.merge(&mut Tally::default()).expect("a merge");

    let plain = folder.path().join("plain.h5");
    run_split(&plain, rows, &mut Dice(3));
    assert_eq!(datasets(&out), datasets(&plain));
}

#[test]
fn missing_and_double_rows_are_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 20);
    let first = write(&parts, 0, 0, [0, 1, 2, 5, 6].map(row).to_vec());
    assert!(!parts.is_complete().expect("records"));
    let dir = parts.dir().to_owned();
    let message = parts.merge(&mut Tally::default()).expect_err("missing").to_string();
    assert!(message.contains("15 are missing, first [3, 4, 7, 8, 9]"), "{message}");
    assert!(message.contains("run the job's command again"), "{message}");
    assert!(!out.exists());

    let parts = Parts::join(&out).expect("parts");
    let second = write(&parts, 3, 0, (6..20).map(row).collect());
    let message = merge(&dir, &out, &mut Tally::default())
        .expect_err("double")
        .to_string();
    assert!(message.contains("row 6 is in two segments"), "{message}");
    for path in [first, second] {
        assert!(message.contains(&path.display().to_string()), "{message}");
    }
}

#[test]
fn segments_that_make_no_sense_are_refused() {
    let folder = folder();
    let (parts, _) = open(&folder.path().join("out.h5"), 5);
    let refuse = |rows: &mut [Row], layout: Option<&RoutingLayout>, steps: &[StepCounts]| {
        let name = SegmentName {
            attempt: 1,
            rank: 0,
            seq: 0,
        };
        let error = parts
            .write_segment(name, rows, layout, steps, &Timing::default())
            .expect_err("refused");
        format!("{error:#}")
    };
    let all = layout();
    assert!(refuse(&mut [row(1), row(1)], Some(&all), &[]).contains("row 1 is twice"));
    assert!(refuse(&mut [row(5)], Some(&all), &[]).contains("row 5 is beyond the job's 5 rows"));
    assert!(refuse(&mut [row(0)], None, &[]).contains("without the layers"));
    let mut uneven = row(1);
    uneven.routes.as_mut().expect("routes").encoder_ids.pop();
    assert!(refuse(&mut [uneven], Some(&all), &[]).contains("row 1: 7 expert ids and 8 weights"));
    let mut steps = trace(1);
    steps[0].counts.pop();
    assert!(refuse(&mut [row(1)], Some(&all), &steps).contains("7 expert counts, expected 2 layers x 4 experts"));
    let left = fs::read_dir(parts.dir()).expect("a folder").count();
    assert_eq!(left, 2, "only job.json and lock");
    write(&parts, 0, 0, vec![row(0)]);
    let again = parts.write_segment(
        SegmentName {
            attempt: 1,
            rank: 0,
            seq: 0,
        },
        &mut [],
        None,
        &[],
        &Timing::default(),
    );
    assert!(again.expect_err("twice").to_string().contains("written only once"));
}

#[test]
fn another_job_is_refused_unless_overwritten() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let mut other = identity(4);
    other.fields.insert("num_beams".into(), json!(4));
    let refuse = |identity: &JobIdentity| {
        format!(
            "{:#}",
            Parts::open_or_create(&out, identity, false)
                .map(drop)
                .expect_err("refused")
        )
    };
    let (parts, _) = open(&out, 4);
    write(&parts, 0, 0, (0..4).map(row).collect());
    drop(parts);
    let message = refuse(&other);
    assert!(
        message.contains("num_beams: 1 there, 4 now") && message.contains("--overwrite"),
        "{message}"
    );

    let (parts, done) = open(&out, 4);
    assert_eq!(done.count(), 4);
    parts.merge(&mut Tally::default()).expect("a merge");
    assert!(refuse(&other).contains("num_beams: 1 there, 4 now"));
    assert!(!parts_path(&out).exists());
    // As a kill leaves it in the very act of clearing away.
    let leftover = PathBuf::from(format!("{}.merged", parts_path(&out).display()));
    fs::create_dir(&leftover).expect("a folder");
    let again = Parts::open_or_create(&out, &identity(4), false).expect("open");
    assert!(matches!(again, Opened::AlreadyFinished));
    assert!(!parts_path(&out).exists() && !leftover.exists());

    match Parts::open_or_create(&out, &other, true).expect("overwritten") {
        Opened::Ready {
            parts,
            attempt,
            kept_rows,
            ..
        } => {
            assert_eq!((attempt, kept_rows), (1, 0));
            assert!(!out.exists() && parts.dir().exists());
        }
        Opened::AlreadyFinished => panic!("overwrite must start anew"),
    }
}

#[test]
fn outputs_that_are_not_ours_are_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let refuse = |out: &Path| {
        format!(
            "{:#}",
            Parts::open_or_create(out, &identity(1), false)
                .map(drop)
                .expect_err("refused")
        )
    };
    fs::write(&out, "my thesis").expect("a file");
    assert!(refuse(&out).contains("is not an HDF5 file"));
    drop(hdf5::File::create(&out).expect("HDF5"));
    assert!(refuse(&out).contains("not a result of sluice"));
    assert!(!parts_path(&out).exists());
    assert!(refuse(&folder.path().join("none/out.h5")).contains("there is no folder"));
    assert!(refuse(folder.path()).contains("that is a folder"));
    assert!(matches!(
        Parts::open_or_create(&out, &identity(1), true),
        Ok(Opened::Ready { .. })
    ));
}

#[test]
fn left_over_parts_of_a_finished_job_are_removed() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 2);
    write(&parts, 0, 0, vec![row(0), row(1)]);
    let (dir, copy) = (parts.dir().to_owned(), folder.path().join("copy"));
    let copy_to = |from: &Path, to: &Path| {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    copy_to(&dir, &copy);
    parts.merge(&mut Tally::default()).expect("a merge");
    copy_to(&copy, &dir); // as after a kill between the rename and the removal
    assert!(matches!(
        Parts::open_or_create(&out, &identity(2), false),
        Ok(Opened::AlreadyFinished)
    ));
    assert!(!dir.exists());
    copy_to(&copy, &dir);
    let summary = merge(&dir, &out, &mut Tally::default()).expect("a merge");
    assert!(summary.already && !dir.exists());
}

#[test]
fn a_second_job_is_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 1);
    let message = format!(
        "{:#}",
        Parts::open_or_create(&out, &identity(1), true)
            .map(drop)
            .expect_err("locked")
    );
    assert!(
        message.contains(&format!("pid {} on host ", std::process::id())),
        "{message}"
    );
    let message = format!(
        "{:#}",
        merge(&parts_path(&out), &out, &mut Tally::default()).expect_err("locked")
    );
    assert!(message.contains("another job writes this output"), "{message}");
    drop(parts);
    drop(open(&out, 1));
}

#[test]
fn awkward_texts_come_back() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let texts = [
        "",
        "a\0b",
        "x\u{2028}y\u{85}z",
        "\u{feff}bom",
        "😀 ünïcödé",
        "tab\tcr\rlf\nend",
    ];
    let long = "lang ".repeat(2 << 20);
    let mut rows: Vec<Row> = (0..7)
        .map(|index| {
            let text = texts.get(index).map_or_else(|| long.clone(), |text| (*text).to_owned());
            Row {
                index: index as u64,
                input: text.clone(),
                output: text,
                score: f32::NEG_INFINITY,
                ..Row::default()
            }
        })
        .collect();
    let (parts, _) = open(&out, 7);
    let name = SegmentName {
        attempt: 1,
        rank: 0,
        seq: 0,
    };
    parts
        .write_segment(name, &mut rows, None, &[], &Timing::default())
        .expect("a segment");
    parts.merge(&mut Tally::default()).expect("a merge");
    rows[1].input = "a\u{2400}b".into();
    rows[1].output = "a\u{2400}b".into();
    let results = Results::open(&out).expect("results");
    assert!(!results.has_logprobs() && results.routing().is_none());
    assert!(results.read(0..7).expect("rows") == rows);
    let shown = show(&out, ShowFormat::Text, false);
    assert_eq!(shown.matches('\n').count(), 7);
    assert_eq!(shown.lines().nth(5), Some("tab\tcr lf end"));
    assert_eq!(shown.lines().nth(2), Some("x y z"));
}

#[test]
fn no_rows_make_a_valid_file() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 0);
    assert!(parts.is_complete().expect("records"));
    parts.merge(&mut Tally::default()).expect("a merge");
    let results = Results::open(&out).expect("results");
    assert_eq!((results.rows(), results.tokens(), results.blocks(8).count()), (0, 0, 0));
    assert_eq!(show(&out, ShowFormat::Text, false), "");
    assert!(show(&out, ShowFormat::Text, true).contains("rows     0"));
}

#[test]
fn a_score_job_has_no_output_text() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let mut scoring = identity(1);
    scoring.job = "score".into();
    let Ok(Opened::Ready { parts, .. }) = Parts::open_or_create(&out, &scoring, false) else {
        panic!("not opened")
    };
    write(
        &parts,
        0,
        0,
        vec![Row {
            output: String::new(),
            ..row(0)
        }],
    );
    parts.merge(&mut Tally::default()).expect("a merge");
    assert!(!Results::open(&out).expect("results").has_output());
    assert!(!show(&out, ShowFormat::Jsonl, false).contains("\"output\""));
}

/// Sees rows in order, and says what it is told to say.
struct Told(Vec<Metric>, Vec<u64>);

impl Judge for Told {
    fn see(&mut self, rows: &[Row]) -> anyhow::Result<()> {
        self.1.extend(rows.iter().map(|row| row.index));
        Ok(())
    }

    fn metrics(&mut self) -> anyhow::Result<Vec<Metric>> {
        Ok(self.0.clone())
    }
}

#[test]
fn metrics_are_made_from_all_rows_in_order() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let metric = |name: &str, value| Metric {
        name: name.into(),
        value,
    };
    let (parts, _) = open(&out, 3);
    write(&parts, 0, 0, vec![row(2)]);
    write(&parts, 0, 1, vec![row(0), row(1)]);
    let told = [
        metric("BLEU", MetricValue::Number(33.25)),
        metric("BLEU_signature", MetricValue::Text("nrefs:1|tok:13a".into())),
        metric("tokens", MetricValue::Count(1 << 40)),
    ];
    let mut judge = Told(told.to_vec(), Vec::new());
    parts.merge(&mut judge).expect("a merge");
    assert_eq!(judge.1, [0, 1, 2]);
    assert_eq!(
        Results::open(&out)
            .and_then(|results| results.metrics())
            .expect("metrics"),
        told
    );
    let summary = show(&out, ShowFormat::Text, true);
    for line in [
        "BLEU  33.25",
        "3 ok",
        "tokens   ",
        "gate",
        "batch_tokens = 512",
        "encoder.layers.3",
    ] {
        assert!(summary.contains(line), "{line} is not in\n{summary}");
    }
}

fn show(path: &Path, format: ShowFormat, summary: bool) -> String {
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

#[test]
fn rows_are_shown_in_every_format() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 4);
    write(&parts, 0, 0, (0..4).map(row).collect());
    drop(parts);
    let mut said = Vec::new();
    job::merge::run(&job::merge::MergeOptions { path: parts_path(&out) }, &mut said).expect("a merge");
    assert!(String::from_utf8_lossy(&said).contains("4 rows from 1 segments"));
    assert_eq!(show(&out, ShowFormat::Text, false), "ligne 0\nligne 1\nligne 2\n\n");
    let tsv = show(&out, ShowFormat::Tsv, false);
    assert_eq!(
        tsv.lines().next(),
        Some("index\tstatus\tscore\ttarget_lang\tsource\toutput")
    );
    assert_eq!(
        tsv.lines().nth(2),
        Some("1\tok\t-0.33333334\tdeu_Latn\tline 1   é x\tligne 1")
    );
    let jsonl = show(&out, ShowFormat::Jsonl, false);
    let second: serde_json::Value = serde_json::from_str(jsonl.lines().nth(2).expect("a line")).expect("JSON");
    assert_eq!(second["ids"], json!([2, 1002]));
    assert_eq!(
        (&second["id"], &second["target_lang"], &second["logprobs"][0]),
        (&json!("doc-2"), &json!("fra_Latn"), &json!(-0.0))
    );
    assert!(jsonl
        .lines()
        .nth(1)
        .is_some_and(|line| line.contains("-0.33333334") && !line.contains("\"id\"")));
}

#[test]
fn a_closed_pipe_is_no_error() {
    struct Closed(usize);
    impl std::io::Write for Closed {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::BrokenPipe.into());
            }
            self.0 -= 1;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let folder = folder();
    let out = folder.path().join("out.h5");
    run_split(&out, 500, &mut Dice(5));
    for format in [ShowFormat::Text, ShowFormat::Tsv, ShowFormat::Jsonl] {
        let options = ShowOptions {
            path: out.clone(),
            format,
            summary: false,
        };
        job::show::run(&options, &mut Closed(0)).expect("quiet");
        job::show::run(&options, &mut Closed(1)).expect("quiet");
    }
}

#[test]
fn opening_says_what_is_wrong() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let message = |path: &Path| format!("{:#}", Results::open(path).map(drop).expect_err("refused"));
    assert!(message(&out).contains("cannot open"));
    let (parts, _) = open(&out, 1);
    assert!(message(&out).contains("sluice merge"));
    assert!(message(parts.dir()).contains("sluice merge"));
    write(&parts, 0, 0, vec![row(0)]);
    parts.merge(&mut Tally::default()).expect("a merge");
    let bytes = fs::read(&out).expect("bytes");
    fs::write(&out, &bytes[..bytes.len() / 2]).expect("cut");
    assert!(message(&out).contains("cut off"), "{}", message(&out));
    fs::write(&out, b"").expect("emptied");
    assert!(message(&out).contains("not an HDF5 file"));
}

/// Run by `a_kill_leaves_finished_segments` in a process of its own, which crashes on the way.
#[test]
fn crashing_child() {
    let Some(out) = std::env::var_os("SLUICE_TEST_CRASH_OUT").map(PathBuf::from) else {
        return;
    };
    let (parts, done) = open(&out, 30);
    for part in 0..3 {
        let rows: Vec<Row> = (part * 10..part * 10 + 10)
            .filter(|index| !done.contains(*index))
            .map(row)
            .collect();
        if !rows.is_empty() {
            write(&parts, 0, part as u32, rows);
        }
    }
    parts.merge(&mut Tally::default()).expect("a merge");
}

#[test]
fn a_kill_leaves_finished_segments() {
    let folder = folder_alone();
    let plain = folder.path().join("plain.h5");
    run_split(&plain, 30, &mut Dice(2));
    let moments = [
        ("segment-before-rename:2", 10),
        ("segment-after-rename:2", 10),
        ("record-before-rename:3", 20),
        ("record-after-rename:2", 20),
        ("merge-start", 30),
        ("merge-middle", 30),
        ("merge-before-rename", 30),
        ("merge-after-rename", 30),
    ];
    for (moment, kept) in moments {
        let out = folder.path().join(moment.replace(':', "-")).with_extension("h5");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "crashing_child", "--test-threads=1"])
            .env("SLUICE_TEST_CRASH_OUT", &out)
            .env("SLUICE_CRASH_AT", moment)
            .output()
            .expect("a child");
        assert!(!child.status.success(), "{moment} did not crash");
        if out.exists() {
            assert_eq!(moment, "merge-after-rename");
            assert!(matches!(
                Parts::open_or_create(&out, &identity(30), false),
                Ok(Opened::AlreadyFinished)
            ));
        } else {
            let (parts, done) = open(&out, 30);
            assert_eq!(done.count(), kept, "{moment}");
            write(
                &parts,
                1,
                0,
                (0..30).filter(|index| !done.contains(*index)).map(row).collect(),
            );
            parts.merge(&mut Tally::default()).expect("a merge");
        }
        assert_eq!(datasets(&out), datasets(&plain), "{moment}");
        assert!(!parts_path(&out).exists());
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    assert!(
        left.iter()
            .all(|path| path.extension().is_some_and(|ending| ending == "h5")),
        "{left:?}"
    );
}

#[test]
fn other_readers_can_open_it() {
    let folder = folder_alone();
    if Command::new("h5dump").arg("--version").output().is_err() {
        eprintln!("skipped: h5dump (hdf5-tools) is not there");
        return;
    }
    let out = folder.path().join("out.h5");
    run_split(&out, 12, &mut Dice(4));
    let dump = Command::new("h5dump").arg(&out).output().expect("h5dump");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    let text = String::from_utf8_lossy(&dump.stdout);
    for found in [
        "ligne 11",
        "DATASET \"logprobs\"",
        "H5T_CSET_UTF8",
        "GROUP \"encoder.layers.1\"",
        "ATTRIBUTE \"units\"",
    ] {
        assert!(text.contains(found), "{found} is not in h5dump's output");
    }
}
