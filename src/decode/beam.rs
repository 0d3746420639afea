//! Beam search as Hugging Face's `generate` does it (ARCHITECTURES "Generation").

use super::candidates::Candidate;
use super::search::{Bounds, EarlyStopping, Hypothesis, Settings, Stop};

/// A hypothesis that still grows.
#[derive(Clone, Debug)]
struct Running {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
    path: Vec<u32>,
    /// Sum of log-probabilities, forced tokens counting 0.
    sum: f32,
}

/// All hypotheses of one sentence.
#[derive(Debug)]
pub struct Beams {
    running: Vec<Running>,
    /// Best first, at most as many as beams.
    finished: Vec<Hypothesis>,
    improving: bool,
    bounds: Bounds,
}

impl Beams {
    /// A search that has only the start token. Until hypotheses differ there is just one: Hugging Face starts the
    /// others at -1e9, where they never win.
    pub fn new(bounds: Bounds) -> Beams {
        let first = Running {
            ids: vec![bounds.start],
            logprobs: Vec::new(),
            path: Vec::new(),
            sum: 0.0,
        };
        Beams {
            running: vec![first],
            finished: Vec::new(),
            improving: true,
            bounds,
        }
    }

    /// Hypotheses that still grow.
    pub fn rows(&self) -> usize {
        self.running.len()
    }

    /// Tokens of one of them.
    pub fn ids(&self, row: usize) -> &[u32] {
        &self.running[row].ids
    }

    /// Which row of each earlier step it stems from.
    pub fn path(&self, row: usize) -> &[u32] {
        &self.running[row].path
    }

    /// Where the output begins and how long it may be.
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// One step: extends the hypotheses by the best of their candidates; the result once the search has ended.
    pub fn advance(
        &mut self,
        settings: &Settings,
        candidates: &[impl AsRef<[Candidate]>],
        stop: &mut Stop,
    ) -> Option<Hypothesis> {
        let beams = settings.beams;
        let best = self.best(settings.candidates(), candidates);
        let length = self.running[0].ids.len() + 1;
        let mut ends = |row: usize, c: Candidate| {
            let stops = stop(&self.running[row].ids[1..], c.token);
            stops || settings.eos.contains(&c.token) || length >= self.bounds.max_length
        };
        let ends: Vec<bool> = best.iter().map(|&(_, row, c)| ends(row, c)).collect();
        let full_early = settings.early_stopping == EarlyStopping::True && self.finished.len() == beams;
        let all_end = ends.iter().all(|&e| e);
        if self.improving && !full_early {
            let ending = best.iter().zip(&ends).take(beams).filter(|(_, &ends)| ends);
            for (&(sum, row, c), _) in ending {
                let score = sum / power(length - 1, settings.length_penalty);
                let h = self.running[row].extended(row, c, sum);
                self.finished.push(Hypothesis {
                    ids: h.ids,
                    logprobs: h.logprobs,
                    path: h.path,
                    score,
                });
            }
            // Stable: of equal scores the earlier one stays ahead.
            self.finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            self.finished.truncate(beams);
        }
        let growing = best.iter().zip(&ends).filter(|(_, &ends)| !ends).take(beams);
        let next: Vec<Running> = growing
            .map(|(&(sum, row, c), _)| self.running[row].extended(row, c, sum))
            .collect();
        let full = self.finished.len() == beams;
        if let (true, Some(front)) = (full, next.first()) {
            let never = settings.early_stopping == EarlyStopping::Never && settings.length_penalty > 0.0;
            let hoped = if never { self.bounds.max_length - 1 } else { length - 1 };
            let hope = front.sum / power(hoped, settings.length_penalty);
            self.improving &= hope > self.finished[beams - 1].score;
        }
        let stop = !self.improving || (full && settings.early_stopping == EarlyStopping::True) || all_end;
        if stop || next.is_empty() {
            return Some(self.take_best());
        }
        self.running = next;
        None
    }

    /// The best `count` of all rows' candidates: (sum, row, candidate), best first, ties by row, then token.
    fn best(&self, count: usize, candidates: &[impl AsRef<[Candidate]>]) -> Vec<(f32, usize, Candidate)> {
        let rows = self.running.iter().zip(candidates).enumerate();
        let mut all: Vec<(f32, usize, Candidate)> = rows
            .flat_map(|(row, (h, offered))| offered.as_ref().iter().map(move |&c| (c.logprob + h.sum, row, c)))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(a.2.token.cmp(&b.2.token)));
        all.truncate(count);
        all
    }

    fn take_best(&mut self) -> Hypothesis {
        if self.finished.is_empty() {
            // Only when no candidate was left at all: the best running hypothesis as it stands.
            let h = self.running.swap_remove(0);
            return Hypothesis {
                score: h.sum,
                ids: h.ids,
                logprobs: h.logprobs,
                path: h.path,
            };
        }
        self.finished.swap_remove(0)
    }
}

impl Running {
    fn extended(&self, row: usize, c: Candidate, sum: f32) -> Running {
        let mut h = self.clone();
        h.ids.push(c.token);
        h.logprobs.push(c.logprob);
        h.path.push(row as u32);
        Running { sum, ..h }
    }
}

fn power(length: usize, penalty: f32) -> f32 {
    (length as f64).powf(f64::from(penalty)) as f32
}

#[cfg(test)]
mod tests {
    use super::super::search::Search;
    use super::*;

    fn settings(beams: usize, max_length: usize) -> Settings {
        Settings::plain(beams, max_length)
    }

    /// Log-probabilities of a small made-up language: depend on the last token and the length.
    fn offers(ids: &[u32], count: usize) -> Vec<Candidate> {
        let last = ids[ids.len() - 1] as usize;
        let weight = |t: usize| 1.0 + ((last * 7 + t * 5 + ids.len() * 3) % 11) as f32;
        let total: f32 = (1..12).map(weight).sum();
        let mut all: Vec<Candidate> = (1..12)
            .map(|t| Candidate {
                token: t as u32,
                logprob: (weight(t) / total).ln(),
            })
            .collect();
        all.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.token.cmp(&b.token)));
        all.truncate(count);
        all
    }

    /// Stands for a stop string, which may be in an output's text from the second token on.
    fn stops(generated: &[u32], next: u32, often: u32) -> bool {
        generated.last().is_some_and(|last| (last + next) % 9 < often)
    }

    /// The reference's algorithm, with its -1e9 beams, on plain lists.
    fn slowly(s: &Settings, b: Bounds, often: u32) -> (f32, Vec<u32>) {
        let nb = s.beams;
        let mut run: Vec<(f32, Vec<u32>)> = (0..nb)
            .map(|i| (if i == 0 { 0.0 } else { -1e9 }, vec![b.start]))
            .collect();
        let (mut done, mut improving): (Vec<(f32, Vec<u32>)>, bool) = (Vec::new(), true);
        loop {
            let cur = run[0].1.len();
            let mut all: Vec<(f32, Vec<u32>)> = Vec::new();
            for (score, ids) in &run {
                for c in offers(ids, 11) {
                    all.push((score + c.logprob, [ids.clone(), vec![c.token]].concat()));
                }
            }
            all.sort_by(|a, b| b.0.total_cmp(&a.0));
            all.truncate(2 * nb);
            let fin = |q: &[u32]| {
                let (next, before) = q[1..].split_last().unwrap();
                s.eos.contains(next) || q.len() >= b.max_length || stops(before, *next, often)
            };
            if improving && !(s.early_stopping == EarlyStopping::True && done.len() == nb) {
                let ending = all.iter().take(nb).filter(|c| fin(&c.1));
                done.extend(ending.map(|(v, q)| (v / (cur as f32).powf(s.length_penalty), q.clone())));
                done.sort_by(|a, b| b.0.total_cmp(&a.0));
                done.truncate(nb);
            }
            let all_fin = all.iter().all(|c| fin(&c.1));
            run = all
                .iter()
                .map(|(v, q)| (v - if fin(q) { 1e9 } else { 0.0 }, q.clone()))
                .collect();
            run.sort_by(|a, b| b.0.total_cmp(&a.0));
            run.truncate(nb);
            if done.len() == nb {
                let n = if s.early_stopping == EarlyStopping::Never {
                    b.max_length - 1
                } else {
                    cur
                };
                improving &= run[0].0 / (n as f32).powf(s.length_penalty) > done[nb - 1].0;
            }
            if !improving || (s.early_stopping == EarlyStopping::True && done.len() == nb) || all_fin {
                return done.swap_remove(0);
            }
        }
    }

    #[test]
    fn agrees_with_the_reference_algorithm() {
        let mut stopped = 0;
        let starts = (0..40).map(|i| (2 + i % 3, [2, 3, 6, 12][i / 3 % 4], 2 + i as u32));
        for (beams, max_length, start) in starts {
            for early in [EarlyStopping::False, EarlyStopping::True, EarlyStopping::Never] {
                for (penalty, often) in [1.0, 0.6, 2.0].into_iter().flat_map(|p| [0, 2, 5].map(|o| (p, o))) {
                    // The caches may have room for more than this output takes, and it begins where its prompt ends.
                    let s = Settings {
                        early_stopping: early,
                        length_penalty: penalty,
                        ..settings(beams, 20)
                    };
                    let bounds = Bounds {
                        start,
                        max_length,
                        ..s.bounds(None)
                    };
                    let mut search = Beams::new(bounds);
                    let found = loop {
                        let all: Vec<Vec<Candidate>> = (0..search.rows())
                            .map(|r| offers(search.ids(r), s.candidates()))
                            .collect();
                        if let Some(h) = search.advance(&s, &all, &mut |ids, next| stops(ids, next, often)) {
                            break h;
                        }
                    };
                    let (score, ids) = slowly(&s, bounds, often);
                    assert_eq!(
                        found.ids, ids,
                        "{beams} beams, {max_length} tokens, {early:?}, {penalty}, {often}"
                    );
                    assert!((found.score - score).abs() < 1e-5);
                    assert_eq!((found.path.len(), found.logprobs.len()), (ids.len() - 1, ids.len() - 1));
                    let (last, before) = ids[1..].split_last().unwrap();
                    stopped += (ids.len() < max_length && *last != 1 && stops(before, *last, often)) as usize;
                }
            }
        }
        assert!(stopped > 10, "{stopped} outputs ended by a stop string");
    }

    #[test]
    fn a_forced_token_costs_nothing_and_comes_first() {
        let s = settings(2, 5);
        let mut search = Search::new(&s, s.bounds(Some(6)));
        assert_eq!(search.forced(), Some(6));
        let forced = [Candidate { token: 6, logprob: 0.0 }];
        let never = &mut |_: &[u32], _| false;
        assert!(search.advance(&s, &[&forced], never).is_none());
        assert_eq!((search.rows(), search.forced()), (1, None));
        assert!(search.advance(&s, &[&offers(search.ids(0), 4)], never).is_none());
        assert_eq!(search.rows(), 2);
        assert_eq!(&search.ids(1)[..2], [0, 6]);
    }
}
