//! An error or a panic on one rank: the job ends, with that error once, and what was finished is kept.

use super::found::found;
use super::job::{Bench, Start};

const MOMENTS: [(&str, usize); 7] = [
    ("prepare", 0),
    ("load", 1),
    ("input:9", 1),
    ("route:2", 1),
    ("route:40", 0),
    ("segment:2", 1),
    ("finish", 0),
];

#[test]
fn an_error_on_one_rank_is_said_once_and_ends_all() {
    let Some(bench) = Bench::new() else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    for (i, (moment, rank)) in MOMENTS.into_iter().enumerate() {
        let out = format!("out-{i}.h5");
        breaks(&bench, moment, Some(rank), &out, "");
        bench.resume(3, &out, "", &plain);
    }
}

/// Nobody knows which of two groups gets which rows: both are told to fail, and one speaks.
#[test]
fn an_error_in_one_of_two_groups_is_said_once_and_ends_all() {
    let Some(bench) = Bench::new() else { return };
    for (moment, _) in &MOMENTS[1..6] {
        breaks(&bench, moment, None, "out.h5", "--overwrite --expert-parallel 1");
    }
}

fn breaks(bench: &Bench, moment: &str, rank: Option<usize>, out: &str, more: &str) {
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_FAIL_AT", moment, rank)),
        ..Start::default()
    };
    let ended = bench.run(&start, out, &format!("--batch-tokens 100 {more}"));
    let what = format!("{moment} on {rank:?} {more}: {}", ended.stderr);
    assert_eq!(ended.code, Some(2), "{what}");
    assert_eq!(ended.errors().len(), 1, "{what}");
    assert!(ended.errors()[0].contains("SLUICE_FAIL_AT"), "{what}");
    assert!(!ended.stderr.contains("MPI_ABORT"), "{what}");
}

#[test]
fn a_last_segment_that_cannot_be_written_ends_all() {
    let Some(bench) = Bench::new() else { return };
    for groups in ["", "--expert-parallel 1"] {
        let start = Start {
            ranks: 2,
            variable: Some(("SLUICE_FAIL_AT", "segment", Some(1))),
            ..Start::default()
        };
        let ended = bench.run(&start, "out.h5", &format!("--overwrite --segment-seconds 600 {groups}"));
        assert_eq!(
            (ended.code, ended.errors().len()),
            (Some(2), 1),
            "{groups}: {}",
            ended.stderr
        );
        assert!(!bench.path("out.h5").exists());
    }
}

#[test]
fn a_panic_on_one_rank_ends_all() {
    let Some(bench) = Bench::new() else { return };
    for (moment, rank) in [("prepared", 1), ("load", 0), ("decoder-layer:60", 1), ("finish", 0)] {
        let start = Start {
            ranks: 2,
            variable: Some(("SLUICE_PANIC_AT", moment, Some(rank))),
            ..Start::default()
        };
        let ended = bench.run(&start, "out.h5", "--overwrite");
        assert_eq!(ended.code, Some(2), "{moment}: {}", ended.stderr);
        assert_eq!(ended.errors().len(), 1, "{moment}: {}", ended.stderr);
    }
}
