//! `kill -9` at named moments and at any moment: the same command, on other ranks, ends with the same results.

use super::found::found;
use super::job::{kill, Bench, Start};
use std::time::Duration;

/// Where a rank dies, which rank of how many, and what it goes on with.
const MOMENTS: [(&str, usize, usize); 14] = [
    ("prepared", 1, 2),
    ("encoder-layer:6", 0, 2),
    ("decoder-layer:90", 1, 3),
    ("exchange:150", 1, 2),
    ("exchange:301", 2, 3),
    ("segment-before-rename:2", 1, 2),
    ("segment-after-rename:2", 0, 2),
    ("record-before-rename:2", 0, 1),
    ("record-after-rename:2", 1, 2),
    ("merge-start", 0, 2),
    ("merge-middle", 0, 3),
    ("merge-before-rename", 0, 2),
    ("merge-after-rename", 0, 1),
    ("report", 0, 2),
];

/// Other numbers of ranks and other batches to go on with.
const OTHERS: [(usize, &str); 4] = [
    (1, "--batch-tokens 4096"),
    (2, "--batch-tokens 300 --expert-parallel 1"),
    (3, "--batch-tokens 128"),
    (2, "--batch-tokens 700 --expert-parallel 2"),
];

#[test]
fn a_rank_killed_at_a_named_moment_loses_nothing_that_was_finished() {
    let Some(bench) = Bench::new() else { return };
    let references = format!("--references {}", bench.path("demo.fra").display());
    bench.done(1, "plain.h5", &references);
    let plain = found(&bench.path("plain.h5"));
    let mut kept_some = 0;
    for (i, (moment, rank, ranks)) in MOMENTS.into_iter().enumerate() {
        let out = format!("{}.h5", moment.replace(':', "-"));
        let start = Start {
            ranks,
            variable: Some(("SLUICE_CRASH_AT", moment, Some(rank))),
            ..Start::default()
        };
        let ended = bench.run(&start, &out, &format!("{references} --batch-tokens 200"));
        assert_ne!(ended.code, Some(0), "{moment} did not crash");
        assert!(ended.stderr.contains("SLUICE_CRASH_AT"), "{moment}: {}", ended.stderr);
        kept_some += (1..bench.job.rows).contains(&bench.kept(&out)) as u32;
        let (ranks, batch) = OTHERS[i % OTHERS.len()];
        bench.resume(ranks, &out, &format!("{references} {batch}"), &plain);
    }
    assert!(kept_some >= 3, "the kills came too early to leave something");
}

#[test]
fn a_job_killed_again_and_again_at_any_moment_gets_done() {
    let Some(bench) = Bench::new() else { return };
    bench.done(2, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let mut dice = 20261123u64;
    let mut below = |n: u64| {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (dice >> 33) % n
    };
    let mut before = 0;
    for _ in 0..5 {
        let (ranks, batch) = OTHERS[below(OTHERS.len() as u64) as usize];
        let start = Start {
            ranks,
            ..Start::default()
        };
        let mut job = bench.start(&start, "out.h5", batch);
        // The clock starts where the start of the machinery ends, which takes long and is always the same.
        job.until(|job| job.said("rows on"));
        std::thread::sleep(Duration::from_millis(below(700)));
        let ranks = job.ranks();
        kill("KILL", ranks.into_iter().chain([job.child.id()]));
        job.wait();
        let kept = bench.kept("out.h5");
        let finished = bench.path("out.h5").exists();
        assert!(kept >= before || finished, "{before} rows were kept, now {kept}");
        before = kept;
    }
    bench.resume(3, "out.h5", "--batch-tokens 100", &plain);
}
