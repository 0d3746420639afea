//! What the experts did for each sentence, credited when the sentence is finished: so a resumed job's sums equal an
//! undisturbed one's.

use crate::moe::gate::Routes;
use std::collections::BTreeMap;

/// The routes of a run of rows through the MoE layers of one step.
#[derive(Clone, Debug, Default)]
pub struct Visit {
    /// Number of the group's step.
    pub step: u64,
    /// By layer: chosen experts `[rows, top_k]`.
    experts: Vec<Vec<u32>>,
    /// By layer: their weights `[rows, top_k]`.
    weights: Vec<Vec<f32>>,
}

impl Visit {
    /// Copies rows `first..first + rows` of each layer's routes.
    pub fn of(step: u64, layers: &[Routes], first: usize, rows: usize) -> Visit {
        let part = |r: &Routes| first * r.top_k..(first + rows) * r.top_k;
        Visit {
            step,
            experts: layers.iter().map(|r| r.experts[part(r)].to_vec()).collect(),
            weights: layers.iter().map(|r| r.weights[part(r)].to_vec()).collect(),
        }
    }

    /// Appends all rows' choices.
    fn rows(&self, k: usize, ids: &mut Vec<u16>, weights: &mut Vec<f32>) {
        let rows = self.experts.first().map_or(0, |e| e.len() / k);
        (0..rows).for_each(|row| self.row(row, k, ids, weights));
    }

    /// Appends a row's choices of every layer: `[layers, top_k]`.
    fn row(&self, row: usize, k: usize, ids: &mut Vec<u16>, weights: &mut Vec<f32>) {
        for (experts, shares) in self.experts.iter().zip(&self.weights) {
            ids.extend(experts[row * k..(row + 1) * k].iter().map(|&e| e as u16));
            weights.extend_from_slice(&shares[row * k..(row + 1) * k]);
        }
    }
}

/// Everything the experts did for one output.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Whether the source's encoding is credited to this output: to the first of a sentence's outputs, once.
    pub credits_source: bool,
    /// Source tokens through the encoder, or a prompt's through the decoder, part by part.
    pub encoder: Vec<Visit>,
    /// Steps of the decoder, all beams.
    pub decoder: Vec<Visit>,
}

/// Tokens by (step, whether decoding): `[layers of that phase, experts]`.
pub type Counts = BTreeMap<(u64, bool), Vec<u32>>;

/// Chosen experts of an output's tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRoutes {
    /// `[source tokens, encoder MoE layers, top_k]`
    pub encoder: (Vec<u16>, Vec<f32>),
    /// `[generated positions, decoder MoE layers, top_k]`, along the winning hypothesis.
    pub decoder: (Vec<u16>, Vec<f32>),
}

impl Trace {
    /// Adds this output's tokens to `counts`.
    pub fn count(&self, experts: usize, counts: &mut Counts) {
        let source = self.encoder.iter().filter(|_| self.credits_source).map(|v| (false, v));
        for (decoding, visit) in source.chain(self.decoder.iter().map(|v| (true, v))) {
            let layers = visit.experts.len();
            let tally = counts
                .entry((visit.step, decoding))
                .or_insert_with(|| vec![0; layers * experts]);
            for (layer, chosen) in visit.experts.iter().enumerate() {
                chosen.iter().for_each(|&e| tally[layer * experts + e as usize] += 1);
            }
        }
    }

    /// The choices behind each source token and each token that was read to be scored.
    pub fn all_tokens(&self, top_k: usize) -> TokenRoutes {
        let mut routes = self.tokens(top_k, &[]);
        let all = self.decoder.iter();
        all.for_each(|v| v.rows(top_k, &mut routes.decoder.0, &mut routes.decoder.1));
        routes
    }

    /// The choices behind each source token and each generated one, the latter along `path`
    /// ([`super::search::Hypothesis::path`]).
    pub fn tokens(&self, top_k: usize, path: &[u32]) -> TokenRoutes {
        let mut routes = TokenRoutes::default();
        let source = self.encoder.iter();
        source.for_each(|v| v.rows(top_k, &mut routes.encoder.0, &mut routes.encoder.1));
        for (visit, &row) in self.decoder.iter().zip(path) {
            visit.row(row as usize, top_k, &mut routes.decoder.0, &mut routes.decoder.1);
        }
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_token_routes_come_from_the_right_rows() {
        let layer = |first: u32| Routes {
            top_k: 2,
            experts: (first..first + 8).collect(),
            weights: vec![0.25; 8],
        };
        let visit = |step| Visit::of(step, &[layer(0), layer(10)], 1, 2);
        let trace = Trace {
            credits_source: true,
            encoder: vec![visit(3)],
            decoder: vec![visit(4), visit(4)],
        };
        let mut counts = Counts::new();
        trace.count(20, &mut counts);
        let expected: Vec<u32> = (0..40)
            .map(|i| [2, 3, 4, 5, 32, 33, 34, 35].contains(&i) as u32)
            .collect();
        assert_eq!(counts[&(3, false)], expected);
        assert_eq!(counts[&(4, true)].iter().sum::<u32>(), 16);
        Trace {
            credits_source: false,
            ..trace.clone()
        }
        .count(20, &mut counts);
        assert_eq!(counts[&(3, false)], expected, "the source counts once");
        let routes = trace.tokens(2, &[1, 0]);
        assert_eq!(routes.encoder.0, [2, 3, 12, 13, 4, 5, 14, 15]);
        assert_eq!(routes.decoder.0, [4, 5, 14, 15, 2, 3, 12, 13]);
    }
}
