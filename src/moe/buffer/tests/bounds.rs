//! How few loads there can be, and how many there are.

use super::super::replay::{minimum, replay, Replayed, Trace};
use super::*;
use crate::moe::dispatch::Owners;
use std::collections::BTreeMap;

/// The fewest loads of a trace over at most 8 experts, by trying everything: any order within a visit, any victim.
fn fewest(trace: &Trace, slots: usize) -> u64 {
    let first = |l: usize| trace.shelf.experts[..l].iter().sum::<usize>();
    let mut states = BTreeMap::from([(0u32, 0u64)]);
    for (_, l, rows) in &trace.visits {
        let needed = (0..rows.len()).filter(|&e| rows[e] > 0);
        let needed: u32 = needed.map(|e| 1 << (first(*l) + e)).sum();
        // Each state with what is still to run: fewer and fewer of it.
        let mut running: BTreeMap<(u32, u32), u64> = states.iter().map(|(&s, &n)| ((needed, s), n)).collect();
        states = BTreeMap::new();
        while let Some(((left, state), loads)) = running.pop_last() {
            let better = |known: Option<&u64>, loads: u64| known.is_none_or(|&k| k > loads);
            if left == 0 {
                if better(states.get(&state), loads) {
                    states.insert(state, loads);
                }
                continue;
            }
            for e in (0..8).map(|e| 1u32 << e).filter(|e| left & e > 0) {
                let full = state.count_ones() as usize == slots;
                let mut after = vec![(state, loads)];
                if state & e == 0 {
                    let victims = (0..8).map(|v| 1u32 << v).filter(|v| state & v > 0);
                    after = match full {
                        true => victims.map(|v| (state & !v | e, loads + 1)).collect(),
                        false => vec![(state | e, loads + 1)],
                    };
                }
                for (state, loads) in after {
                    let key = (left & !e, state);
                    if better(running.get(&key), loads) {
                        running.insert(key, loads);
                    }
                }
            }
        }
    }
    states.into_values().min().unwrap_or(0)
}

#[test]
fn minimum_is_the_fewest_loads_there_can_be() {
    for seed in 0..150 {
        let (experts, ways) = match seed % 3 {
            0 => (&[3, 3][..], (0..1, 1..2)),
            1 => (&[2, 4][..], (0..2, 0..2)),
            _ => (&[6][..], (0..0, 0..1)),
        };
        let shelf = shelf(experts, ways.0, ways.1);
        let passes = if seed % 3 == 2 {
            vec![Pass::Decode; 9]
        } else {
            translation(2, 4)
        };
        let trace = trace(&shelf, passes, 1 + seed as i32 % 2, seed);
        for slots in 1..=6 {
            let least = fewest(&trace, slots);
            assert_eq!(
                minimum(&trace, slots, Scope::Rank).total.loads,
                least,
                "seed {seed}, {slots} slots"
            );
        }
    }
}

#[test]
fn no_policy_has_fewer_loads_than_minimum() {
    for trace in traces() {
        let all: usize = trace.shelf.experts.iter().sum();
        for (slots, scope) in (1..=all).flat_map(|slots| [(slots, Scope::Rank), (slots, Scope::Layer)]) {
            let least = minimum(&trace, slots, scope);
            for (eviction, pin) in Eviction::ALL.iter().flat_map(|&e| [(e, 0), (e, 1)]) {
                let done = replay(&trace, slots, eviction, scope, Prefetch::Off, pin);
                assert!(
                    done.total.loads >= least.total.loads,
                    "{eviction:?} {scope:?} {slots} slots"
                );
                assert_eq!(done.total.accesses, least.total.accesses);
                assert_eq!((done.total.ahead, least.total.ahead), (0, 0));
            }
        }
    }
}

/// All experts of one layer, batch after batch, each needed if `needed(batch, expert)`.
fn batches(experts: usize, batches: usize, mut needed: impl FnMut(usize, usize) -> bool) -> Trace {
    let mut rows = |b: usize| (0..experts).map(|e| u32::from(needed(b, e))).collect();
    Trace {
        shelf: shelf(&[experts], 0..0, 0..1),
        visits: (0..batches).map(|b| (Pass::Decode, 0, rows(b))).collect(),
    }
}

fn misses(trace: &Trace, slots: usize, eviction: Eviction) -> f64 {
    replay(trace, slots, eviction, Scope::Layer, Prefetch::Off, 0)
        .total
        .misses()
}

/// PAPER.md, section 2: batches run their experts in ascending order, which the oldest-first policies handle worst; what is
/// resident first buys as much as LIFO does.
#[test]
fn lifo_stands_cyclic_scans() {
    let scans = batches(16, 200, |_, _| true);
    assert_eq!(misses(&scans, 10, Eviction::Fifo), 1.0);
    assert_eq!(misses(&scans, 10, Eviction::Lru), 1.0);
    let least = minimum(&scans, 10, Scope::Layer).total.misses();
    for eviction in [Eviction::PlainLifo, Eviction::Lifo, Eviction::Lookahead] {
        let misses = misses(&scans, 10, eviction);
        assert!(misses < 0.45 && misses >= least, "{eviction:?}: {misses}");
    }
}

/// PAPER.md, section 2: the rule that what is not needed leaves first matters more than LIFO does: without it what was
/// loaded early and is needed no more stays for good.
#[test]
fn the_inactive_leave_first() {
    let mut numbers = Numbers::new(1);
    // Four hot experts, others every 25 batches; now and then another one.
    let trace = batches(16, 400, |b, e| {
        let hot = (e + 16 - 7 * (b / 25) % 16) % 16 < 4;
        numbers.below(100) < if hot { 90 } else { 3 }
    });
    let (with, without) = (
        misses(&trace, 6, Eviction::Lifo),
        misses(&trace, 6, Eviction::PlainLifo),
    );
    assert!((0.1..0.3).contains(&with), "{with}");
    assert!((0.5..0.9).contains(&without), "{without}");
}

/// What lookahead is for: near the fewest loads where experts have habits, and no more than another policy has (but for the
/// few that learning takes), what it fetches ahead counted.
#[test]
fn lookahead_comes_close_to_minimum() {
    let (apart, shared) = (shelf(&[16; 4], 0..2, 2..4), shelf(&[16; 4], 0..4, 0..4));
    let scoring = (0..200).map(|i| if i % 2 == 0 { Pass::Encode } else { Pass::Decode });
    let jobs = [
        (&apart, translation(20, 20)),
        (&apart, scoring.collect()),
        (&shared, translation(20, 20)),
        (&shared, translation(2, 100)),
    ];
    for (i, (shelf, passes)) in jobs.into_iter().enumerate() {
        for hot in [20, 50, 90] {
            let trace = habits(shelf, passes.iter().copied(), hot, 11 + i as u64);
            for slots in [4, 8, 12, 16, 24, 32, 48] {
                let case = format!("job {i}, {hot} % hot, {slots} slots");
                let least = minimum(&trace, slots, Scope::Rank).total.misses();
                let go = |e, scope, prefetch| replay(&trace, slots, e, scope, prefetch, 0).total.misses();
                let most = if least > 0.3 { 1.05 * least } else { least + 0.03 };
                let others = Eviction::ALL[..5]
                    .iter()
                    .flat_map(|&e| [(e, Scope::Rank), (e, Scope::Layer)]);
                let others = others.map(|(e, scope)| go(e, scope, Prefetch::Off));
                let best = others.fold(f64::INFINITY, f64::min);
                for prefetch in [Prefetch::Off, Prefetch::Trace] {
                    let ours = go(Eviction::Lookahead, Scope::Rank, prefetch);
                    assert!(ours <= most, "{case}, {prefetch:?}: {ours}, at least {least}");
                    assert!(
                        ours <= best + 0.003,
                        "{case}, {prefetch:?}: {ours}, another policy {best}"
                    );
                }
            }
        }
    }
}

#[test]
fn layers_add_up_and_the_same_trace_gives_the_same_loads() {
    for trace in traces() {
        for eviction in Eviction::ALL {
            let go = || replay(&trace, 7, eviction, Scope::Rank, Prefetch::Trace, 1);
            let Replayed { total, by_layer } = go();
            assert_eq!(by_layer.iter().map(|l| l.loads).sum::<u64>(), total.loads);
            assert_eq!(by_layer.iter().map(|l| l.accesses).sum::<u64>(), total.accesses);
            assert_eq!(go(), Replayed { total, by_layer });
        }
    }
}

#[test]
fn a_cut_trace_has_every_row_once() {
    let shelf = shelf(&[5, 3], 0..1, 1..2);
    let whole = trace(&shelf, translation(3, 4), 1, 9);
    let mut scattered = Owners::blocks(5, 3);
    (scattered.rank, scattered.local) = (vec![2, 0, 2, 2, 0], vec![1, 0, 0, 2, 1]);
    let owners = [scattered, Owners::blocks(3, 3)];
    let ranks = Trace::cut(&whole.visits, &owners, &shelf);
    let experts: Vec<&[usize]> = ranks.iter().map(|t| &t.shelf.experts[..]).collect();
    assert_eq!(experts, [[2, 1], [0, 1], [3, 1]]);
    for (v, (pass, layer, rows)) in whole.visits.iter().enumerate() {
        for (e, &n) in rows.iter().enumerate() {
            let (rank, local) = (owners[*layer].rank[e] as usize, owners[*layer].local[e] as usize);
            let cut = &ranks[rank].visits[v];
            assert_eq!((cut.0, cut.1, cut.2[local]), (*pass, *layer, n));
        }
    }
}
