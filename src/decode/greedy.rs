//! Greedy search: the likeliest token, step by step; or sampling, where the one token offered was drawn.

use super::candidates::Candidate;
use super::search::{Bounds, Hypothesis, Settings, Stop};

/// The one hypothesis of a greedy search.
#[derive(Debug)]
pub struct Greedy {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    path: Vec<u32>,
    bounds: Bounds,
}

impl Greedy {
    /// A search that has only the start token.
    pub fn new(bounds: Bounds) -> Greedy {
        Greedy {
            ids: vec![bounds.start],
            logprobs: Vec::new(),
            path: Vec::new(),
            bounds,
        }
    }

    /// Tokens so far.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Always row 0.
    pub fn path(&self) -> &[u32] {
        &self.path
    }

    /// Where the output begins and how long it may be.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Appends a token; the result if that was the last one.
    pub fn advance(&mut self, settings: &Settings, next: Candidate, stop: &mut Stop) -> Option<Hypothesis> {
        let stops = stop(&self.ids[1..], next.token);
        self.ids.push(next.token);
        self.logprobs.push(next.logprob);
        self.path.push(0);
        let done = stops || settings.eos.contains(&next.token) || self.ids.len() >= self.bounds.max_length;
        done.then(|| Hypothesis {
            score: self.logprobs.iter().sum(),
            ids: std::mem::take(&mut self.ids),
            logprobs: std::mem::take(&mut self.logprobs),
            path: std::mem::take(&mut self.path),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bounds: Bounds, stop: &mut Stop) -> Vec<u32> {
        let (settings, mut search) = (Settings::plain(1, 20), Greedy::new(bounds));
        for token in 2.. {
            let next = Candidate { token, logprob: -0.5 };
            if let Some(h) = search.advance(&settings, next, stop) {
                assert_eq!((h.logprobs.len(), h.path.len()), (h.ids.len() - 1, h.ids.len() - 1));
                return h.ids;
            }
        }
        unreachable!("an output ends at its full length");
    }

    #[test]
    fn an_output_begins_and_ends_where_its_own_bounds_are() {
        let bounds = Bounds {
            start: 9,
            max_length: 5,
            ..Settings::plain(1, 20).bounds(None)
        };
        assert_eq!(found(bounds, &mut |_, _| false), [9, 2, 3, 4, 5]);
        assert_eq!(
            found(bounds, &mut |ids, next| (ids, next) == (&[2, 3], 4)),
            [9, 2, 3, 4]
        );
        assert_eq!(found(bounds, &mut |ids, _| ids.is_empty()), [9, 2]);
    }
}
