//! The gate: from router logits to the experts of each token and their weights.

use crate::device::exp;
use anyhow::{bail, Result};

/// The experts chosen for a run of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Experts a token.
    pub top_k: usize,
    /// Chosen experts, the gate's first choice first, `[tokens, top_k]`.
    pub experts: Vec<u32>,
    /// Their weights, `[tokens, top_k]`.
    pub weights: Vec<f32>,
}

impl Routes {
    /// Tokens routed.
    pub fn tokens(&self) -> usize {
        self.experts.len() / self.top_k.max(1)
    }
}

/// A family's routing rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// NLLB-MoE: softmax over all experts, the two largest, renormalised to sum to one (fairseq's top-2 gate with
    /// `second_expert_policy` "all" and nothing dropped; PAPER section 2 "Static gating" without its capacity).
    Top2,
}

impl Rule {
    /// Experts a token.
    pub fn top_k(self) -> usize {
        match self {
            Rule::Top2 => 2,
        }
    }

    /// Chooses experts for each token from router logits `[tokens, experts]`.
    ///
    /// # Errors
    /// When a token's logits hold a NaN: no expert is the right one then.
    pub fn route(self, logits: &[f32], experts: usize, routes: &mut Routes) -> Result<()> {
        routes.top_k = self.top_k();
        routes.experts.clear();
        routes.weights.clear();
        for row in logits.chunks_exact(experts) {
            match self {
                Rule::Top2 => top2(row, routes)?,
            }
        }
        Ok(())
    }
}

/// Two largest logits of a row (the lower index on ties) and p1/(p1+p2), p2/(p1+p2) of their softmax: the other
/// experts cancel out, so only the two exponentials are needed.
fn top2(logits: &[f32], routes: &mut Routes) -> Result<()> {
    let (mut first, mut second) = (usize::MAX, usize::MAX);
    for (e, &x) in logits.iter().enumerate() {
        if x.is_nan() {
            bail!("router logits hold a NaN (expert {e}): the weights or the hidden states are damaged");
        }
        if first == usize::MAX || x > logits[first] {
            (first, second) = (e, first);
        } else if second == usize::MAX || x > logits[second] {
            second = e;
        }
    }
    let odds = exp(logits[second] - logits[first]);
    routes.experts.extend([first as u32, second as u32]);
    routes.weights.extend([1.0 / (1.0 + odds), odds / (1.0 + odds)]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(logits: &[f32], experts: usize) -> Result<Routes> {
        let mut routes = Routes::default();
        Rule::Top2.route(logits, experts, &mut routes)?;
        Ok(routes)
    }

    /// The rule as fairseq writes it: softmax, argmax, mask, argmax, renormalise.
    fn slowly(logits: &[f32]) -> ([usize; 2], [f32; 2]) {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let p: Vec<f64> = logits.iter().map(|&x| f64::from(x - top).exp()).collect();
        let best = |skip: usize| {
            let rest = (0..p.len()).filter(|&e| e != skip);
            rest.fold(
                usize::MAX,
                |b, e| if b == usize::MAX || logits[e] > logits[b] { e } else { b },
            )
        };
        let (a, total) = (best(usize::MAX), p.iter().sum::<f64>());
        let b = best(a);
        let (pa, pb) = (p[a] / total, p[b] / total);
        ([a, b], [(pa / (pa + pb)) as f32, (pb / (pa + pb)) as f32])
    }

    #[test]
    fn agrees_with_the_rule_written_out() {
        for seed in 0..200u32 {
            let n = 2 + (seed as usize % 17);
            let value = |i: u32| ((seed.wrapping_mul(2654435761).wrapping_add(i * 40503)) % 1000) as f32 / 90.0 - 5.0;
            let row: Vec<f32> = (0..n as u32).map(value).collect();
            let (routes, (experts, weights)) = (route(&row, n).unwrap(), slowly(&row));
            assert_eq!(routes.experts, experts.map(|e| e as u32));
            assert!(
                routes.weights.iter().zip(weights).all(|(a, b)| (a - b).abs() < 1e-6),
                "{row:?}"
            );
        }
    }

    #[test]
    fn ties_go_to_the_lower_expert_and_nan_is_an_error() {
        assert_eq!(route(&[1.0, 3.0, 3.0, 3.0], 4).unwrap().experts, [1, 2]);
        assert_eq!(route(&[0.0, 0.0, 0.0], 3).unwrap().experts, [0, 1]);
        assert_eq!(route(&[0.0, 0.0], 2).unwrap().weights, [0.5, 0.5]);
        assert_eq!(
            route(&[f32::NEG_INFINITY, 2.0, f32::NEG_INFINITY], 3).unwrap().weights,
            [1.0, 0.0]
        );
        assert!(route(&[0.0, f32::NAN, 1.0], 3)
            .unwrap_err()
            .to_string()
            .contains("expert 1"));
        assert!(route(&[], 4).unwrap().experts.is_empty());
    }
}
