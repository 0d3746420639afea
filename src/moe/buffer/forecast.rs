//! When an expert is likely to be needed again, from what is known of the schedule and of its activity so far.
//!
//! An expert whose layer is visited again in `d` visits, from then on every `t` visits, and which each of them needs with
//! probability `p`, is next used in `d + t (1 / p - 1)` visits, on average. `p` is learned: how often experts were needed
//! that had been as active as this one lately, and in their layer's last visit.

use super::residency::{Pass, Shelf};
use super::schedule::Schedule;

/// Weight of the newest visit in an expert's average activity, once there were many.
const NEWEST: f64 = 0.01;
/// Classes of activity: odds of a use by powers of 2, from 1 in 128 to 32 to 1.
const LEVELS: usize = 14;
/// Classes of rows in the last visit: none, 1, up to 3, 7, 15, more.
const LASTS: usize = 6;
/// Visits of a class that a guess from an expert's own activity counts as much as.
const PRIOR: f64 = 8.0;
/// No expert is less likely to be needed.
const LEAST: f64 = 1e-3;

/// An expert's activity in passes of one kind.
#[derive(Clone, Copy, Debug)]
struct Activity {
    /// Visits of its layer.
    visits: u32,
    /// Rows in the last one.
    last: u32,
    /// Share of visits that needed it, the later ones weighing more.
    mean: f64,
    /// Visits of the layer to be expected before the one that needs it: `1 / p - 1`.
    passed: f64,
}

impl Activity {
    const UNKNOWN: Activity = Activity {
        visits: 0,
        last: 0,
        mean: 0.5,
        passed: 1.0,
    };

    /// Experts are alike if they were about as active lately and in the last visit.
    fn class(&self) -> usize {
        let last = (u32::BITS - self.last.leading_zeros()).min(LASTS as u32 - 1) as usize;
        let odds = self.mean / (1.0 - self.mean).max(LEAST);
        let edges = std::iter::successors(Some(1.0 / 128.0), |edge| Some(edge * 2.0));
        let level = edges.take(LEVELS - 1).filter(|&edge| odds > edge).count();
        last * LEVELS + level
    }

    /// What an expert's activity says before its class is known: half its share of visits, half what its last rows say
    /// (a mean of n rows, spread as widely as such counts are, leaves none with probability 1 / (1 + n)).
    fn guess(&self) -> f64 {
        let last = f64::from(self.last);
        0.5 * (self.mean + last / (1.0 + last))
    }

    fn note(&mut self, rows: u32) {
        let newest = NEWEST.max(1.0 / (f64::from(self.visits) + 2.0));
        self.mean += newest * (f64::from(rows.min(1)) - self.mean);
        self.visits += 1;
        self.last = rows;
    }
}

/// What is known of the experts in passes of one kind.
#[derive(Clone, Debug)]
struct History {
    pass: Pass,
    /// Experts of each class: visits that needed one, visits.
    classes: Vec<[f64; 2]>,
    /// `[keys]`.
    activity: Vec<Activity>,
    /// Visits until each layer is visited next, and between such visits, `[layers]`.
    due: Vec<(f64, f64)>,
}

/// History, and what follows from it. `visit` tells it of each visit in turn.
#[derive(Clone, Debug)]
pub(super) struct Forecast {
    first: Vec<usize>,
    layer: Vec<u32>,
    schedule: Schedule,
    /// By [`Pass`].
    histories: [History; 2],
}

impl Forecast {
    /// Nothing is known but the shelf.
    pub fn new(shelf: &Shelf) -> Forecast {
        let mut first = vec![0];
        for n in &shelf.experts {
            first.push(first[first.len() - 1] + n);
        }
        let layers = shelf.experts.iter().enumerate();
        Forecast {
            layer: layers.flat_map(|(l, &n)| vec![l as u32; n]).collect(),
            schedule: Schedule::new(shelf),
            histories: [Pass::Encode, Pass::Decode].map(|pass| History {
                pass,
                classes: vec![[0.0; 2]; LASTS * LEVELS],
                activity: vec![Activity::UNKNOWN; first[first.len() - 1]],
                due: vec![(f64::INFINITY, f64::INFINITY); shelf.experts.len()],
            }),
            first,
        }
    }

    /// A layer is visited: `rows` for each of its experts.
    pub fn visit(&mut self, pass: Pass, layer: usize, rows: &[u32]) {
        let history = &mut self.histories[pass as usize];
        let activity = &mut history.activity[self.first[layer]..][..rows.len()];
        for (expert, &n) in activity.iter_mut().zip(rows) {
            if expert.visits > 0 {
                let class = &mut history.classes[expert.class()];
                class[0] += f64::from(n.min(1));
                class[1] += 1.0;
            }
            expert.note(n);
        }
        for expert in activity {
            let [needed, of] = history.classes[expert.class()];
            let p = (needed + PRIOR * expert.guess()) / (of + PRIOR);
            expert.passed = 1.0 / p.max(LEAST) - 1.0;
        }
        self.schedule.visit(pass, layer);
        for history in &mut self.histories {
            for l in self.schedule.layers(history.pass) {
                history.due[l] = self.schedule.due(history.pass, l);
            }
        }
    }

    /// Visits until an expert is to be expected to be used, once the visit in hand is over.
    pub fn until(&self, key: usize) -> f64 {
        let layer = self.layer[key] as usize;
        let [encode, decode] = &self.histories;
        let until = |h: &History| h.due[layer].0 + h.due[layer].1 * h.activity[key].passed;
        until(encode).min(until(decode))
    }

    /// How likely an expert is to be needed by the visit `next`, and how many visits later it is to be expected to be used
    /// once more.
    pub fn at(&self, next: (Pass, usize), key: usize) -> (f64, f64) {
        let history = &self.histories[next.0 as usize];
        let passed = history.activity[key].passed;
        (1.0 / (1.0 + passed), history.due[next.1].1 * (1.0 + passed))
    }

    /// The visit that most likely follows.
    pub fn next(&self, pass: Pass, layer: usize) -> (Pass, usize) {
        self.schedule.next(pass, layer)
    }
}
