//! The trace of expert loads: entries summed, sorted, and cut into runs.

use super::row::{Phase, StepCounts};
use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// Entries of the trace of one phase, attempt and group: `entries` of the segment, for steps `first` to `last`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepRun {
    pub phase: Phase,
    pub attempt: u32,
    pub group: u32,
    pub first: u64,
    pub last: u64,
    pub entries: Range<usize>,
}

impl StepRun {
    /// The runs of entries sorted by phase, attempt, group and step.
    pub fn of(steps: &[StepCounts]) -> Vec<StepRun> {
        let mut runs: Vec<StepRun> = Vec::new();
        let (mut entry, mut phase) = (0, Phase::Encode);
        for step in steps {
            if step.phase != phase {
                (entry, phase) = (0, step.phase);
            }
            match runs.last_mut() {
                Some(run) if (run.phase, run.attempt, run.group) == (step.phase, step.attempt, step.group) => {
                    run.last = step.step;
                    run.entries.end = entry + 1;
                }
                _ => runs.push(StepRun {
                    phase,
                    attempt: step.attempt,
                    group: step.group,
                    first: step.step,
                    last: step.step,
                    entries: entry..entry + 1,
                }),
            }
            entry += 1;
        }
        runs
    }
}

/// Sorts entries of the trace by phase, attempt, group and step, and adds up equal ones.
pub(crate) fn sum_steps(steps: &[StepCounts]) -> Result<Vec<StepCounts>> {
    let mut sums: BTreeMap<(Phase, u32, u32, u64), StepCounts> = BTreeMap::new();
    for step in steps {
        add_step(&mut sums, step.clone())?;
    }
    Ok(sums.into_values().collect())
}

/// Adds an entry of the trace to those of the same phase, attempt, group and step.
pub(crate) fn add_step(sums: &mut BTreeMap<(Phase, u32, u32, u64), StepCounts>, step: StepCounts) -> Result<()> {
    let Some(sum) = sums.get_mut(&(step.phase, step.attempt, step.group, step.step)) else {
        sums.insert((step.phase, step.attempt, step.group, step.step), step);
        return Ok(());
    };
    let named = || format!("expert counts of step {} of group {}", step.step, step.group);
    ensure!(sum.counts.len() == step.counts.len(), "{} differ in length", named());
    for (sum, count) in sum.counts.iter_mut().zip(&step.counts) {
        *sum = sum
            .checked_add(*count)
            .with_context(|| format!("{} exceed 32 bits", named()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_follow_each_other() {
        let step = |phase, attempt, group, step| StepCounts {
            attempt,
            group,
            step,
            phase,
            counts: vec![],
        };
        let steps = [
            step(Phase::Encode, 1, 0, 3),
            step(Phase::Encode, 1, 0, 9),
            step(Phase::Encode, 2, 0, 1),
            step(Phase::Decode, 1, 0, 4),
            step(Phase::Decode, 1, 1, 4),
        ];
        let runs: Vec<_> = StepRun::of(&steps)
            .into_iter()
            .map(|r| (r.phase, r.attempt, r.group, r.first, r.last, r.entries))
            .collect();
        assert_eq!(
            runs,
            [
                (Phase::Encode, 1, 0, 3, 9, 0..2),
                (Phase::Encode, 2, 0, 1, 1, 2..3),
                (Phase::Decode, 1, 0, 4, 4, 0..1),
                (Phase::Decode, 1, 1, 4, 4, 1..2),
            ]
        );
    }

    #[test]
    fn equal_steps_add_up() {
        let step = |step, phase, counts: [u32; 2]| StepCounts {
            attempt: 1,
            group: 0,
            step,
            phase,
            counts: counts.into(),
        };
        let given = [
            step(4, Phase::Decode, [1, 2]),
            step(4, Phase::Encode, [5, 5]),
            step(4, Phase::Decode, [3, 0]),
        ];
        let expected = [step(4, Phase::Encode, [5, 5]), step(4, Phase::Decode, [4, 2])];
        assert_eq!(sum_steps(&given).expect("sums"), expected);
        let full = [step(4, Phase::Decode, [u32::MAX, 0]), step(4, Phase::Decode, [1, 0])];
        assert!(sum_steps(&full)
            .expect_err("too many")
            .to_string()
            .contains("exceed 32 bits"));
    }
}
