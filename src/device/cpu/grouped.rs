//! Products as tasks for the pool: one matrix, or ragged groups of rows against one matrix each (the experts).
use std::ops::Range;

use super::gemm::{rows_of_a_task, Product};
use super::linear::PANEL;
use super::pool::Shared;
use super::quantised::QuantisedRows;
use super::{Cpu, Dtype, Epilogue, Linear};

/// A task should take at least this many nanoseconds.
const TASK: f64 = 10_000.0;
/// Tasks for each thread, so that all end at about the same time.
const TASKS_PER_THREAD: f64 = 6.0;

/// One expert's share of a grouped product.
#[derive(Clone)]
pub struct Group<'a> {
    /// The expert's weights.
    pub weights: &'a Linear,
    /// Its rows of `out` (and of `source`, where there is one).
    pub rows: Range<usize>,
}

/// Rows of a group against a run of panels.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Task {
    group: usize,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl Cpu {
    /// `out = epi(x W^T + b)`: `x` is `[rows, inputs]`, `out` `[rows, outputs]`.
    ///
    /// # Panics
    /// If the lengths don't fit, or the epilogue does not fit the weights (see [`Epilogue::Gated`]).
    pub fn linear(&self, x: &[f32], w: &Linear, epi: Epilogue, out: &mut [f32]) {
        let rows = x.len() / w.inputs();
        assert!(
            x.len() == rows * w.inputs() && out.len() == rows * w.outputs(),
            "linear: x of {} and out of {} elements don't fit {} inputs, {} outputs",
            x.len(),
            out.len(),
            w.inputs(),
            w.outputs()
        );
        self.grouped_linear(
            x,
            None,
            &[Group {
                weights: w,
                rows: 0..rows,
            }],
            epi,
            out,
        );
    }

    /// Experts as one operation: `out[r] = epi(x[source[r]] W_g^T + b_g)` for the rows r of each group g (without
    /// `source`, `x[r]`). `x` is `[any, inputs]`, `source` `[rows]`, `out` `[rows, outputs]`. Groups may be ragged, empty
    /// and in any order; rows in no group are left as they are.
    ///
    /// # Panics
    /// If groups differ in their shape or share a row, a row or a source lies outside, or the epilogue does not fit the
    /// weights (see [`Epilogue::Gated`]).
    pub fn grouped_linear(
        &self,
        x: &[f32],
        source: Option<&[u32]>,
        groups: &[Group<'_>],
        epi: Epilogue,
        out: &mut [f32],
    ) {
        check(x, source, groups, epi, out);
        let (tasks, nanoseconds) = plan(groups, self.threads());
        let quantised = self.quantise_groups(x, source, groups);
        let out = Shared(out.as_mut_ptr());
        self.for_each(tasks.len(), nanoseconds, |i| {
            let Task { group, rows, panels } = tasks[i].clone();
            let product = Product {
                x,
                source,
                quantised: &quantised,
                weights: groups[group].weights,
                rows,
                panels,
                epilogue: epi,
                out,
                stride: groups[group].weights.outputs(),
                origin: (0, 0),
            };
            // SAFETY: a device's instruction set is available; `check` has seen that rows lie inside and are in one group
            // only; the tasks of a group don't overlap.
            unsafe { product.compute(self.isa()) };
        });
        self.keep_quantised(quantised);
    }

    /// The rows of `out` that groups of int8 weights compute, as their products take them.
    pub(super) fn quantise_groups(&self, x: &[f32], source: Option<&[u32]>, groups: &[Group<'_>]) -> QuantisedRows {
        let mut quantised = self.take_quantised();
        let of_int8 = groups
            .iter()
            .filter(|g| g.weights.dtype() == Dtype::Int8 && !g.rows.is_empty());
        let mut rows: Vec<Range<usize>> = of_int8.map(|g| g.rows.clone()).collect();
        rows.sort_unstable_by_key(|rows| rows.start);
        // Neighbours together; what lies between groups is nobody's.
        rows.dedup_by(|next, run| {
            let joins = next.start == run.end;
            if joins {
                run.end = next.end;
            }
            joins
        });
        let inputs = groups.first().map_or(0, |group| group.weights.inputs());
        let from = |row: usize| source.map_or(row, |source| source[row] as usize);
        let row = |row: usize| &x[from(row) * inputs..][..inputs];
        for rows in rows {
            quantised.fill(self, rows, inputs, row);
        }
        quantised
    }
}

fn check(x: &[f32], source: Option<&[u32]>, groups: &[Group<'_>], epi: Epilogue, out: &[f32]) {
    let Some((inputs, outputs)) = groups.first().map(|g| (g.weights.inputs(), g.weights.outputs())) else {
        return;
    };
    let mut taken: Vec<&Range<usize>> = groups.iter().map(|g| &g.rows).filter(|rows| !rows.is_empty()).collect();
    taken.sort_unstable_by_key(|rows| rows.start);
    assert!(
        taken.windows(2).all(|pair| pair[0].end <= pair[1].start),
        "grouped_linear: groups share rows: {taken:?}"
    );
    for group in groups {
        let w = group.weights;
        assert!(
            (w.inputs(), w.outputs()) == (inputs, outputs),
            "grouped_linear: groups of different shapes"
        );
        w.assert_fits(epi);
        let end = if group.rows.is_empty() { 0 } else { group.rows.end };
        assert!(
            end.saturating_mul(outputs) <= out.len(),
            "grouped_linear: row {end} is beyond the end of out"
        );
        let in_x = match source {
            Some(source) => source[group.rows.clone()]
                .iter()
                .map(|&s| s as usize + 1)
                .max()
                .unwrap_or(0),
            None => end,
        };
        assert!(
            in_x.saturating_mul(inputs) <= x.len(),
            "grouped_linear: row {in_x} is beyond the end of x"
        );
    }
}

/// Cuts a product into tasks, and estimates the nanoseconds that it takes on one thread. Results don't depend on the cut.
fn plan(groups: &[Group<'_>], threads: usize) -> (Vec<Task>, f64) {
    let busy = || {
        groups
            .iter()
            .enumerate()
            .filter(|(_, g)| !g.rows.is_empty() && g.weights.outputs() > 0)
    };
    let total: f64 = busy()
        .map(|(_, g)| g.weights.panels() as f64 * panel_cost(g.weights, g.rows.len()))
        .sum();
    let wanted = if threads == 1 {
        f64::INFINITY
    } else {
        (total / (threads as f64 * TASKS_PER_THREAD)).max(TASK)
    };
    let mut tasks = Vec::new();
    for (group, g) in busy() {
        let panels = g.weights.panels();
        let blocks = g.rows.len().div_ceil(rows_of_a_task(g.weights.steps()));
        let cost = panel_cost(g.weights, g.rows.len().div_ceil(blocks));
        // Whole fours of panels, which the kernel takes at once for a single row.
        let run = ((wanted / cost / 4.0).ceil() as usize)
            .saturating_mul(4)
            .clamp(4, panels.max(4));
        for first in (0..panels).step_by(run) {
            for block in 0..blocks {
                let at = |block| g.rows.start + block * g.rows.len() / blocks;
                let (rows, panels) = (at(block)..at(block + 1), first..(first + run).min(panels));
                tasks.push(Task { group, rows, panels });
            }
        }
    }
    (tasks, total)
}

/// Nanoseconds for `rows` rows against a panel, roughly: 60 to 200 multiply-adds each, by type, or the panel's way from
/// memory.
fn panel_cost(w: &Linear, rows: usize) -> f64 {
    let elements = (w.inputs() * PANEL) as f64;
    let (speed, bytes) = match w.dtype() {
        Dtype::F32 => (60.0, 4.0),
        Dtype::Bf16 => (120.0, 2.0),
        Dtype::Int8 => (200.0, 1.0),
    };
    (elements * rows as f64 / speed).max(elements * bytes / 20.0)
}

#[cfg(test)]
mod tests {
    use super::super::{Part, Source};
    use super::*;

    fn weights(inputs: usize, outputs: usize) -> Linear {
        let zeros = vec![0.0; inputs * outputs];
        Linear::pack(
            inputs,
            &[Part {
                weights: Source::F32(&zeros),
                bias: None,
            }],
            Dtype::F32,
        )
        .unwrap()
    }

    #[test]
    fn tasks_cover_every_row_and_panel_once() {
        let w = weights(520, 500);
        for sizes in [vec![0, 0], vec![1], vec![3, 0, 700, 1], vec![40; 9]] {
            for threads in [1, 2, 7] {
                let mut start = 0;
                let groups: Vec<Group> = sizes
                    .iter()
                    .map(|n| {
                        start += n;
                        Group {
                            weights: &w,
                            rows: start - n..start,
                        }
                    })
                    .collect();
                let mut seen = vec![0; start * w.panels()];
                for task in plan(&groups, threads).0 {
                    assert!(task.rows.start >= groups[task.group].rows.start);
                    assert!(task.rows.end <= groups[task.group].rows.end);
                    for row in task.rows {
                        task.panels.clone().for_each(|p| seen[row * w.panels() + p] += 1);
                    }
                }
                assert!(seen.iter().all(|n| *n == 1), "{sizes:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn one_large_group_occupies_all_threads() {
        let w = weights(512, 1536);
        for rows in [1, 12, 600] {
            assert!(
                plan(
                    &[Group {
                        weights: &w,
                        rows: 0..rows
                    }],
                    4
                )
                .0
                .len()
                    >= 8,
                "{rows} rows"
            );
        }
    }
}
