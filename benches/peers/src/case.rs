//! What is timed: products of one matrix, and of many experts over ragged rows.

/// Weights that together are more than any cache holds.
const MEMORY: usize = 192 << 20;

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// Rows of each expert; a plain product has one.
    pub rows: Vec<usize>,
    /// Length of an input row.
    pub inputs: usize,
    /// Length of an output row.
    pub outputs: usize,
    /// Whether each call takes other weights than the last, so that they come from memory as in a model.
    pub from_memory: bool,
    /// How rows are spread over the experts.
    spread: &'static str,
}

impl Case {
    /// All that is timed.
    pub fn all() -> Vec<Case> {
        let mut cases = Vec::new();
        for (inputs, outputs) in [(512, 1536), (1536, 512), (1024, 4096), (4096, 1024)] {
            for rows in [1, 2, 4, 8, 16, 64, 512] {
                for from_memory in [false, true] {
                    cases.push(Case {
                        rows: vec![rows],
                        inputs,
                        outputs,
                        from_memory,
                        spread: "",
                    });
                }
            }
        }
        for experts in [32, 64] {
            for rows in [64, 512, 4096] {
                let spreads = [
                    ("even", even(experts)),
                    ("skewed", skewed(experts)),
                    ("skewed, half empty", half_empty(experts)),
                ];
                cases.extend(spreads.map(|(spread, shares)| Case::experts(deal(rows, &shares), spread)));
            }
        }
        cases.push(Case::experts(vec![512; 32], "even"));
        cases
    }

    fn experts(rows: Vec<usize>, spread: &'static str) -> Case {
        Case {
            rows,
            inputs: 512,
            outputs: 1536,
            from_memory: true,
            spread,
        }
    }

    /// What the table calls it.
    pub fn name(&self) -> String {
        let (rows, shape) = (self.total(), format!("{} x {}", self.inputs, self.outputs));
        match self.rows.len() {
            1 => format!("{rows} x {shape}"),
            experts => format!("{rows} x {shape}, {experts} experts {}", self.spread),
        }
    }

    /// Rows of all experts.
    pub fn total(&self) -> usize {
        self.rows.iter().sum()
    }

    /// Multiplications and additions.
    pub fn operations(&self) -> f64 {
        2.0 * (self.total() * self.inputs * self.outputs) as f64
    }

    /// How many sets of weights, each of `bytes`, calls take in turn.
    pub fn sets(&self, bytes: usize) -> usize {
        if self.from_memory {
            MEMORY.div_ceil(bytes)
        } else {
            1
        }
    }

    /// Whether no expert has more than 4 rows and weights come from memory: then reading them is what takes time.
    pub fn is_bound_by_reading(&self) -> bool {
        self.from_memory && self.rows.iter().all(|rows| *rows <= 4)
    }

    /// Whether every expert has 512 rows: then arithmetic is what takes time.
    pub fn is_bound_by_arithmetic(&self) -> bool {
        self.rows.iter().all(|rows| *rows == 512)
    }
}

fn even(experts: usize) -> Vec<f64> {
    vec![1.0; experts]
}

/// Expert e has 1 / (e + 1) of what the first has.
fn skewed(experts: usize) -> Vec<f64> {
    (0..experts).map(|e| 1.0 / (e + 1) as f64).collect()
}

/// As skewed, with nothing for every second expert.
fn half_empty(experts: usize) -> Vec<f64> {
    skewed(experts)
        .iter()
        .enumerate()
        .map(|(e, share)| if e % 2 == 0 { *share } else { 0.0 })
        .collect()
}

/// `rows` dealt in proportion to `shares`.
fn deal(rows: usize, shares: &[f64]) -> Vec<usize> {
    let all: f64 = shares.iter().sum();
    let (mut sum, mut dealt) = (0.0, 0);
    let deal_one = |share: &f64| {
        sum += share;
        let until = (rows as f64 * sum / all).round() as usize;
        let own = until - dealt;
        dealt = until;
        own
    };
    shares.iter().map(deal_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_rows_are_dealt() {
        for rows in [1, 64, 4096] {
            for shares in [even(32), skewed(64), half_empty(64)] {
                assert_eq!(deal(rows, &shares).iter().sum::<usize>(), rows);
            }
        }
        assert_eq!(deal(64, &even(32)), vec![2; 32]);
        assert!(deal(4096, &half_empty(8))
            .iter()
            .skip(1)
            .step_by(2)
            .all(|rows| *rows == 0));
    }
}
