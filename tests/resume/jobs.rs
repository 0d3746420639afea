//! Scoring and generating, killed and stopped as translating is (`killed.rs`, `stopped.rs`).

use super::found::found;
use super::job::{kill, Bench, Job, Start, GENERATE, SCORE};
use super::stopped::stop;

/// A job and what may happen to it.
struct Case {
    job: Job,
    /// Has little under way, so that some rows are done long before others.
    little: &'static str,
    /// Where a rank dies, which rank of how many.
    moments: [(&'static str, usize, usize); 3],
    /// Other numbers of ranks with other amounts under way, to go on with.
    others: [(usize, &'static str); 3],
    /// An option that makes it another job, and what is said of it.
    another: (&'static str, &'static str),
}

const SCORING: Case = Case {
    job: SCORE,
    little: "--activation-memory 400K",
    moments: [
        ("decoder-layer:300", 1, 2),
        ("record-after-rename:2", 2, 3),
        ("merge-middle", 0, 1),
    ],
    others: [
        (1, "--activation-memory 50M"),
        (3, ""),
        (2, "--expert-parallel 1 --activation-memory 1M"),
    ],
    another: ("--stride 7", "stride: 8 there, 7 now"),
};

/// What is drawn must come back the same, too.
const GENERATING: Case = Case {
    job: GENERATE,
    little: "--batch-tokens 64",
    moments: [
        ("decoder-layer:300", 1, 2),
        ("record-after-rename:2", 2, 3),
        ("merge-middle", 0, 1),
    ],
    others: [
        (1, "--batch-tokens 4096"),
        (3, "--batch-tokens 200"),
        (2, "--expert-parallel 1 --batch-tokens 300"),
    ],
    another: ("--seed 6", "sampling.seed: 5 there, 6 now"),
};

fn ranks(ranks: usize) -> Start<'static> {
    Start {
        ranks,
        ..Start::default()
    }
}

/// A rank dies at each moment, and once all of them; what goes on ends with the results of a job that was left alone.
fn is_killed(case: &Case) {
    let Some(bench) = Bench::of(case.job) else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let mut kept_some = 0;
    for (i, (moment, rank, ranks)) in case.moments.into_iter().enumerate() {
        let out = format!("{}.h5", moment.replace(':', "-"));
        let start = Start {
            ranks,
            variable: Some(("SLUICE_CRASH_AT", moment, Some(rank))),
            ..Start::default()
        };
        let ended = bench.run(&start, &out, case.little);
        assert_ne!(ended.code, Some(0), "{moment} did not crash");
        assert!(ended.stderr.contains("SLUICE_CRASH_AT"), "{moment}: {}", ended.stderr);
        kept_some += (1..case.job.rows).contains(&bench.kept(&out)) as u32;
        let (ranks, more) = case.others[i % case.others.len()];
        bench.resume(ranks, &out, more, &plain);
    }
    assert!(kept_some >= 1, "the kills came too early to leave something");
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_PAUSE_AT", "record-after-rename:2", Some(1))),
        ..Start::default()
    };
    let mut job = bench.start(&start, "all.h5", case.little);
    assert!(job.until(|job| job.said("SLUICE_PAUSE_AT")));
    let all = job.ranks();
    kill("KILL", all.into_iter().chain([job.child.id()]));
    job.wait();
    let kept = bench.kept("all.h5");
    assert!((1..=case.job.rows).contains(&kept), "{kept} rows are kept");
    let (option, said) = case.another;
    let other = bench.run(&ranks(1), "all.h5", option);
    assert_eq!((other.code, other.errors().len()), (Some(2), 1), "{}", other.stderr);
    assert!(other.stderr.contains(said), "{}", other.stderr);
    bench.resume(3, "all.h5", case.others[0].1, &plain);
}

/// A signal ends it with the signal's code, and what was finished stays.
fn is_stopped(case: &Case) {
    let Some(bench) = Bench::of(case.job) else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let signals = [
        ("USR1", 138, None, 2, ""),
        ("TERM", 143, Some(1), 2, "--expert-parallel 1"),
    ];
    for (i, (signal, code, to, n, groups)) in signals.into_iter().enumerate() {
        let (out, more) = (format!("{signal}.h5"), format!("{} {groups}", case.little));
        let ended = stop(&bench, &ranks(n), &out, &more, signal, to);
        assert_eq!(ended, Some(code), "{signal} to {to:?} of {n}, {more}");
        let kept = bench.kept(&out);
        assert!((1..=case.job.rows).contains(&kept), "{signal}: {kept} rows are kept");
        let (n, more) = case.others[1 + i];
        bench.resume(n, &out, more, &plain);
    }
}

#[test]
fn scoring_that_is_killed_goes_on() {
    is_killed(&SCORING);
}

#[test]
fn scoring_that_is_stopped_goes_on() {
    is_stopped(&SCORING);
}

#[test]
fn generating_that_is_killed_goes_on() {
    is_killed(&GENERATING);
}

#[test]
fn generating_that_is_stopped_goes_on() {
    is_stopped(&GENERATING);
}
