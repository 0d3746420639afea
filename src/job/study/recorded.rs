//! What a finished run tells of its experts: which ones each layer needed, visit by visit.

use crate::moe::buffer::residency::Pass;
use crate::results::{Phase, Results, RoutingLayout, StepCounts, TimingEntry};
use anyhow::{ensure, Context, Result};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Numbers of the trace that are read at once, about.
const BLOCK: usize = 4 << 20;

/// A layer's turn in a pass of a group: which way, index among [`Recorded::layers`], tokens to each expert.
pub type Visit = (Pass, usize, Vec<u32>);

/// Visits of one group in one start of the job, in their order. Experts that it had in memory were its own: another group,
/// and another start, begin with none.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Which start of the job, from 1.
    pub attempt: u32,
    /// Expert-parallel group.
    pub group: u32,
    /// Steps with visits.
    pub steps: u64,
    /// What the layers needed.
    pub visits: Vec<Visit>,
}

/// The trace of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// Names of the MoE layers, encoder first.
    pub layers: Vec<String>,
    /// Those that an encode pass goes through.
    pub encode: Range<usize>,
    /// Those that a decode pass goes through.
    pub decode: Range<usize>,
    /// Experts of each layer.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// By start of the job and group.
    pub spans: Vec<Span>,
    /// Ranks that shared a copy of the experts, where the file says so.
    pub ranks: Option<usize>,
}

impl Recorded {
    /// Reads the trace of a finished file.
    ///
    /// # Errors
    /// It has no trace, or one without layers, steps or tokens.
    pub fn read(results: &Results) -> Result<Recorded> {
        let path = results.path().display();
        let layout = results.routing().with_context(|| {
            format!("{path} has no /routing: run its job again with --routing counts and another --output")
        })?;
        let mut recorder = Recorder::new(layout);
        ensure!(
            !recorder.layers.is_empty(),
            "{path}: its model has no MoE layers: there are no experts to buffer"
        );
        for phase in Phase::ALL {
            let numbers = (layout.layers(phase).len() * layout.experts).max(1);
            let block = (BLOCK / numbers).max(1);
            for first in (0..results.steps(phase)).step_by(block) {
                for step in results.read_steps(phase, first..first + block as u64)? {
                    recorder.add(step);
                }
            }
        }
        let mut recorded = recorder.finish();
        ensure!(
            recorded.active_share() > 0.0,
            "{path}: its trace is empty: no row of the run went through the model"
        );
        recorded.ranks = ranks(&results.timing()?, &recorded.spans);
        Ok(recorded)
    }

    /// Reads the trace of the finished file at `path`.
    ///
    /// # Errors
    /// As [`Results::open`] and [`read`](Recorded::read); the message names the flag.
    pub fn open(path: &Path) -> Result<(Results, Recorded)> {
        let open = || {
            let results = Results::open(path)?;
            let recorded = Recorded::read(&results)?;
            Ok((results, recorded))
        };
        open().map_err(|error: anyhow::Error| error.context("--trace"))
    }

    /// All visits.
    pub fn visits(&self) -> impl Iterator<Item = &Visit> {
        self.spans.iter().flat_map(|span| &span.visits)
    }

    /// Experts that a visit needs on average, as a share of the layer's.
    pub fn active_share(&self) -> f64 {
        let with_tokens = |rows: &Vec<u32>| rows.iter().filter(|&&tokens| tokens > 0).count();
        let (needed, there) = self.visits().fold((0, 0), |(needed, there), (_, _, rows)| {
            (needed + with_tokens(rows), there + rows.len())
        });
        needed as f64 / there.max(1) as f64
    }
}

/// Ranks of a group in the last start of the job that left visits: as many as have times there, shared among its groups.
fn ranks(timing: &[TimingEntry], spans: &[Span]) -> Option<usize> {
    let last = spans.iter().map(|span| span.attempt).max()?;
    let of_last = timing.iter().filter(|entry| entry.attempt == last);
    let ranks = of_last.map(|entry| entry.rank as usize + 1).max()?;
    let groups = spans.iter().filter(|span| span.attempt == last);
    let groups = groups.map(|span| span.group as usize + 1).max()?;
    Some(ranks.div_ceil(groups))
}

/// Puts entries of the trace, phase after phase as they are stored, into the order in which they were run.
struct Recorder {
    layers: Vec<String>,
    encode: Range<usize>,
    decode: Range<usize>,
    experts: usize,
    top_k: usize,
    spans: BTreeMap<(u32, u32), Steps>,
}

/// Of one start and group, by step and phase: tokens, `[layers, experts]`.
type Steps = BTreeMap<(u64, Phase), Vec<u32>>;

impl Recorder {
    fn new(layout: &RoutingLayout) -> Recorder {
        let (encoder, decoder) = (layout.layers(Phase::Encode), layout.layers(Phase::Decode));
        let mut layers = encoder.to_vec();
        // A decoder-only model reads its prompts by the layers that decode.
        let decode = match encoder == decoder {
            true => 0..encoder.len(),
            false => {
                layers.extend_from_slice(decoder);
                encoder.len()..layers.len()
            }
        };
        Recorder {
            layers,
            encode: 0..encoder.len(),
            decode,
            experts: layout.experts,
            top_k: layout.top_k,
            spans: BTreeMap::new(),
        }
    }

    fn add(&mut self, step: StepCounts) {
        let span = self.spans.entry((step.attempt, step.group)).or_default();
        span.insert((step.step, step.phase), step.counts);
    }

    fn finish(self) -> Recorded {
        let (encode, decode, experts) = (self.encode, self.decode, self.experts);
        let visits = |((_, phase), counts): ((u64, Phase), Vec<u32>)| -> Vec<Visit> {
            let (pass, first) = match phase {
                Phase::Encode => (Pass::Encode, encode.start),
                Phase::Decode => (Pass::Decode, decode.start),
            };
            let layers = (first..).zip(counts.chunks_exact(experts));
            layers.map(|(layer, rows)| (pass, layer, rows.to_vec())).collect()
        };
        let span = |((attempt, group), steps): ((u32, u32), Steps)| {
            let mut numbers: Vec<u64> = steps.keys().map(|(step, _)| *step).collect();
            numbers.dedup();
            Span {
                attempt,
                group,
                steps: numbers.len() as u64,
                visits: steps.into_iter().flat_map(visits).collect(),
            }
        };
        let spans = self.spans.into_iter().map(span).collect();
        Recorded {
            layers: self.layers,
            encode,
            decode,
            experts,
            top_k: self.top_k,
            spans,
            ranks: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(encoder: &[&str], decoder: &[&str]) -> RoutingLayout {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        RoutingLayout {
            encoder_layers: names(encoder),
            decoder_layers: names(decoder),
            experts: 3,
            top_k: 1,
        }
    }

    fn step(phase: Phase, attempt: u32, group: u32, step: u64, counts: &[u32]) -> StepCounts {
        StepCounts {
            attempt,
            group,
            step,
            phase,
            counts: counts.to_vec(),
        }
    }

    fn recorded(layout: &RoutingLayout, steps: &[StepCounts]) -> Recorded {
        let mut recorder = Recorder::new(layout);
        steps.iter().for_each(|step| recorder.add(step.clone()));
        recorder.finish()
    }

    #[test]
    fn a_step_encodes_then_decodes_in_each_group_and_start() {
        use Phase::{Decode, Encode};
        let steps = [
            step(Encode, 1, 0, 1, &[1, 0, 2]),
            step(Encode, 1, 0, 7, &[0, 0, 5]),
            step(Encode, 1, 1, 3, &[4, 0, 0]),
            step(Encode, 2, 0, 1, &[0, 1, 0]),
            step(Decode, 1, 0, 1, &[1, 1, 0, 0, 0, 1]),
            step(Decode, 1, 0, 2, &[0, 0, 1, 9, 0, 0]),
            step(Decode, 1, 0, 7, &[0, 0, 0, 1, 1, 1]),
            step(Decode, 2, 0, 2, &[0, 1, 0, 0, 1, 0]),
        ];
        let found = recorded(&layout(&["e1"], &["d1", "d3"]), &steps);
        assert_eq!(found.layers, ["e1", "d1", "d3"]);
        assert_eq!((found.encode.clone(), found.decode.clone()), (0..1, 1..3));
        let spans: Vec<_> = found.spans.iter().map(|s| (s.attempt, s.group, s.steps)).collect();
        assert_eq!(spans, [(1, 0, 3), (1, 1, 1), (2, 0, 2)]);
        use Pass::{Decode as D, Encode as E};
        assert_eq!(
            found.spans[0].visits,
            [
                (E, 0, vec![1, 0, 2]),
                (D, 1, vec![1, 1, 0]),
                (D, 2, vec![0, 0, 1]),
                (D, 1, vec![0, 0, 1]),
                (D, 2, vec![9, 0, 0]),
                (E, 0, vec![0, 0, 5]),
                (D, 1, vec![0, 0, 0]),
                (D, 2, vec![1, 1, 1]),
            ]
        );
        assert_eq!(found.spans[1].visits, [(E, 0, vec![4, 0, 0])]);
        assert_eq!(
            found.spans[2].visits,
            [(E, 0, vec![0, 1, 0]), (D, 1, vec![0, 1, 0]), (D, 2, vec![0, 1, 0])]
        );
        assert_eq!(found.active_share(), 15.0 / 36.0);
    }

    #[test]
    fn prompts_and_tokens_share_a_decoders_layers() {
        let steps = [
            step(Phase::Encode, 1, 0, 4, &[1, 0, 0, 0, 0, 1]),
            step(Phase::Decode, 1, 0, 4, &[0, 1, 0, 0, 1, 0]),
        ];
        let found = recorded(&layout(&["l0", "l1"], &["l0", "l1"]), &steps);
        assert_eq!(found.layers.len(), 2);
        assert_eq!((found.encode.clone(), found.decode.clone()), (0..2, 0..2));
        let layers: Vec<usize> = found.visits().map(|(_, layer, _)| *layer).collect();
        assert_eq!(layers, [0, 1, 0, 1]);
    }

    #[test]
    fn the_last_start_says_how_many_ranks_share_the_experts() {
        let entry = |attempt, rank| TimingEntry {
            attempt,
            rank,
            phase: "gate".to_owned(),
            seconds: 0.0,
            bytes: 0,
        };
        let span = |attempt, group| Span {
            attempt,
            group,
            steps: 1,
            visits: Vec::new(),
        };
        let timing: Vec<_> = [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (3, 0)]
            .map(|(a, r)| entry(a, r))
            .into();
        assert_eq!(ranks(&timing, &[span(1, 0)]), Some(1));
        assert_eq!(ranks(&timing, &[span(1, 0), span(2, 0)]), Some(4));
        assert_eq!(ranks(&timing, &[span(2, 0), span(2, 1)]), Some(2));
        assert_eq!(ranks(&timing, &[]), None);
        assert_eq!(ranks(&[], &[span(1, 0)]), None);
    }
}
