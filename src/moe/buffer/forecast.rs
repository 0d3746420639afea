//! When an expert is likely to be needed again, from what is known of the schedule and of its activity so far.
//!
//! An expert whose layer is visited again in `d` visits, from then on every `t` visits, and which each of them needs with
//! probability `p`, is next used in `d + t (1 / p - 1)` visits, on average. The layers follow one another; which pass
//! follows which is a Markov chain, counted as it goes. `p` is learned: how often experts were needed that had been as
//! active as this one lately, and in their layer's last visit.

use super::residency::{Pass, Shelf};
use std::ops::Range;

/// Weight of the newest visit in an expert's average activity.
const NEWEST: f64 = 0.03;
/// Classes of activity.
const LEVELS: usize = 14;
/// Classes of rows in the last visit.
const LASTS: usize = 6;

/// An expert's activity in the visits of one kind.
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
    fn class(&self) -> usize {
        let last = (u32::BITS - self.last.leading_zeros()).min(LASTS as u32 - 1) as usize;
        let odds = self.mean / (1.0 - self.mean).max(1e-3);
        let mut level = 0;
        let mut edge = 1.0 / 128.0;
        while level < LEVELS - 1 && odds > edge {
            level += 1;
            edge *= 2.0;
        }
        last * LEVELS + level
    }
}

/// What is known of one way through the layers.
#[derive(Clone, Debug)]
struct Way {
    layers: Range<usize>,
    /// Passes that followed this one, of each kind; later ones weigh more.
    followed: [f64; 2],
    /// Experts of each class: visits that needed one, visits.
    classes: Vec<[f64; 2]>,
    /// `[keys]`.
    activity: Vec<Activity>,
    /// Visits until each layer is visited next this way, once the visit in hand is over, `[layers]`.
    distance: Vec<f64>,
    /// Visits from one such pass to the next.
    period: f64,
}

/// History, and what follows from it. `visit` tells it of each visit in turn.
#[derive(Clone, Debug)]
pub struct Forecast {
    first: Vec<usize>,
    layer: Vec<u32>,
    /// By [`Pass`]: encode, decode.
    ways: [Way; 2],
    /// The pass in hand.
    pass: Option<Pass>,
}

fn other(pass: Pass) -> Pass {
    match pass {
        Pass::Encode => Pass::Decode,
        Pass::Decode => Pass::Encode,
    }
}

impl Forecast {
    /// Nothing is known but the shelf.
    pub fn new(shelf: &Shelf) -> Forecast {
        let mut first = vec![0];
        for n in &shelf.experts {
            first.push(first[first.len() - 1] + n);
        }
        let unknown = Activity {
            visits: 0,
            last: 0,
            mean: 0.5,
            passed: 1.0,
        };
        let way = |layers: &Range<usize>| Way {
            layers: layers.clone(),
            followed: [0.0; 2],
            classes: vec![[0.0; 2]; LASTS * LEVELS],
            activity: vec![unknown; first[first.len() - 1]],
            distance: vec![f64::INFINITY; shelf.experts.len()],
            period: f64::INFINITY,
        };
        let layers = shelf.experts.iter().enumerate();
        Forecast {
            ways: [way(&shelf.encode), way(&shelf.decode)],
            layer: layers.flat_map(|(l, &n)| vec![l as u32; n]).collect(),
            first,
            pass: None,
        }
    }

    /// A layer is visited: `rows` for each of its experts.
    pub fn visit(&mut self, pass: Pass, layer: usize, rows: &[u32]) {
        if layer == self.ways[pass as usize].layers.start {
            if let Some(before) = self.pass.replace(pass) {
                let followed = &mut self.ways[before as usize].followed;
                followed.iter_mut().for_each(|n| *n *= 0.99);
                followed[pass as usize] += 1.0;
            }
        }
        self.learn(pass, layer, rows);
        self.schedule(pass, layer);
    }

    fn learn(&mut self, pass: Pass, layer: usize, rows: &[u32]) {
        let way = &mut self.ways[pass as usize];
        let activity = &mut way.activity[self.first[layer]..][..rows.len()];
        for (a, &n) in activity.iter_mut().zip(rows) {
            let needed = f64::from(n.min(1));
            if a.visits > 0 {
                let class = &mut way.classes[a.class()];
                *class = [class[0] + needed, class[1] + 1.0];
            }
            a.mean += NEWEST.max(1.0 / (f64::from(a.visits) + 2.0)) * (needed - a.mean);
            a.visits += 1;
            a.last = n;
        }
        for a in activity {
            let [needed, of] = way.classes[a.class()];
            let p = (needed + 2.0 * a.mean) / (of + 2.0);
            a.passed = 1.0 / p.max(1e-3) - 1.0;
        }
    }

    /// When each layer is due, seen from a visit.
    fn schedule(&mut self, pass: Pass, layer: usize) {
        let len = |pass: Pass| self.ways[pass as usize].layers.len() as f64;
        let follows = |pass: Pass, next: Pass| {
            let n = self.ways[pass as usize].followed;
            (n[next as usize] + 0.05) / (n[0] + n[1] + 0.1)
        };
        // Visits from the end of a pass to the start of the next one of a kind.
        let wait = |from: Pass, to: Pass| {
            let (back, between) = (follows(other(to), to), len(other(to)));
            let away = between * (1.0 - back) / back;
            if from == to {
                (1.0 - follows(to, to)) * (between + away)
            } else {
                away
            }
        };
        let waits = [Pass::Encode, Pass::Decode].map(|to| [wait(pass, to), len(to) + wait(to, to)]);
        let left = (self.ways[pass as usize].layers.end - layer) as f64;
        for (way, [wait, period]) in self.ways.iter_mut().zip(waits) {
            for l in way.layers.clone() {
                way.distance[l] = left + wait + (l - way.layers.start) as f64;
            }
            way.period = period;
        }
        let way = &mut self.ways[pass as usize];
        for l in layer + 1..way.layers.end {
            way.distance[l] = (l - layer) as f64;
        }
    }

    /// Visits until an expert is to be expected to be used, once the visit in hand is over.
    pub fn until(&self, key: usize) -> f64 {
        let layer = self.layer[key] as usize;
        let until = |way: &Way| match way.layers.contains(&layer) {
            true => way.distance[layer] + way.period * way.activity[key].passed,
            false => f64::INFINITY,
        };
        until(&self.ways[0]).min(until(&self.ways[1]))
    }

    /// Visits from one pass of a kind to the next, on average.
    pub fn period(&self, pass: Pass) -> f64 {
        self.ways[pass as usize].period
    }

    /// How likely the layer's next visit is to need an expert.
    pub fn probability(&self, pass: Pass, key: usize) -> f64 {
        1.0 / (1.0 + self.ways[pass as usize].activity[key].passed)
    }

    /// The visit that most likely follows.
    pub fn next(&self, pass: Pass, layer: usize) -> (Pass, usize) {
        let way = &self.ways[pass as usize];
        if layer + 1 < way.layers.end {
            return (pass, layer + 1);
        }
        let next = match way.followed[other(pass) as usize] > way.followed[pass as usize] {
            true => other(pass),
            false => pass,
        };
        (next, self.ways[next as usize].layers.start)
    }
}
