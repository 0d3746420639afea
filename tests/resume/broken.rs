//! An error or a panic on one rank: the job ends, with that error once, and what was finished is kept.

use super::job::{found, Bench, Start};

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
    // One group, two groups, and the error in either of two groups.
    for (ranks, groups, to) in [(2, "", 0), (2, "--expert-parallel 1", 0), (2, "--expert-parallel 1", 1)] {
        for (moment, rank) in MOMENTS {
            let rank = if ["prepare", "finish"].contains(&moment) {
                0
            } else {
                (rank + to) % 2
            };
            let out = format!("{}-{ranks}-{}-{to}.h5", moment.replace(':', "-"), groups.len());
            let start = Start {
                ranks,
                variable: Some(("SLUICE_FAIL_AT", moment, rank)),
                ..Start::default()
            };
            let ended = bench.run(&start, &out, &format!("--batch-tokens 100 {groups}"));
            let what = format!("{moment} on rank {rank} of {ranks} {groups}: {}", ended.stderr);
            assert_eq!(ended.code, Some(2), "{what}");
            assert_eq!(ended.errors().len(), 1, "{what}");
            assert!(ended.errors()[0].contains("SLUICE_FAIL_AT"), "{what}");
            assert!(!ended.stderr.contains("MPI_ABORT"), "{what}");
            if to == 0 && groups.is_empty() {
                bench.resume(3, &out, "", &plain);
            }
        }
    }
}

#[test]
fn a_last_segment_that_cannot_be_written_ends_all() {
    let Some(bench) = Bench::new() else { return };
    for groups in ["", "--expert-parallel 1"] {
        let start = Start {
            ranks: 2,
            variable: Some(("SLUICE_FAIL_AT", "segment", 1)),
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
            variable: Some(("SLUICE_PANIC_AT", moment, rank)),
            ..Start::default()
        };
        let ended = bench.run(&start, "out.h5", "--overwrite");
        assert_eq!(ended.code, Some(2), "{moment}: {}", ended.stderr);
        assert_eq!(ended.errors().len(), 1, "{moment}: {}", ended.stderr);
    }
}
