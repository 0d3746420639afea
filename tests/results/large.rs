//! Rows whose scores are large: held in memory a few at a time.

use super::job::{folder, identity, write_plain};
use sluicegate::results::{JobIdentity, Judge, Metric, Opened, Parts, Results, Row, Status};
use std::path::Path;

/// Bytes that rows may take at once, and one more of them.
const BLOCK: usize = 16 << 20;
const TOP: usize = 256;

/// A row with scores of 0 to 1.2 MiB, as `--top` keeps them.
fn scored(index: u64) -> Row {
    let tokens = (index * 37 % 600) as usize;
    Row {
        index,
        input: format!("text {index}"),
        ids: vec![index as u32; tokens],
        logprobs: vec![-0.5; tokens],
        ranks: vec![1; tokens],
        top_ids: (0..tokens * TOP).map(|i| i as u32 % 99).collect(),
        top_logprobs: vec![-1.5; tokens * TOP],
        ..Row::default()
    }
}

fn scores(rows: &[Row]) -> usize {
    rows.iter().map(|row| 8 * row.top_ids.len()).sum()
}

fn texts(rows: &[Row]) -> usize {
    rows.iter().map(|row| row.input.len() + row.output.len()).sum()
}

/// Notes what is held at once.
#[derive(Default)]
struct Watched {
    held: Vec<usize>,
    texts: Vec<usize>,
    rows: usize,
}

impl Judge for Watched {
    fn see(&mut self, rows: &[Row]) -> anyhow::Result<()> {
        self.held.push(scores(rows));
        self.texts.push(texts(rows));
        self.rows += rows.len();
        Ok(())
    }

    fn metrics(&mut self) -> anyhow::Result<Vec<Metric>> {
        Ok(Vec::new())
    }
}

/// Rows 0 to `rows` in two segments of every other row.
pub fn score(out: &Path, rows: u64) -> Parts {
    let identity = JobIdentity {
        job: "score".into(),
        ..identity(rows)
    };
    let Ok(Opened::Ready { parts, .. }) = Parts::open_or_create(out, &identity, false) else {
        panic!("not opened")
    };
    for rank in 0..2 {
        let rows = (u64::from(rank)..rows).step_by(2);
        write_plain(&parts, rank, rows.map(scored).collect());
    }
    parts
}

#[test]
fn large_scores_are_merged_and_read_a_few_rows_at_a_time() {
    let folder = folder();
    let (out, rows) = (folder.path().join("out.h5"), 70);
    let parts = score(&out, rows);
    let mut watched = Watched::default();
    parts.merge(&mut watched).expect("a merge");
    assert_eq!(watched.rows, rows as usize);
    let results = Results::open(&out).expect("results");
    let blocks: Vec<Vec<Row>> = results.blocks(4096).map(|block| block.expect("a block")).collect();
    let read: Vec<usize> = blocks.iter().map(|block| scores(block)).collect();
    for held in [&watched.held, &read] {
        let all: usize = held.iter().sum();
        assert!(all > 2 * BLOCK && held.len() < 8, "{held:?}");
        assert!(held.iter().all(|held| *held <= BLOCK), "{held:?}");
    }
    assert!(blocks.into_iter().flatten().eq((0..rows).map(scored)));
    // Rows alone are as many as asked for.
    assert!(results.blocks(3).all(|block| block.expect("a block").len() <= 3));
}

/// Many short rows, then rows of a long text without tokens, as those are that cannot be used.
const SHORT: u64 = 5000;

fn of_text(index: u64) -> Row {
    let text = "word ".repeat(if index < SHORT { 1 } else { 100_000 });
    match index < SHORT {
        true => Row {
            index,
            input: text.clone(),
            output: text,
            ids: vec![7; 3],
            ..Row::default()
        },
        false => Row {
            index,
            input: text,
            status: Status::Failed,
            ..Row::default()
        },
    }
}

#[test]
fn long_texts_without_tokens_are_merged_and_read_a_few_rows_at_a_time() {
    let folder = folder();
    let (out, count) = (folder.path().join("out.h5"), SHORT + 120);
    let Ok(Opened::Ready { parts, .. }) = Parts::open_or_create(&out, &identity(count), false) else {
        panic!("not opened")
    };
    for rank in 0..4 {
        let each = count / 4;
        let rows = u64::from(rank) * each..(u64::from(rank) + 1) * each;
        write_plain(&parts, rank, rows.map(of_text).collect());
    }
    let mut watched = Watched::default();
    parts.merge(&mut watched).expect("a merge");
    let read = || {
        let (mut held, mut rows) = (Vec::new(), 0);
        for block in Results::open(&out).expect("results").blocks(4096) {
            let block = block.expect("a block");
            held.push(texts(&block));
            assert!(block.iter().zip(rows..).all(|(found, index)| *found == of_text(index)));
            rows += block.len() as u64;
        }
        assert_eq!(rows, count);
        held
    };
    for held in [watched.texts, read()] {
        assert!(held.len() < 10 && held.iter().all(|held| *held <= BLOCK), "{held:?}");
    }
    // A file that doesn't say how long texts are, as earlier versions wrote them.
    let file = hdf5::File::open_rw(&out).expect("a file");
    file.group("output").expect("a group").unlink("bytes").expect("gone");
    file.close().expect("closed");
    let held = read();
    assert!(
        held.len() < 100 && held.iter().all(|held| *held <= 2 * BLOCK),
        "{held:?}"
    );
}
