//! Dispatch plans: which rows go where, from the gate's choices alone. Pure: no rank, device or buffer is touched.
//!
//! Dynamic gating (the paper, section 4; PAPER.md section 2) without its second copy: a token goes to a rank once,
//! however many of its experts live there, and comes back as one row if that rank holds all of them.

use super::gate::Routes;
use std::ops::Range;

/// No expert: fills the choices of a row that lie on another rank.
pub const NONE: u32 = u32::MAX;

/// Which rank computes each expert of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Owners {
    /// Rank of each expert, `[experts]`.
    pub rank: Vec<u32>,
    /// Index of each expert among those of its rank, `[experts]`.
    pub local: Vec<u32>,
    /// Ranks in the group.
    pub ranks: usize,
}

impl Owners {
    /// Blocks of floor or ceil of `experts / ranks`; more ranks than experts leaves ranks without any.
    pub fn blocks(experts: usize, ranks: usize) -> Owners {
        let mut owners = Owners {
            rank: vec![0; experts],
            local: vec![0; experts],
            ranks,
        };
        for r in 0..ranks {
            for (i, e) in Self::block(experts, ranks, r).enumerate() {
                (owners.rank[e], owners.local[e]) = (r as u32, i as u32);
            }
        }
        owners
    }

    /// The rank of each expert, `[experts]`, all below `ranks`. A rank counts its own in the order of all.
    pub fn of(rank: Vec<u32>, ranks: usize) -> Owners {
        let mut held = vec![0; ranks];
        let mut next = |&rank: &u32| {
            held[rank as usize] += 1;
            held[rank as usize] - 1
        };
        Owners {
            local: rank.iter().map(&mut next).collect(),
            rank,
            ranks,
        }
    }

    /// The experts of one rank under [`blocks`](Owners::blocks).
    pub fn block(experts: usize, ranks: usize, rank: usize) -> Range<usize> {
        rank * experts / ranks..(rank + 1) * experts / ranks
    }
}

/// Where the output of a token's choice will be found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Output {
    /// Computed here: number of the assignment among this rank's own.
    Here(u32),
    /// Comes back as a row of its own: row of what is returned.
    Back(u32),
    /// All choices of the token come back summed: row of what is returned.
    Summed(u32),
}

/// One expert's work on one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Assignment {
    /// Row among this rank's tokens followed by the rows received.
    pub row: u32,
    /// Expert, counted among this rank's.
    pub expert: u32,
}

/// What this rank sends, keeps and gets back. Buffers keep their memory from layer to layer.
#[derive(Debug, Default)]
pub struct SendPlan {
    /// Rows for each rank, `[ranks]`; none for this one.
    pub rows: Vec<u32>,
    /// Token behind each row sent, rank-major, `[rows sent]`.
    pub tokens: Vec<u32>,
    /// Experts wanted of each row sent, counted among the receiver's ([`NONE`] where a choice lies elsewhere), in the
    /// gate's order, `[rows sent, top_k]`.
    pub experts: Vec<u32>,
    /// Their weights (0 for [`NONE`]), `[rows sent, top_k]`.
    pub weights: Vec<f32>,
    /// Rows that come back from each rank, `[ranks]`.
    pub back: Vec<u32>,
    /// Work on this rank's tokens by this rank's experts, token-major.
    pub here: Vec<Assignment>,
    /// Where each choice's output will be found, `[tokens, top_k]`.
    pub outputs: Vec<Output>,
}

impl SendPlan {
    /// Plans one layer for rank `me`: one pass counts, one fills, whatever the number of ranks.
    pub fn fill(&mut self, routes: &Routes, owners: &Owners, me: usize) {
        let k = routes.top_k.max(1);
        for counts in [&mut self.rows, &mut self.back] {
            counts.clear();
            counts.resize(owners.ranks, 0);
        }
        self.here.clear();
        for chosen in routes.experts.chunks_exact(k) {
            each_rank(chosen, owners, |rank, count| {
                if rank != me {
                    self.rows[rank] += 1;
                    self.back[rank] += if count == k { 1 } else { count as u32 };
                }
            });
        }
        let (mut next_row, mut next_back) = (firsts(&self.rows), firsts(&self.back));
        let sent = self.rows.iter().sum::<u32>() as usize;
        reset(&mut self.tokens, sent, 0);
        reset(&mut self.experts, sent * k, NONE);
        reset(&mut self.weights, sent * k, 0.0);
        reset(&mut self.outputs, routes.experts.len(), Output::Here(0));
        for (t, chosen) in routes.experts.chunks_exact(k).enumerate() {
            each_rank(chosen, owners, |rank, count| {
                let row = next_row[rank] as usize;
                if rank != me {
                    self.tokens[row] = t as u32;
                    next_row[rank] += 1;
                }
                for (j, &e) in chosen
                    .iter()
                    .enumerate()
                    .filter(|(_, &e)| owners.rank[e as usize] as usize == rank)
                {
                    let local = owners.local[e as usize];
                    self.outputs[t * k + j] = if rank == me {
                        self.here.push(Assignment {
                            row: t as u32,
                            expert: local,
                        });
                        Output::Here(self.here.len() as u32 - 1)
                    } else {
                        self.experts[row * k + j] = local;
                        self.weights[row * k + j] = routes.weights[t * k + j];
                        if count == k {
                            Output::Summed(next_back[rank])
                        } else {
                            next_back[rank] += 1;
                            Output::Back(next_back[rank] - 1)
                        }
                    };
                }
                if rank != me && count == k {
                    next_back[rank] += 1;
                }
            });
        }
    }
}

/// Calls `see(rank, choices)` once for each rank that holds some of a token's experts, in the gate's order.
fn each_rank(chosen: &[u32], owners: &Owners, mut see: impl FnMut(usize, usize)) {
    let rank = |e: &u32| owners.rank[*e as usize];
    for (j, e) in chosen.iter().enumerate() {
        if !chosen[..j].iter().any(|before| rank(before) == rank(e)) {
            see(
                rank(e) as usize,
                chosen[j..].iter().filter(|later| rank(later) == rank(e)).count(),
            );
        }
    }
}

/// Where each rank's share starts when shares of `counts` lie one after another.
fn firsts(counts: &[u32]) -> Vec<u32> {
    counts
        .iter()
        .scan(0, |sum, &c| Some(std::mem::replace(sum, *sum + c)))
        .collect()
}

/// `n` times `value`, in the memory that is there.
fn reset<T: Clone>(buffer: &mut Vec<T>, n: usize, value: T) {
    buffer.clear();
    buffer.resize(n, value);
}

/// How a row that was received goes back: its assignments, summed if the row has all its choices here.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// Assignments of the row, in the gate's order.
    pub assignments: Range<u32>,
    /// Whether they go back as one weighted sum.
    pub summed: bool,
}

impl Reply {
    /// Rows that go back.
    pub fn rows(&self) -> usize {
        if self.summed {
            1
        } else {
            self.assignments.len()
        }
    }
}

/// The work of this rank's experts, its own tokens' and others', sorted by expert.
#[derive(Debug, Default)]
pub struct WorkPlan {
    /// Row behind each piece of work, among own tokens followed by rows received, sorted by expert, `[assignments]`.
    pub source: Vec<u32>,
    /// First piece of each expert's work, `[local experts + 1]`.
    pub starts: Vec<usize>,
    /// Where each assignment stands in `source`: own ones first, then received ones in order of arrival.
    pub place: Vec<u32>,
    /// One for each row received.
    pub replies: Vec<Reply>,
    /// Rows to return to each rank, `[ranks]`.
    pub back: Vec<u32>,
    all: Vec<Assignment>,
}

impl WorkPlan {
    /// Plans the work on `here` (own tokens, `tokens` of them) and on the rows received: `received` from each rank
    /// `[ranks]`, with their wanted `experts` `[rows, top_k]`. `local` experts live on this rank.
    pub fn fill(
        &mut self,
        here: &[Assignment],
        tokens: usize,
        received: &[u32],
        experts: &[u32],
        k: usize,
        local: usize,
    ) {
        self.all.clear();
        self.all.extend_from_slice(here);
        self.replies.clear();
        self.back.clear();
        let mut rows = experts.chunks_exact(k.max(1));
        for &count in received {
            let mut back = 0;
            for wanted in rows.by_ref().take(count as usize) {
                let (row, first) = ((tokens + self.replies.len()) as u32, self.all.len() as u32);
                let real = wanted.iter().filter(|&&e| e != NONE);
                self.all.extend(real.map(|&expert| Assignment { row, expert }));
                let assignments = first..self.all.len() as u32;
                let summed = assignments.len() == k;
                let reply = Reply { assignments, summed };
                back += reply.rows() as u32;
                self.replies.push(reply);
            }
            self.back.push(back);
        }
        self.sort(local);
    }

    /// Stable counting sort of all assignments by expert.
    fn sort(&mut self, local: usize) {
        self.starts.clear();
        self.starts.resize(local + 1, 0);
        for a in &self.all {
            self.starts[a.expert as usize + 1] += 1;
        }
        for e in 0..local {
            self.starts[e + 1] += self.starts[e];
        }
        self.source.clear();
        self.source.resize(self.all.len(), 0);
        self.place.clear();
        let mut next = self.starts.clone();
        for a in &self.all {
            let at = &mut next[a.expert as usize];
            self.source[*at] = a.row;
            self.place.push(*at as u32);
            *at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An expert's output stands for itself: which (token, rank it came from, expert) it was computed from.
    type Tag = (usize, usize, u32);

    /// Runs plans for all ranks against each other and checks that every choice of every token finds exactly its own
    /// output, that sums are asked for only where they may be, and that no token goes to a rank twice.
    fn play(routes: &[Routes], experts: usize) {
        let ranks = routes.len();
        let owners = Owners::blocks(experts, ranks);
        let k = routes.iter().map(|r| r.top_k).max().unwrap_or(1);
        let mut sends: Vec<SendPlan> = (0..ranks).map(|_| SendPlan::default()).collect();
        for (r, plan) in sends.iter_mut().enumerate() {
            plan.fill(&routes[r], &owners, r);
            assert_eq!(plan.rows[r], 0);
            assert_eq!(plan.rows.iter().sum::<u32>() as usize, plan.tokens.len());
        }
        // What each rank gets back, by (home, worker): lists of sets of tags, one for each returned row.
        let mut returned: Vec<Vec<Vec<Vec<Tag>>>> = vec![vec![Vec::new(); ranks]; ranks];
        let mut own: Vec<Vec<Tag>> = vec![Vec::new(); ranks];
        for w in 0..ranks {
            let mut rows: Vec<(usize, usize)> = (0..routes[w].tokens()).map(|t| (w, t)).collect();
            let mut wanted = Vec::new();
            let received: Vec<u32> = (0..ranks).map(|home| sends[home].rows[w]).collect();
            for (home, send) in sends.iter().enumerate() {
                let first: u32 = send.rows[..w].iter().sum();
                let block = first as usize..(first + send.rows[w]) as usize;
                rows.extend(send.tokens[block.clone()].iter().map(|&t| (home, t as usize)));
                wanted.extend_from_slice(&send.experts[block.start * k..block.end * k]);
            }
            let mut unique = rows[routes[w].tokens()..].to_vec();
            unique.dedup();
            assert_eq!(
                unique.len(),
                rows.len() - routes[w].tokens(),
                "a token goes to a rank once"
            );
            let block = Owners::block(experts, ranks, w);
            let mut work = WorkPlan::default();
            work.fill(&sends[w].here, routes[w].tokens(), &received, &wanted, k, block.len());
            let tag = |a: usize| {
                let at = work.place[a] as usize;
                let e = (0..block.len())
                    .find(|&e| work.starts[e] <= at && at < work.starts[e + 1])
                    .expect("an expert");
                let (home, token) = rows[work.source[at] as usize];
                (home, token, (block.start + e) as u32)
            };
            own[w] = (0..sends[w].here.len()).map(tag).collect();
            let mut replies = work.replies.iter();
            for home in 0..ranks {
                for reply in replies.by_ref().take(received[home] as usize) {
                    let tags: Vec<Tag> = reply.assignments.clone().map(|a| tag(a as usize)).collect();
                    let rows = if reply.summed {
                        vec![tags]
                    } else {
                        tags.into_iter().map(|t| vec![t]).collect()
                    };
                    returned[home][w].extend(rows);
                }
                assert_eq!(work.back[home] as usize, returned[home][w].len());
                assert_eq!(
                    sends[home].back[w] as usize,
                    returned[home][w].len(),
                    "both sides count alike"
                );
            }
        }
        for home in 0..ranks {
            let back: Vec<&Vec<Tag>> = returned[home].iter().flatten().collect();
            for (i, output) in sends[home].outputs.iter().enumerate() {
                let want = (home, i / k, routes[home].experts[i]);
                match *output {
                    Output::Here(a) => assert_eq!(own[home][a as usize], want),
                    Output::Back(row) => assert_eq!(*back[row as usize], vec![want]),
                    Output::Summed(row) => {
                        assert_eq!(back[row as usize].len(), k);
                        assert_eq!(back[row as usize][i % k], want, "in the gate's order");
                    }
                }
            }
        }
    }

    fn routes(tokens: usize, k: usize, choose: impl Fn(usize, usize) -> u32) -> Routes {
        let experts = (0..tokens * k).map(|i| choose(i / k, i % k)).collect();
        Routes {
            top_k: k,
            experts,
            weights: vec![0.5; tokens * k],
        }
    }

    #[test]
    fn every_choice_finds_its_own_output() {
        for ranks in 1..6 {
            for experts in [2, 3, 8, 16] {
                let skewed = |r: usize| routes(7 * r + 1, 2, move |t, j| ((t * t + r + j) % experts) as u32);
                let clash = |r: usize| if r % 2 == 1 { routes(0, 2, |_, _| 0) } else { skewed(r) };
                play(&(0..ranks).map(skewed).collect::<Vec<_>>(), experts);
                play(&(0..ranks).map(clash).collect::<Vec<_>>(), experts);
                play(
                    &(0..ranks).map(|_| routes(9, 2, |_, j| j as u32)).collect::<Vec<_>>(),
                    experts,
                );
                let distinct = |t: usize, j: usize| ((t + j) % experts) as u32;
                play(&(0..ranks).map(|r| routes(r, 1, distinct)).collect::<Vec<_>>(), experts);
            }
        }
        play(
            &[
                routes(40, 4, |t, j| ((t * 7 + j * 3) % 12) as u32),
                routes(3, 4, |t, j| (t + j) as u32),
            ],
            12,
        );
    }

    #[test]
    fn blocks_are_floor_or_ceil_and_cover_all() {
        for (experts, ranks) in [(8, 3), (6, 4), (128, 5), (2, 5), (16, 1)] {
            let sizes: Vec<usize> = (0..ranks).map(|r| Owners::block(experts, ranks, r).len()).collect();
            assert_eq!(sizes.iter().sum::<usize>(), experts);
            assert!(
                sizes
                    .iter()
                    .all(|&s| s == experts / ranks || s == experts.div_ceil(ranks)),
                "{sizes:?}"
            );
            let owners = Owners::blocks(experts, ranks);
            assert_eq!(Owners::of(owners.rank.clone(), ranks), owners);
            for e in 0..experts {
                let block = Owners::block(experts, ranks, owners.rank[e] as usize);
                assert_eq!(block.start + owners.local[e] as usize, e);
            }
        }
    }

    #[test]
    fn work_is_sorted_by_expert_and_keeps_the_order_of_arrival() {
        let here = [
            Assignment { row: 0, expert: 1 },
            Assignment { row: 1, expert: 0 },
            Assignment { row: 1, expert: 1 },
        ];
        let mut work = WorkPlan::default();
        work.fill(&here, 2, &[0, 2], &[1, NONE, 1, 0], 2, 3);
        assert_eq!(work.source, [1, 3, 0, 1, 2, 3]);
        assert_eq!(work.starts, [0, 2, 6, 6]);
        assert_eq!(work.place, [2, 0, 3, 4, 5, 1]);
        assert_eq!(work.back, [0, 2]);
        assert_eq!(
            work.replies[0],
            Reply {
                assignments: 3..4,
                summed: false
            }
        );
        assert_eq!(
            work.replies[1],
            Reply {
                assignments: 4..6,
                summed: true
            }
        );
    }
}
