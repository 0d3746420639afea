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
/// Queries of a task that share rows, at most: a head of them, packed, should stay in the second-level cache.
const MOST_SHARED: usize = 512;
/// Heads over one head of keys that are not parted: parts would read the same rows.
const MOST_GROUPED: usize = 16;
/// Tasks wanted for each thread.
const TASKS: usize = 8;

/// Some heads of some queries.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Task {
    pub queries: Range<usize>,
    pub heads: Range<usize>,
    /// Whether the queries share their rows: ranges with one first row, each as long as the one before it or longer by one,
    /// of which each query sees some.
    pub shared: bool,
}

/// What is asked of an attention.
pub(super) struct Asked<'a> {
    pub rows: &'a [KeyRows<'a>],
    pub window: Option<usize>,
    pub heads: usize,
    /// Heads that share keys and values.
    pub group: usize,
}

impl Asked<'_> {
    /// Cuts all heads of all queries into `tasks`, the dearest first: about [`TASKS`] for each thread, if
    /// no smaller part would have to be cut than is worth it.
    pub(super) fn plan(&self, threads: usize, tasks: &mut Vec<Task>) {
        tasks.clear();
        let all = self.cost(0..self.rows.len()) * self.heads;
        let most = (all / (threads * TASKS)).max(1);
        let mut at = 0;
        while at < self.rows.len() {
            let run = at + self.run_length(at);
            if run - at >= SHARED {
                self.cut_shared(at..run, most, tasks);
            } else {
                self.cut_alone(at..run, most, tasks);
            }
            at = run;
        }
        tasks.sort_by_cached_key(|task| std::cmp::Reverse(self.cost_of(task)));
    }

    /// Pairs of query and key that is seen, of one head; a query counts for some keys even if it has none.
    fn cost(&self, queries: Range<usize>) -> usize {
        let seen = |rows: &KeyRows| rows.seen(self.window).len() + 4;
        self.rows[queries].iter().map(seen).sum()
    }

    fn cost_of(&self, task: &Task) -> usize {
        self.cost(task.queries.clone()) * task.heads.len()
    }

    /// Queries from `at` on that share their rows, or one.
    fn run_length(&self, at: usize) -> usize {
        if self.rows[at].seen(self.window).is_empty() {
            return 1;
        }
        let follows = |rows: &[KeyRows]| match (rows[0], rows[1]) {
            (KeyRows::Range(first, count), KeyRows::Range(other, n)) => {
                first == other && (count..=count + 1).contains(&n)
            }
            _ => false,
        };
        1 + self.rows[at..].windows(2).take_while(|two| follows(two)).count()
    }

    /// Fewer heads of keys first, then fewer queries.
    fn cut_shared(&self, queries: Range<usize>, most: usize, tasks: &mut Vec<Task>) {
        let cost = self.cost(queries.clone()) * self.group;
        let each = (most / cost).clamp(1, self.heads / self.group) * self.group;
        let share = cost.div_ceil(cost.div_ceil(most));
        let mut first = queries.start;
        while first < queries.end {
            let (mut end, mut cost) = (first, 0);
            while end < queries.end && end - first < MOST_SHARED && (cost < share || end - first < LEAST_SHARED) {
                cost += self.cost(end..end + 1) * self.group;
                end += 1;
            }
            for head in (0..self.heads).step_by(each) {
                tasks.push(Task {
                    queries: first..end,
                    heads: head..(head + each).min(self.heads),
                    shared: true,
                });
            }
            first = end;
        }
    }

    /// Adds queries to the last task while it may grow, or cuts one query's heads.
    fn cut_alone(&self, queries: Range<usize>, most: usize, tasks: &mut Vec<Task>) {
        let heads = self.heads;
        for query in queries {
            let cost = self.cost(query..query + 1);
            if cost * heads > most {
                let unit = HEADS.max(self.group.min(MOST_GROUPED));
                let each = (most / cost).next_multiple_of(unit).max(unit);
                tasks.extend((0..heads).step_by(each).map(|head| Task {
                    queries: query..query + 1,
                    heads: head..(head + each).min(heads),
                    shared: false,
                }));
                continue;
            }
            let room = |t: &&mut Task| {
                let follows = !t.shared && t.heads.len() == heads && t.queries.end == query && t.queries.len() < MOST;
                follows && self.cost_of(t) + cost * heads <= most
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked<'a>(rows: &'a [KeyRows<'a>], heads: usize) -> Asked<'a> {
        Asked {
            rows,
            window: None,
            heads,
            group: 1,
        }
    }

    fn planned(asked: &Asked, threads: usize) -> Vec<Task> {
        let mut tasks = Vec::new();
        asked.plan(threads, &mut tasks);
        tasks
    }

    /// Runs of queries that share their rows, as (queries, keys); each query of a run of 0 keys has none.
    fn runs(runs: &[(usize, usize)]) -> Vec<KeyRows<'static>> {
        let each = |(i, &(queries, keys)): (usize, &(usize, usize))| vec![KeyRows::Range(i * 10_000, keys); queries];
        runs.iter().enumerate().flat_map(each).collect()
    }

    /// Queries that see the rows from `first` on up to their own.
    fn causal<'a>(first: usize, rows: Range<usize>) -> impl Iterator<Item = KeyRows<'a>> {
        rows.map(move |n| KeyRows::Range(first, n + 1))
    }

    #[test]
    fn every_head_of_every_query_comes_once() {
        let table: Vec<u32> = (0..90).collect();
        let mut mixed = runs(&[(30, 30), (1, 12), (0, 5), (5, 0), (700, 700), (3, 9), (4, 4)]);
        mixed.extend((0..90).map(|i| KeyRows::Table(&table[..i])));
        mixed.extend(causal(0, 0..900).chain(causal(7, 0..3)).chain(causal(9, 100..150)));
        for rows in [&mixed[..], &mixed[..1], &mixed[30..36], &[]] {
            for (heads, group, window) in [
                (1, 1, None),
                (3, 1, Some(20)),
                (8, 4, None),
                (6, 6, Some(0)),
                (40, 20, None),
            ] {
                for threads in [1, 2, 7] {
                    let asked = Asked {
                        window,
                        group,
                        ..asked(rows, heads)
                    };
                    let mut seen = vec![0; rows.len() * heads];
                    for task in planned(&asked, threads) {
                        assert!(!task.shared || may_share(&asked, &task));
                        for query in task.queries {
                            task.heads.clone().for_each(|h| seen[query * heads + h] += 1);
                        }
                    }
                    assert!(seen.iter().all(|n| *n == 1), "{heads} heads, {threads} threads");
                }
            }
        }
    }

    /// What is said of [`Task::shared`].
    fn may_share(asked: &Asked, task: &Task) -> bool {
        let range = |rows: &KeyRows| match rows {
            KeyRows::Range(first, count) => (*first, *count),
            _ => panic!("not a range"),
        };
        let all: Vec<(usize, usize)> = asked.rows[task.queries.clone()].iter().map(range).collect();
        let steps = all
            .windows(2)
            .all(|two| two[0].0 == two[1].0 && matches!(two[1].1 - two[0].1, 0 | 1));
        let some = asked.window != Some(0) && all[0].1 > 0;
        let whole = task.heads.start.is_multiple_of(asked.group) && task.heads.end.is_multiple_of(asked.group);
        steps && some && whole
    }

    #[test]
    fn tasks_are_alike_in_cost_whatever_the_lengths() {
        // One source of 900 tokens among short ones; one long output among short ones; one sentence alone; one long text
        // alone, and among short ones.
        let mut skewed = runs(&[(8, 8); 40]);
        skewed.extend(runs(&[(900, 900)]));
        let mut decoding: Vec<KeyRows> = (0..200).map(|i| KeyRows::Range(i * 3000, 1 + i % 5)).collect();
        decoding.push(KeyRows::Range(600_000, 3000));
        let text: Vec<KeyRows> = causal(0, 0..2000).collect();
        let texts: Vec<KeyRows> = (0..20)
            .flat_map(|i| causal(i * 1000, 0..1 + i * 31))
            .chain(causal(20_000, 0..3000))
            .collect();
        for rows in [skewed, decoding, runs(&[(40, 40)]), text, texts] {
            for (threads, group, window) in [(2, 1, None), (4, 1, None), (4, 8, None), (4, 2, Some(100))] {
                let asked = Asked {
                    window,
                    group,
                    ..asked(&rows, 16)
                };
                let tasks = planned(&asked, threads);
                let all: usize = tasks.iter().map(|t| asked.cost_of(t)).sum();
                let dearest = asked.cost_of(&tasks[0]);
                // Queries that share rows are not cut below some number, nor heads that share keys.
                let whole = tasks[0].queries.len() == 1 && tasks[0].heads.len() <= group.max(HEADS);
                let enough = (rows.len() > 40 || group == 1) && !whole;
                assert!(
                    !enough || dearest * threads <= all,
                    "{dearest} of {all} in one of {} tasks for {threads} threads",
                    tasks.len()
                );
                assert!(tasks.windows(2).all(|t| asked.cost_of(&t[0]) >= asked.cost_of(&t[1])));
            }
        }
    }

    #[test]
    fn many_small_queries_come_together() {
        let rows: Vec<KeyRows> = (0..512).map(|i| KeyRows::Range(i * 100, 30)).collect();
        assert!(planned(&asked(&rows, 8), 2).len() <= 40);
    }
}
