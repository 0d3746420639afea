//! Traces to try the planning on, and what must hold for every visit.

mod bounds;
mod twins;

use super::replay::Trace;
use super::residency::*;
use std::ops::Range;

/// Numbers that look random.
pub struct Numbers(u64);

impl Numbers {
    pub fn new(seed: u64) -> Numbers {
        Numbers(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    /// 0 to 1.
    fn share(&mut self) -> f64 {
        self.below(1 << 20) as f64 / (1 << 20) as f64
    }
}

pub fn shelf(experts: &[usize], encode: Range<usize>, decode: Range<usize>) -> Shelf {
    Shelf {
        experts: experts.to_vec(),
        encode,
        decode,
    }
}

/// Passes in the order given; each expert has a likelihood of its own to be needed, `skew` making more of them unlikely,
/// and what was needed once is likelier to be needed again.
pub fn trace(shelf: &Shelf, passes: impl IntoIterator<Item = Pass>, skew: i32, seed: u64) -> Trace {
    let mut numbers = Numbers::new(seed);
    let likely: Vec<Vec<f64>> = shelf
        .experts
        .iter()
        .map(|&n| (0..n).map(|_| numbers.share().powi(skew)).collect())
        .collect();
    let mut before: Vec<Vec<u32>> = shelf.experts.iter().map(|&n| vec![0; n]).collect();
    let mut visits = Vec::new();
    for pass in passes {
        let layers = match pass {
            Pass::Encode => shelf.encode.clone(),
            Pass::Decode => shelf.decode.clone(),
        };
        for l in layers {
            for (rows, p) in before[l].iter_mut().zip(&likely[l]) {
                let again = if *rows > 0 { 0.3 } else { 0.0 };
                let needed = numbers.share() < p * 0.7 + again;
                *rows = if needed {
                    1 + numbers.below(1 + (p * 20.0) as u64) as u32
                } else {
                    0
                };
            }
            visits.push((pass, l, before[l].clone()));
        }
    }
    Trace {
        shelf: shelf.clone(),
        visits,
    }
}

/// Like what gates of trained models do: some experts of a layer are hot (needed nearly always), the rest hardly ever, and
/// once in a while one changes its habit.
pub fn habits(shelf: &Shelf, passes: impl IntoIterator<Item = Pass>, hot: u64, seed: u64) -> Trace {
    let mut numbers = Numbers::new(seed);
    let mut trace = trace(shelf, passes, 1, seed);
    let mut habits: Vec<Vec<bool>> = shelf
        .experts
        .iter()
        .map(|&n| (0..n).map(|_| numbers.below(100) < hot).collect())
        .collect();
    for (_, l, rows) in &mut trace.visits {
        for (rows, habit) in rows.iter_mut().zip(&mut habits[*l]) {
            if numbers.below(2000) < 1 {
                *habit = numbers.below(100) < hot;
            }
            let needed = numbers.below(1000) < if *habit { 990 } else { 2 };
            let most = if *habit { 12 } else { 2 };
            *rows = if needed { 1 + numbers.below(most) as u32 } else { 0 };
        }
    }
    trace
}

/// Sources now and then, each time `steps` steps or a few less.
pub fn translation(times: usize, steps: usize) -> Vec<Pass> {
    let steps = |t: usize| (0..steps - t % 3).map(|_| Pass::Decode);
    (0..times)
        .flat_map(|t| std::iter::once(Pass::Encode).chain(steps(t)))
        .collect()
}

/// Uneven, empty, skewed; encoder and decoder, both passes over the same layers, one pass only.
pub fn traces() -> Vec<Trace> {
    use Pass::{Decode, Encode};
    let scoring: Vec<Pass> = (0..40).map(|i| if i % 2 == 0 { Encode } else { Decode }).collect();
    vec![
        trace(&shelf(&[4, 4, 4, 4], 0..2, 2..4), translation(6, 9), 1, 1),
        trace(&shelf(&[3, 0, 5, 1], 0..2, 2..4), translation(9, 4), 2, 2),
        trace(&shelf(&[9, 8, 7], 0..3, 0..3), translation(8, 8), 4, 3),
        trace(&shelf(&[6, 2, 6], 0..1, 1..3), scoring, 3, 4),
        trace(&shelf(&[12], 0..0, 0..1), vec![Decode; 60], 3, 5),
        trace(&shelf(&[0, 0], 0..1, 1..2), translation(2, 3), 1, 6),
        trace(&shelf(&[16, 16], 0..1, 1..2), translation(6, 20), 6, 7),
    ]
}

/// Slots as whoever carries the plans out sees them.
pub struct Slots {
    held: Vec<Option<(u32, u32)>>,
    generation: Vec<u32>,
}

impl Slots {
    pub fn new(slots: usize) -> Slots {
        Slots {
            held: vec![None; slots],
            generation: vec![0; slots],
        }
    }

    fn load(&mut self, load: &Load, turn: &[Option<u32>]) {
        let (slot, expert) = (load.slot as usize, (load.layer, load.expert));
        assert!(!self.held.contains(&Some(expert)), "{load:?} is in a slot already");
        assert_eq!(load.generation, self.generation[slot] + 1, "{load:?}");
        assert_eq!(load.after, turn[slot], "{load:?}");
        self.held[slot] = Some(expert);
        self.generation[slot] += 1;
    }

    /// Every needed expert runs once, in a slot that holds it by then; a load waits for the last turn of its slot.
    pub fn follow(&mut self, layer: usize, rows: &[u32], visit: &Visit) {
        let mut turn = vec![None; self.held.len()];
        for (t, u) in visit.uses.iter().enumerate() {
            if let Some(load) = &u.load {
                assert_eq!((load.layer, load.expert, load.slot), (layer as u32, u.expert, u.slot));
                assert_eq!(load.generation, u.generation);
                self.load(load, &turn);
            }
            assert_eq!(self.held[u.slot as usize], Some((layer as u32, u.expert)), "turn {t}");
            assert_eq!(self.generation[u.slot as usize], u.generation, "turn {t}");
            turn[u.slot as usize] = Some(t as u32);
        }
        let mut experts: Vec<usize> = visit.uses.iter().map(|u| u.expert as usize).collect();
        experts.sort_unstable();
        let needed: Vec<usize> = (0..rows.len()).filter(|&e| rows[e] > 0).collect();
        assert_eq!(experts, needed);
        for load in &visit.ahead {
            self.load(load, &turn);
        }
    }

    pub fn held(&self) -> Vec<Option<(usize, usize)>> {
        let held = |h: &Option<(u32, u32)>| h.map(|(l, e)| (l as usize, e as usize));
        self.held.iter().map(held).collect()
    }
}

#[test]
fn every_visit_can_be_carried_out() {
    for trace in traces() {
        let all: usize = trace.shelf.experts.iter().sum();
        for (slots, eviction) in (1..=all).flat_map(|slots| Eviction::ALL.map(|eviction| (slots, eviction))) {
            for (scope, pin, ahead) in [
                (Scope::Rank, 0, false),
                (Scope::Layer, 0, false),
                (Scope::Rank, 2, true),
                (Scope::Layer, 1, true),
            ] {
                let mut residency = Residency::new(trace.shelf.clone(), slots, eviction, scope, pin);
                assert!(residency.slots() <= slots.max(scope.least(&trace.shelf)));
                let (mut twin, mut visit) = (Slots::new(residency.slots()), Visit::default());
                residency.fill(&mut visit);
                assert!(visit.uses.is_empty() && visit.ahead.iter().all(|load| load.after.is_none()));
                assert_eq!(visit.ahead.len(), residency.slots().min(all), "{eviction:?} {scope:?}");
                twin.follow(0, &[], &visit);
                for (i, (pass, layer, rows)) in trace.visits.iter().enumerate() {
                    let early_ones = std::mem::take(&mut visit.ahead);
                    residency.visit(*pass, *layer, rows, &mut visit);
                    assert!(visit.ahead.is_empty());
                    if eviction == Eviction::Lookahead {
                        // No expert is loaded twice for a visit.
                        let loaded = visit.uses.iter().filter_map(|u| u.load);
                        let mut loaded = loaded.map(|load| (load.layer, load.expert));
                        assert!(!loaded.any(|one| early_ones.iter().any(|e| (e.layer, e.expert) == one)));
                    }
                    if ahead {
                        // What comes is known, guessed or guessed wrong.
                        let told = trace.visits.get(i + 1).filter(|_| i % 3 > 0);
                        let next = told.map_or(residency.next(*pass, *layer), |v| (v.0, v.1));
                        let rows = told.filter(|_| i % 3 > 1).map(|v| &v.2[..]);
                        residency.ahead(next, rows, i.is_multiple_of(2), &mut visit);
                        assert!(visit.ahead.iter().all(|load| load.layer as usize == next.1));
                    }
                    twin.follow(*layer, rows, &visit);
                    assert!(residency.resident().eq(twin.held()));
                }
            }
        }
    }
}

#[test]
fn a_pool_of_everything_loads_everything_once() {
    for trace in traces() {
        let all: usize = trace.shelf.experts.iter().sum();
        let mut seen = vec![Vec::new(); trace.shelf.experts.len()];
        for (_, l, rows) in &trace.visits {
            seen[*l].extend((0..rows.len()).filter(|&e| rows[e] > 0));
        }
        let mut once = 0;
        for experts in &mut seen {
            experts.sort_unstable();
            experts.dedup();
            once += experts.len() as u64;
        }
        for (eviction, scope) in Eviction::ALL
            .iter()
            .flat_map(|&e| [(e, Scope::Rank), (e, Scope::Layer)])
        {
            let done = super::replay::replay(&trace, all, eviction, scope, Prefetch::Off, 0);
            assert_eq!(done.total.loads, once, "{eviction:?} {scope:?}");
        }
    }
}

#[test]
fn resident_experts_run_first_and_loads_go_round() {
    let mut residency = Residency::new(shelf(&[8], 0..0, 0..1), 4, Eviction::Lookahead, Scope::Rank, 0);
    let mut visit = Visit::default();
    residency.visit(Pass::Decode, 0, &[1, 1, 1, 1, 0, 0, 0, 0], &mut visit);
    residency.visit(Pass::Decode, 0, &[0, 0, 1, 1, 1, 1, 1, 1], &mut visit);
    let loads: Vec<Option<Load>> = visit.uses.iter().map(|u| u.load).collect();
    assert_eq!(visit.uses[..2].iter().map(|u| u.expert).collect::<Vec<_>>(), [2, 3]);
    assert!(loads[..2].iter().all(Option::is_none) && loads[2..].iter().all(Option::is_some));
    // Two slots held what is not needed: four loads go round in them and none waits for the turn just before its own.
    let after: Vec<Option<u32>> = loads[2..].iter().flatten().map(|load| load.after).collect();
    assert_eq!(after, [None, None, Some(2), Some(3)]);
}

#[test]
fn pinned_experts_make_no_room() {
    // Expert 5 has the most rows by far, then lies idle while others come and go.
    for eviction in Eviction::ALL {
        let mut residency = Residency::new(shelf(&[8], 0..0, 0..1), 3, eviction, Scope::Layer, 1);
        let mut visit = Visit::default();
        residency.visit(Pass::Decode, 0, &[0, 0, 0, 0, 0, 99, 0, 0], &mut visit);
        for i in 0..60 {
            let mut rows = [0; 8];
            for j in 0..3 {
                rows[[0, 1, 2, 3, 4, 6, 7][(i + 2 * j) % 7]] = 1;
            }
            residency.visit(Pass::Decode, 0, &rows, &mut visit);
            assert!(residency.resident().any(|held| held == Some((0, 5))), "{eviction:?}");
        }
    }
}

#[test]
fn only_what_is_likely_is_fetched_ahead() {
    use Pass::{Decode, Encode};
    let mut residency = Residency::new(shelf(&[4, 4], 0..1, 1..2), 5, Eviction::Lookahead, Scope::Rank, 0);
    let mut visit = Visit::default();
    for _ in 0..30 {
        residency.visit(Encode, 0, &[1, 1, 0, 0], &mut visit);
        residency.visit(Decode, 1, &[5, 0, 0, 0], &mut visit);
    }
    assert_eq!(residency.next(Encode, 0), (Decode, 1));
    assert_eq!(residency.next(Decode, 1), (Encode, 0));
    // Everything that is ever needed is there.
    residency.ahead((Encode, 0), None, false, &mut visit);
    assert!(visit.ahead.is_empty());
    // A gate tells of one that is not, and there is a slot to spare; the one that is to be kept for it stays.
    residency.ahead((Encode, 0), Some(&[1, 0, 0, 3]), false, &mut visit);
    let load = |load: &Load| (load.layer, load.expert);
    assert_eq!(visit.ahead.iter().map(load).collect::<Vec<_>>(), [(0, 3)]);
    assert!(residency.resident().any(|held| held == Some((0, 0))));
    residency.visit(Encode, 0, &[1, 0, 0, 3], &mut visit);
    assert!(visit.uses.iter().all(|u| u.load.is_none()));
}
