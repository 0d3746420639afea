//! The finished file: the same however the rows came, with all that segments held.

use super::datasets::untimed;
use super::job::{folder, identity, layout, open, row, run_split, show, trace, write, Dice};
use sluicegate::job::show::ShowFormat;
use sluicegate::results::{merge, Judge, Metric, MetricValue, Opened, Parts, Phase, Results, Row, Tally};

#[test]
fn merged_file_does_not_depend_on_the_split() {
    let folder = folder();
    let mut dice = Dice(1);
    let mut first = None;
    for round in 0..4 {
        let out = folder.path().join(format!("{round}.h5"));
        run_split(&out, 300, &mut dice);
        let found = untimed(&out);
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
