//! What the experts did for each output, credited when it is finished: so a resumed job's sums equal an undisturbed one's.

use crate::moe::gate::Routes;
use crate::moe::Context;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Numbers that an output's counts may take. Beyond them further steps count as the last of those before, so that a text
/// that is read in very many steps doesn't fill the memory with them.
const MOST_COUNTS: usize = 4 << 20;

/// The routes of one pass through the encoder's or the decoder's MoE layers.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// Number of the group's step.
    step: u64,
    layers: &'a [Routes],
    experts: usize,
    by_token: bool,
}

impl<'a> Pass<'a> {
    /// What the MoE layers `layers` have just done, where it is kept; nothing after a failure.
    pub fn of(ctx: &'a Context, step: u64, layers: Range<usize>) -> Option<Pass<'a>> {
        let routes = ctx.routes.as_deref().filter(|_| ctx.failure.is_none())?;
        Some(Pass {
            step,
            layers: &routes[layers],
            experts: ctx.loads.first().map_or(0, Vec::len),
            by_token: ctx.routes_by_token,
        })
    }
}

/// What the experts did for rows of an output.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    /// Tokens by step.
    steps: Vec<(u64, Tally)>,
    /// Numbers that they take.
    counts: usize,
    /// Layers times choices of each.
    width: usize,
    /// Where they are wanted: chosen experts and their weights, `[rows, layers, top_k]`.
    chosen: (Vec<u16>, Vec<f32>),
    /// Rows before each pass.
    before: Vec<u32>,
}

/// Tokens by layer and expert.
#[derive(Clone, Debug)]
enum Tally {
    /// `layer * experts + expert` of each choice, as long as those are few.
    Choices(Vec<u32>),
    /// `[layers, experts]`
    Counts(Vec<u32>),
}

impl Tally {
    fn choices(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let (few, all) = match self {
            Tally::Choices(few) => (&few[..], &[][..]),
            Tally::Counts(all) => (&[][..], &all[..]),
        };
        let few = few.iter().map(|&cell| (cell as usize, 1));
        few.chain(all.iter().copied().enumerate())
    }

    /// Adds `n` choices among `cells` layers and experts.
    fn add(&mut self, cells: usize, n: usize, choices: impl Iterator<Item = usize>) {
        if let Tally::Choices(few) = self {
            if few.len() + n <= cells {
                few.reserve_exact(n);
                few.extend(choices.map(|cell| cell as u32));
                return;
            }
            let mut counts = vec![0; cells];
            self.choices().for_each(|(cell, n)| counts[cell] += n);
            *self = Tally::Counts(counts);
        }
        if let Tally::Counts(counts) = self {
            choices.for_each(|cell| counts[cell] += 1);
        }
    }

    fn numbers(&self) -> usize {
        match self {
            Tally::Choices(all) | Tally::Counts(all) => all.len(),
        }
    }
}

impl Visits {
    /// Adds rows `rows` of a pass.
    pub fn add(&mut self, pass: &Pass, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let Pass { layers, experts, .. } = *pass;
        let of_layer = |r: &Routes| rows.start * r.top_k..rows.end * r.top_k;
        let chosen = layers.iter().enumerate().flat_map(|(layer, r)| {
            let chosen = r.experts[of_layer(r)].iter();
            chosen.map(move |&expert| layer * experts + expert as usize)
        });
        self.width = layers.iter().map(|r| r.top_k).sum();
        let last = self.steps.last().map(|(step, _)| *step);
        if last.is_none_or(|last| last != pass.step && self.counts < MOST_COUNTS) {
            self.steps.push((pass.step, Tally::Choices(Vec::new())));
        }
        if let Some((_, tally)) = self.steps.last_mut() {
            self.counts -= tally.numbers();
            tally.add(layers.len() * experts, rows.len() * self.width, chosen);
            self.counts += tally.numbers();
        }
        if pass.by_token {
            let before = self.chosen.0.len() / self.width.max(1);
            self.before.push(before as u32);
            for row in rows {
                for r in layers {
                    let choices = row * r.top_k..(row + 1) * r.top_k;
                    self.chosen
                        .0
                        .extend(r.experts[choices.clone()].iter().map(|&e| e as u16));
                    self.chosen.1.extend_from_slice(&r.weights[choices]);
                }
            }
        }
    }

    /// Adds the tokens of every step to `counts`.
    fn count(&self, decoding: bool, cells: usize, counts: &mut Counts) {
        for (step, tally) in &self.steps {
            let all = counts.entry((*step, decoding)).or_insert_with(|| vec![0; cells]);
            tally.choices().for_each(|(cell, n)| all[cell] += n);
        }
    }
}

/// Everything the experts did for one output.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    /// Whether the source's encoding is credited to this output: to the first of a sentence's outputs, once.
    pub credits_source: bool,
    /// Source tokens through the encoder, or a prompt's through the decoder.
    pub source: Arc<Visits>,
    /// Rows of the decoder, all beams.
    pub decoder: Visits,
}

/// Tokens by (step, whether decoding): `[layers of that phase, experts]`.
pub type Counts = BTreeMap<(u64, bool), Vec<u32>>;

/// Chosen experts of an output's tokens, where they are kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRoutes {
    /// `[source tokens, encoder MoE layers, top_k]`
    pub encoder: (Vec<u16>, Vec<f32>),
    /// `[generated positions, decoder MoE layers, top_k]`, along the winning hypothesis.
    pub decoder: (Vec<u16>, Vec<f32>),
}

impl Trace {
    /// Adds this output's tokens to `counts`; `layers` are the MoE layers that sources go through and those of the decoder.
    pub fn count(&self, layers: [usize; 2], experts: usize, counts: &mut Counts) {
        if self.credits_source {
            self.source.count(false, layers[0] * experts, counts);
        }
        self.decoder.count(true, layers[1] * experts, counts);
    }

    /// The choices behind each source token and each token that was read to be scored.
    pub fn all_tokens(&mut self) -> TokenRoutes {
        TokenRoutes {
            encoder: self.source.chosen.clone(),
            decoder: std::mem::take(&mut self.decoder.chosen),
        }
    }

    /// The choices behind each source token and each generated one, the latter along `path`
    /// ([`super::search::Hypothesis::path`]).
    pub fn tokens(&self, path: &[u32]) -> TokenRoutes {
        let Visits {
            chosen, before, width, ..
        } = &self.decoder;
        let mut decoder = (Vec::new(), Vec::new());
        for (before, row) in before.iter().zip(path) {
            let first = (before + row) as usize * width;
            decoder.0.extend_from_slice(&chosen.0[first..first + width]);
            decoder.1.extend_from_slice(&chosen.1[first..first + width]);
        }
        TokenRoutes {
            encoder: self.source.chosen.clone(),
            decoder,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(first: u32) -> Routes {
        Routes {
            top_k: 2,
            experts: (first..first + 8).collect(),
            weights: vec![0.25; 8],
        }
    }

    fn pass(step: u64, layers: &[Routes], by_token: bool) -> Pass<'_> {
        Pass {
            step,
            layers,
            experts: 20,
            by_token,
        }
    }

    #[test]
    fn counts_and_token_routes_come_from_the_right_rows() {
        let layers = [layer(0), layer(10)];
        let mut trace = Trace {
            credits_source: true,
            ..Trace::default()
        };
        let mut source = Visits::default();
        source.add(&pass(3, &layers, true), 1..3);
        trace.source = Arc::new(source);
        trace.decoder.add(&pass(4, &layers, true), 1..3);
        trace.decoder.add(&pass(5, &layers, true), 1..3);
        let mut counts = Counts::new();
        trace.count([2, 2], 20, &mut counts);
        let expected: Vec<u32> = (0..40)
            .map(|i| [2, 3, 4, 5, 32, 33, 34, 35].contains(&i) as u32)
            .collect();
        assert_eq!(counts[&(3, false)], expected);
        assert_eq!((&counts[&(4, true)], &counts[&(5, true)]), (&expected, &expected));
        Trace {
            credits_source: false,
            ..trace.clone()
        }
        .count([2, 2], 20, &mut counts);
        assert_eq!(counts[&(3, false)], expected, "the source counts once");
        assert_eq!(counts[&(5, true)].iter().sum::<u32>(), 16);
        let routes = trace.tokens(&[1, 0]);
        assert_eq!(routes.encoder.0, [2, 3, 12, 13, 4, 5, 14, 15]);
        assert_eq!(routes.decoder.0, [4, 5, 14, 15, 2, 3, 12, 13]);
        assert_eq!(routes.decoder.1, [0.25; 8]);
        let all = trace.all_tokens().decoder.0;
        assert_eq!(all, [2, 3, 12, 13, 4, 5, 14, 15, 2, 3, 12, 13, 4, 5, 14, 15]);
    }

    #[test]
    fn passes_without_rows_leave_no_trace() {
        let layers = [layer(0), layer(10)];
        let mut visits = Visits::default();
        visits.add(&pass(3, &layers, true), 2..2);
        let mut counts = Counts::new();
        visits.count(false, 40, &mut counts);
        assert!(counts.is_empty() && visits.before.is_empty());
    }

    #[test]
    fn what_is_kept_of_a_text_does_not_grow_with_it() {
        let layers = [layer(0), layer(10)];
        let held = |v: &Visits| v.steps.iter().map(|(_, tally)| tally.numbers()).sum::<usize>();
        let mut visits = Visits::default();
        let (mut steps, rows) = (0, 100);
        for _ in 0..rows {
            visits.add(&pass(7, &layers, false), 0..4);
            steps = visits.steps.len();
        }
        assert_eq!((steps, held(&visits), visits.chosen.0.len()), (1, 2 * 20, 0));
        let mut counts = Counts::new();
        visits.count(true, 40, &mut counts);
        assert_eq!(counts[&(7, true)][..9], [100, 100, 100, 100, 100, 100, 100, 100, 0]);
        // Steps without end: all tokens count, and the books stay within their bound.
        let many = MOST_COUNTS as u64 / 16 + 1000;
        for step in 8..many {
            visits.add(&pass(step, &layers, false), 0..4);
        }
        assert!(held(&visits) <= MOST_COUNTS + 40 && held(&visits) == visits.counts);
        let mut counts = Counts::new();
        visits.count(true, 40, &mut counts);
        let all: u64 = counts.values().flatten().map(|&n| u64::from(n)).sum();
        assert_eq!(all, 16 * (100 + many - 8));
    }
}
