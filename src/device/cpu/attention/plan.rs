//! How an attention is cut into tasks. Pure; results don't depend on it.
use std::ops::Range;

use super::rows::HEADS;
use super::KeyRows;

/// Queries that share their rows from which on a tile is worth packing keys and values.
const SHARED: usize = 6;
/// Queries with rows of their own that a task takes at most.
const MOST: usize = 16;
/// Queries of a task below which shared rows are not packed once more: a cut there costs more than it evens out.
const LEAST_SHARED: usize = 64;
/// Tasks wanted for each thread.
const TASKS: usize = 8;

/// Some heads of some queries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Task {
    pub queries: Range<usize>,
    pub heads: Range<usize>,
    /// Whether the queries have the same rows, given as a range.
    pub shared: bool,
}

impl Task {
    /// Pairs of query and key, over its heads; a query counts for some keys even if it has none.
    fn cost(&self, rows: &[KeyRows<'_>]) -> usize {
        let pairs = match self.shared {
            true => self.queries.len() * cost_of(&rows[self.queries.start]),
            false => rows[self.queries.clone()].iter().map(cost_of).sum(),
        };
        pairs * self.heads.len()
    }
}

/// What a query costs: its keys, and some more.
fn cost_of(rows: &KeyRows<'_>) -> usize {
    rows.len() + 4
}

/// Cuts all heads of all queries into `tasks`, the dearest first: about [`TASKS`] for each thread, if
/// no smaller part would have to be cut than is worth it.
pub(super) fn plan(rows: &[KeyRows<'_>], heads: usize, threads: usize, tasks: &mut Vec<Task>) {
    tasks.clear();
    let all = rows.iter().map(cost_of).sum::<usize>() * heads;
    let most = (all / (threads * TASKS)).max(1);
    let mut at = 0;
    while at < rows.len() {
        let run = at + run_length(&rows[at..]);
        if run - at >= SHARED && !rows[at].is_empty() {
            cut_shared(at..run, cost_of(&rows[at]), heads, most, tasks);
        } else {
            cut_alone(at..run, rows, heads, most, tasks);
        }
        at = run;
    }
    tasks.sort_by_cached_key(|task| std::cmp::Reverse(task.cost(rows)));
}

/// Queries at the beginning that have the same rows.
fn run_length(rows: &[KeyRows<'_>]) -> usize {
    rows.iter().take_while(|r| same(r, &rows[0])).count().max(1)
}

/// Whether two queries are known to have the same rows, without looking into tables.
fn same(a: &KeyRows<'_>, b: &KeyRows<'_>) -> bool {
    match (a, b) {
        (KeyRows::Range(first, count), KeyRows::Range(other, n)) => (first, count) == (other, n),
        _ => false,
    }
}

/// Queries of `cost` each: fewer heads first, then fewer queries.
fn cut_shared(queries: Range<usize>, cost: usize, heads: usize, most: usize, tasks: &mut Vec<Task>) {
    let each = (most / (queries.len() * cost)).clamp(1, heads);
    let parts = (queries.len() * cost).div_ceil(most);
    let block = queries.len().div_ceil(parts).max(LEAST_SHARED);
    for first in queries.clone().step_by(block) {
        for head in (0..heads).step_by(each) {
            tasks.push(Task {
                queries: first..(first + block).min(queries.end),
                heads: head..(head + each).min(heads),
                shared: true,
            });
        }
    }
}

/// Adds queries to the last task while it may grow, or cuts one query's heads.
fn cut_alone(queries: Range<usize>, rows: &[KeyRows<'_>], heads: usize, most: usize, tasks: &mut Vec<Task>) {
    for query in queries {
        let cost = cost_of(&rows[query]);
        if cost * heads > most {
            let each = (most / cost).next_multiple_of(HEADS).max(HEADS);
            tasks.extend((0..heads).step_by(each).map(|head| Task {
                queries: query..query + 1,
                heads: head..(head + each).min(heads),
                shared: false,
            }));
            continue;
        }
        let room = |t: &&mut Task| {
            let follows = !t.shared && t.heads.len() == heads && t.queries.end == query && t.queries.len() < MOST;
            follows && t.cost(rows) + cost * heads <= most
        };
        match tasks.last_mut().filter(room) {
            Some(task) => task.queries.end += 1,
            None => tasks.push(Task {
                queries: query..query + 1,
                heads: 0..heads,
                shared: false,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(rows: &[KeyRows<'_>], heads: usize, threads: usize) -> Vec<Task> {
        let mut tasks = Vec::new();
        plan(rows, heads, threads, &mut tasks);
        tasks
    }

    /// Runs of queries that share their rows, as (queries, keys); each query of a run of 0 keys has none.
    fn runs(runs: &[(usize, usize)]) -> Vec<KeyRows<'static>> {
        let each = |(i, &(queries, keys)): (usize, &(usize, usize))| vec![KeyRows::Range(i * 10_000, keys); queries];
        runs.iter().enumerate().flat_map(each).collect()
    }

    #[test]
    fn every_head_of_every_query_comes_once() {
        let table: Vec<u32> = (0..90).collect();
        let mut mixed = runs(&[(30, 30), (1, 12), (0, 5), (5, 0), (700, 700), (3, 9), (4, 4)]);
        mixed.extend((0..90).map(|i| KeyRows::Table(&table[..i])));
        for rows in [&mixed[..], &mixed[..1], &mixed[30..36], &[]] {
            for heads in [1, 3, 8] {
                for threads in [1, 2, 7] {
                    let mut seen = vec![0; rows.len() * heads];
                    for task in planned(rows, heads, threads) {
                        let first = &rows[task.queries.start];
                        assert!(!task.shared || rows[task.queries.clone()].iter().all(|r| same(r, first)));
                        for query in task.queries {
                            task.heads.clone().for_each(|h| seen[query * heads + h] += 1);
                        }
                    }
                    assert!(seen.iter().all(|n| *n == 1), "{heads} heads, {threads} threads");
                }
            }
        }
    }

    #[test]
    fn tasks_are_alike_in_cost_whatever_the_lengths() {
        // One source of 900 tokens among short ones; one long output among short ones; one sentence alone.
        let mut skewed = runs(&[(8, 8); 40]);
        skewed.extend(runs(&[(900, 900)]));
        let mut decoding: Vec<KeyRows> = (0..200).map(|i| KeyRows::Range(i * 3000, 1 + i % 5)).collect();
        decoding.push(KeyRows::Range(600_000, 3000));
        for rows in [skewed, decoding, runs(&[(40, 40)])] {
            for threads in [2, 4] {
                let tasks = planned(&rows, 16, threads);
                let all: usize = tasks.iter().map(|t| t.cost(&rows)).sum();
                let dearest = tasks[0].cost(&rows);
                assert!(
                    dearest * threads <= all,
                    "{dearest} of {all} in one of {} tasks for {threads} threads",
                    tasks.len()
                );
                assert!(tasks.windows(2).all(|t| t[0].cost(&rows) >= t[1].cost(&rows)));
            }
        }
    }

    #[test]
    fn many_small_queries_come_together() {
        let rows: Vec<KeyRows> = (0..512).map(|i| KeyRows::Range(i * 100, 30)).collect();
        assert!(planned(&rows, 8, 2).len() <= 40);
    }
}
