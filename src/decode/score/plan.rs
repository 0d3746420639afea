//! How much is read in one go, and what there is memory for. Pure.

use super::PORTIONS;

/// Tokens that are read in one go where nothing else is said: many enough for every expert, few enough for what they are
/// turned into to stay near the processor (docs/performance.md).
pub const PORTION: usize = 2048;

/// The same where experts come from below, once for each portion.
pub const PORTION_BUFFERED: usize = 4096;

/// Bytes that a token takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// What it is turned into on its way through the model.
    pub activations: u64,
    /// Its scores on their way into the file.
    pub scores: u64,
}

impl Costs {
    /// Bytes that a token takes where it is read: it goes through the model with its portion, and its scores are held with
    /// those of all portions of a step, since none is written before the last is read.
    pub fn read(self) -> u64 {
        (self.activations + PORTIONS as u64 * self.scores).max(1)
    }

    /// Bytes that the scores of so many tokens take.
    fn kept(self, tokens: usize) -> u64 {
        (tokens as u64).saturating_mul(self.scores)
    }
}

/// How much is read in one go, and what there is memory for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Tokens that are read in one go: no window is begun behind them.
    pub portion: usize,
    /// The most tokens in one go of more than one window.
    pub most: usize,
    /// Tokens of a window and its source that there is memory for, alone.
    pub longest: usize,
    /// Bytes that there are for the scores of a text.
    pub scores: u64,
}

impl Plan {
    /// A plan for `room` bytes of memory, of which reading takes `budget` or what `usual` tokens do. Texts are read by windows of
    /// `window` tokens, or each in one go.
    ///
    /// Memory for the scores of a text is set aside first, so that `budget` decides about speed and about no row.
    ///
    /// # Errors
    /// The bytes that a window takes, where there are fewer.
    pub fn new(costs: Costs, window: Option<usize>, budget: Option<u64>, usual: usize, room: u64) -> Result<Plan, u64> {
        let tokens_in = |bytes: u64| usize::try_from(bytes / costs.read()).unwrap_or(usize::MAX);
        let shortest = window.unwrap_or(1);
        let least = Plan::bytes(costs, shortest);
        if least > room {
            return Err(least);
        }
        // A text that is read in one go has all its scores in one step.
        let aside = match window {
            Some(_) => (room / 2).min(room - least),
            None => 0,
        };
        let fitting = tokens_in(room - aside);
        let (portion, most) = match budget {
            // The window that is begun last is read to its end.
            None => (usual, usual.saturating_add(shortest)),
            Some(bytes) => (tokens_in(bytes), tokens_in(bytes)),
        };
        Ok(Plan {
            portion: portion.min(fitting / 2).max(1),
            most: most.min(fitting).max(1),
            longest: tokens_in(room),
            scores: aside.max(costs.kept(shortest)),
        })
    }

    /// Bytes that `tokens` tokens take as they are read in one go.
    pub fn bytes(costs: Costs, tokens: usize) -> u64 {
        (tokens as u64).saturating_mul(costs.read())
    }

    /// Whether a shorter window than `window` would leave more for the scores of a text.
    pub fn is_tight(&self, window: usize) -> bool {
        window > self.longest / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGETS: [Option<u64>; 6] = [
        None,
        Some(1),
        Some(100 << 10),
        Some(1 << 30),
        Some(16 << 30),
        Some(500 << 30),
    ];

    fn all(mut check: impl FnMut(Costs, Option<usize>, u64)) {
        for activations in [5 << 10, 40 << 10, 250 << 10] {
            for top in [0, 5, 1024] {
                let costs = Costs {
                    activations,
                    scores: 3 * (4 + 8 * top),
                };
                for window in [Some(1), Some(512), Some(2048), Some(100_000), None] {
                    for room in [1 << 10, 700 << 20, 30 << 30, u64::MAX] {
                        check(costs, window, room);
                    }
                }
            }
        }
    }

    #[test]
    fn a_budget_decides_about_no_row() {
        let mut planned = 0;
        all(|costs, window, room| {
            let rows = |budget| Plan::new(costs, window, budget, PORTION, room).map(|plan| (plan.longest, plan.scores));
            let found = BUDGETS.map(rows);
            assert!(
                found.iter().all(|one| *one == found[0]),
                "{costs:?}, {window:?}: {found:?}"
            );
            let Ok((longest, scores)) = found[0] else { return };
            planned += 1;
            // A text of one window is always scored, and half of the memory is for scores where a window leaves so much.
            let shortest = window.unwrap_or(1);
            assert!(scores >= costs.kept(shortest) && longest >= shortest);
            let least = Plan::bytes(costs, shortest);
            if window.is_some() && least <= room / 2 {
                assert!(scores >= room / 2, "{costs:?}, {window:?}: {scores} of {room} bytes");
            }
        });
        assert!(planned > 60, "{planned}");
    }

    #[test]
    fn what_is_read_and_what_comes_of_it_fit_together() {
        all(|costs, window, room| {
            for budget in BUDGETS {
                let Ok(plan) = Plan::new(costs, window, budget, PORTION, room) else {
                    assert!(Plan::bytes(costs, window.unwrap_or(1)) > room);
                    continue;
                };
                assert!(plan.portion >= 1 && plan.portion <= plan.most.max(1));
                let shortest = window.unwrap_or(1);
                let together = plan.most.max(shortest);
                // A portion on its way, the scores of a step, and those of a text that earlier steps have read.
                let step = costs.kept(PORTIONS * together);
                let earlier = match plan.scores > costs.kept(shortest) {
                    true => plan.scores,
                    false => 0,
                };
                let held = (together as u64) * costs.activations + step + earlier;
                assert!(
                    held <= room,
                    "{costs:?}, {window:?}, {budget:?}: {held} of {room} bytes"
                );
                if let Some(budget) = budget.filter(|_| plan.most > 1) {
                    let read = (plan.most as u64) * costs.activations + costs.kept(PORTIONS * plan.most);
                    assert!(read <= budget, "{costs:?}: {read} of {budget} bytes");
                }
            }
        });
    }

    #[test]
    fn a_shorter_window_helps_where_it_takes_more_than_half() {
        let costs = Costs {
            activations: 1000,
            scores: 12,
        };
        let scores = |window, room| Plan::new(costs, Some(window), None, PORTION, room).unwrap().scores;
        let room = 3000 * costs.read();
        for (window, helps) in [(2900, true), (1600, true), (1400, false)] {
            let plan = Plan::new(costs, Some(window), None, PORTION, room).unwrap();
            assert_eq!(plan.is_tight(window), helps);
            assert_eq!(scores(window - 100, room) > plan.scores, helps, "{window}");
        }
    }
}
