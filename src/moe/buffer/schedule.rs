//! When the layers are visited.
//!
//! A pass goes through its layers in order, and passes of a kind come in runs: sources go through the encoder now and then,
//! followed by many steps of decoding; texts that are scored go through both in turn. How likely a run is to end is
//! counted by how long it has lasted, so that runs of much the same length and runs that end at any time are told apart.

use super::residency::{Pass, Shelf};
use std::ops::Range;

/// Classes of a run's length so far, by powers of 2.
const LENGTHS: usize = 12;

/// Weight of what is known of all lengths in what is known of one.
const PRIOR: f64 = 0.5;

/// Runs that are taken to have ended before any did: little, so that two or three passes tell much.
const UNSEEN: f64 = 0.05;

/// The passes of one kind.
#[derive(Clone, Debug)]
struct Way {
    layers: Range<usize>,
    /// Runs of each length so far: those that ended there, those that did or did not.
    ended: [[f64; 2]; LENGTHS],
}

impl Way {
    /// How likely a run in a class of lengths is to end there with the pass in hand.
    fn end(&self, class: usize) -> f64 {
        let [ended, of] = self
            .ended
            .iter()
            .fold([0.0; 2], |sum, n| [sum[0] + n[0], sum[1] + n[1]]);
        let any = (ended + UNSEEN) / (of + 2.0 * UNSEEN);
        let [ended, of] = self.ended[class];
        (ended + PRIOR * any) / (of + PRIOR)
    }

    /// Passes still to come in a run that has had `length`, on average.
    fn rest(&self, length: u32) -> f64 {
        let (mut rest, mut alive) = (0.0, 1.0);
        for class in class(length)..LENGTHS {
            let end = self.end(class);
            let more = (1.0 - end) / end;
            if class == LENGTHS - 1 {
                return rest + alive * more;
            }
            let passes = (2 << class) - length.max(1 << class);
            let left = (1.0 - end).powi(passes as i32);
            rest += alive * more * (1.0 - left);
            alive *= left;
        }
        rest
    }
}

fn class(length: u32) -> usize {
    (length.max(1).ilog2() as usize).min(LENGTHS - 1)
}

/// The passes so far, and when each layer is due.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    /// By [`Pass`].
    ways: [Way; 2],
    pass: Pass,
    layer: usize,
    /// Passes of the run in hand.
    run: u32,
    /// Visits from the end of the pass in hand to the start of the next of each kind, on average, and between such starts.
    waits: [(f64, f64); 2],
}

impl Schedule {
    pub fn new(shelf: &Shelf) -> Schedule {
        let way = |layers: &Range<usize>| Way {
            layers: layers.clone(),
            ended: [[0.0; 2]; LENGTHS],
        };
        Schedule {
            ways: [way(&shelf.encode), way(&shelf.decode)],
            pass: Pass::Encode,
            layer: 0,
            run: 0,
            waits: [(0.0, 0.0); 2],
        }
    }

    /// A layer is visited.
    pub fn visit(&mut self, pass: Pass, layer: usize) {
        if layer == self.ways[pass as usize].layers.start {
            if self.run > 0 {
                let ended = &mut self.ways[self.pass as usize].ended[class(self.run)];
                ended[0] += f64::from(u8::from(pass != self.pass));
                ended[1] += 1.0;
            }
            self.run = if pass == self.pass { self.run + 1 } else { 1 };
            self.expect(pass);
        }
        (self.pass, self.layer) = (pass, layer);
    }

    fn expect(&mut self, pass: Pass) {
        let [run, other] = [pass as usize, 1 - pass as usize];
        // Visits of a whole run of each kind, and passes in it.
        let passes = [0, 1].map(|w| 1.0 + self.ways[w].rest(1));
        let visits = [0, 1].map(|w| passes[w] * self.ways[w].layers.len() as f64);
        let period = |w: usize| (visits[0] + visits[1]) / passes[w];
        let (way, length) = (&self.ways[run], self.run);
        self.waits[run] = (way.end(class(length)) * visits[other], period(run));
        self.waits[other] = (way.rest(length) * way.layers.len() as f64, period(other));
    }

    /// Layers that a pass goes through.
    pub fn layers(&self, pass: Pass) -> Range<usize> {
        self.ways[pass as usize].layers.clone()
    }

    /// Visits until a layer is visited next by a pass, once the visit in hand is over, and from then on between such
    /// visits, on average.
    pub fn due(&self, pass: Pass, layer: usize) -> (f64, f64) {
        let (wait, period) = self.waits[pass as usize];
        if pass == self.pass && layer > self.layer {
            return ((layer - self.layer) as f64, period);
        }
        let left = self.layers(self.pass).end.saturating_sub(self.layer);
        let until = left + layer.saturating_sub(self.layers(pass).start);
        (until as f64 + wait, period)
    }

    /// The visit that most likely follows.
    pub fn next(&self, pass: Pass, layer: usize) -> (Pass, usize) {
        let (way, other) = match pass {
            Pass::Encode => (&self.ways[0], Pass::Decode),
            Pass::Decode => (&self.ways[1], Pass::Encode),
        };
        if layer + 1 < way.layers.end {
            return (pass, layer + 1);
        }
        let next = if way.end(class(self.run)) > 0.5 { other } else { pass };
        (next, self.layers(next).start)
    }
}

#[cfg(test)]
mod tests {
    use super::Pass::{Decode, Encode};
    use super::*;

    /// After passes through 3 MoE layers of an encoder and 2 of a decoder, the last one halfway (its first layer visited).
    fn after(passes: impl IntoIterator<Item = Pass>) -> Schedule {
        let mut schedule = Schedule::new(&Shelf {
            experts: vec![4; 5],
            encode: 0..3,
            decode: 3..5,
        });
        for pass in passes {
            for l in schedule.layers(pass) {
                schedule.visit(pass, l);
            }
        }
        let first = schedule.layers(schedule.pass).start;
        schedule.layer = first;
        schedule
    }

    fn near(found: (f64, f64), expected: (f64, f64)) {
        let near = |a: f64, b: f64| (a - b).abs() < 0.1 * b;
        assert!(
            near(found.0, expected.0) && near(found.1, expected.1),
            "{found:?}, not {expected:?}"
        );
    }

    #[test]
    fn passes_in_turn_are_due_in_turn() {
        let schedule = after((0..60).map(|i| if i % 2 == 0 { Encode } else { Decode }));
        assert_eq!(schedule.next(Encode, 2), (Decode, 3));
        assert_eq!(schedule.next(Decode, 4), (Encode, 0));
        near(schedule.due(Decode, 4), (1.0, 5.0));
        near(schedule.due(Encode, 0), (2.0, 5.0));
        near(schedule.due(Encode, 2), (4.0, 5.0));
        near(schedule.due(Decode, 3), (5.0, 5.0));
    }

    #[test]
    fn a_run_ends_when_runs_end() {
        // Runs of 20 steps; the last has had 4, then 19.
        let job = |last: usize| {
            let runs = (0..30).flat_map(|_| std::iter::once(Encode).chain(vec![Decode; 20]));
            after(runs.chain([Encode]).chain(vec![Decode; last]))
        };
        let early = job(4);
        assert_eq!(early.next(Decode, 4), (Decode, 3));
        near(early.due(Decode, 3), (2.0, 43.0 / 20.0));
        let (early, late) = (early.due(Encode, 0), job(19).due(Encode, 0));
        near(early, (34.0, 43.0));
        assert!(late.0 < early.0, "{late:?}, {early:?}");
    }

    #[test]
    fn before_anything_is_known_every_wait_is_finite() {
        for passes in [vec![], vec![Encode], vec![Decode], vec![Encode, Decode]] {
            let schedule = after(passes);
            for (pass, layer) in [(Encode, 0), (Encode, 2), (Decode, 3), (Decode, 4)] {
                let (until, period) = schedule.due(pass, layer);
                assert!(until >= 1.0 && until.is_finite() && period.is_finite());
            }
        }
    }
}
