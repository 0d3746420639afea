//! SIGTERM and SIGUSR1, to the launcher and to single ranks, in every phase.

use super::found::found;
use super::job::{kill, Bench, Running, Start};
use std::time::Duration;

/// Signals a job, where it pauses or else with finished rows on disk, and gives back how it ended.
pub fn stop(bench: &Bench, start: &Start, out: &str, more: &str, signal: &str, to: Option<usize>) -> Option<i32> {
    let mut job = bench.start(start, out, more);
    let there = match start.variable {
        Some(_) => job.until(|job| job.said("SLUICE_PAUSE_AT")),
        None => job.until(|_| bench.kept(out) > 0),
    };
    assert!(
        there,
        "{out}: the job ended before it could be stopped: {}",
        job.wait().stderr
    );
    send(&job, signal, to);
    let ended = job.wait();
    assert!(ended.errors().is_empty(), "{out}: {}", ended.stderr);
    ended.code
}

/// To a rank, or to the launcher.
fn send(job: &Running, signal: &str, to: Option<usize>) {
    let process = match to {
        Some(rank) => job.ranks()[rank],
        None => job.child.id(),
    };
    kill(signal, [process]);
}

#[test]
fn a_signal_while_it_decodes_keeps_what_is_finished() {
    let Some(bench) = Bench::new() else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let cases = [
        ("USR1", 138, None, 2, "--batch-tokens 64"),
        ("TERM", 143, Some(1), 2, "--batch-tokens 64"),
        ("USR1", 138, Some(0), 2, "--batch-tokens 64 --expert-parallel 1"),
        ("TERM", 143, Some(1), 2, "--batch-tokens 64 --expert-parallel 1"),
        ("USR1", 138, None, 3, "--batch-tokens 64 --expert-parallel 1"),
        ("TERM", 143, Some(2), 3, "--batch-tokens 64"),
        ("USR1", 138, Some(0), 1, "--batch-tokens 64"),
    ];
    for (i, (signal, code, to, ranks, more)) in cases.into_iter().enumerate() {
        let out = format!("out-{i}.h5");
        let start = Start {
            ranks,
            ..Start::default()
        };
        let found = stop(&bench, &start, &out, more, signal, to);
        assert_eq!(found, Some(code), "{signal} to {to:?} of {ranks}, {more}");
        let kept = bench.kept(&out);
        // A rank that isn't its group's leader may be heard only when all rows are done.
        assert!(
            (1..=bench.job.rows).contains(&kept),
            "{kept} rows kept: {signal} to {to:?} of {ranks}, {more}"
        );
        bench.resume(1 + i % 3, &out, "", &plain);
    }
    // TERM to mpirun: it gives the ranks a second, then kills them; its exit code is its own.
    let start = Start {
        ranks: 2,
        ..Start::default()
    };
    let code = stop(&bench, &start, "term.h5", "--batch-tokens 64", "TERM", None);
    assert_ne!(code, Some(0));
    bench.resume(3, "term.h5", "", &plain);
}

#[test]
fn a_signal_while_it_loads_or_merges_ends_it_at_once() {
    let Some(bench) = Bench::new() else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let cases = [
        ("prepare", 0, "TERM", Some(1)),
        ("load", 1, "USR1", None),
        ("load", 1, "TERM", Some(1)),
        ("merge-middle", 0, "USR1", None),
        ("merge-middle", 0, "TERM", Some(0)),
        ("report", 0, "USR1", Some(1)),
    ];
    for (i, (moment, rank, signal, to)) in cases.into_iter().enumerate() {
        let out = format!("out-{i}.h5");
        let start = Start {
            ranks: 2,
            variable: Some(("SLUICE_PAUSE_AT", moment, Some(rank))),
            ..Start::default()
        };
        let code = stop(&bench, &start, &out, "", signal, to);
        let expected = if signal == "TERM" { 143 } else { 138 };
        assert_eq!(code, Some(expected), "{signal} to {to:?} at {moment}");
        bench.resume(3 - i % 3, &out, "", &plain);
    }
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let Some(bench) = Bench::new() else { return };
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_PAUSE_AT", "decoder-layer:200", Some(1))),
        ..Start::default()
    };
    let mut job = bench.start(&start, "out.h5", "--batch-tokens 64");
    assert!(job.until(|job| job.said("SLUICE_PAUSE_AT")));
    send(&job, "USR1", Some(1));
    // Two at once are one request that came two ways.
    send(&job, "TERM", Some(1));
    std::thread::sleep(Duration::from_millis(600));
    assert!(
        job.child.try_wait().expect("a child").is_none(),
        "the first one waits for the step's end"
    );
    send(&job, "USR1", Some(1));
    assert_eq!(job.wait().code, Some(138));
    bench.done(2, "out.h5", "");
}
