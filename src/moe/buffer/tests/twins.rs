//! The policies once more, written as their names say, over lists.

use super::super::forecast::Forecast;
use super::super::slots::Slots as Ledger;
use super::*;
use std::collections::{BTreeMap, BTreeSet};

/// An expert in the pool.
#[derive(Clone)]
struct Held {
    expert: (usize, usize),
    loaded: usize,
    used: usize,
}

/// The experts that each visit loads, and those in slots after it.
type Steps = Vec<(Vec<usize>, BTreeSet<(usize, usize)>)>;

fn slowly(trace: &Trace, slots: usize, eviction: Eviction, scope: Scope, pin: usize) -> Steps {
    let layers = trace.shelf.experts.len();
    let ledger = Ledger::new(&trace.shelf, slots, scope);
    let size = |l: usize| ledger.pools[l].len();
    let pins = |l: usize| match scope {
        Scope::Layer => pin.min(size(l).saturating_sub(2)),
        Scope::Rank => pin.min(size(l).saturating_sub(2) / layers),
    };
    let mut pools: BTreeMap<usize, Vec<Held>> = BTreeMap::new();
    let mut used: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut rows_of: Vec<Vec<u64>> = trace.shelf.experts.iter().map(|&n| vec![0; n]).collect();
    let (mut now, mut steps) = (0, Vec::new());
    for (_, l, rows) in &trace.visits {
        let key = if scope == Scope::Layer { *l } else { 0 };
        let pool = pools.entry(key).or_default();
        for (sum, n) in rows_of[*l].iter_mut().zip(rows) {
            *sum += u64::from(*n);
        }
        let pinned = |(l, e): (usize, usize)| {
            let rows = &rows_of[l];
            let before = |&o: &usize| rows[o] > rows[e] || (rows[o] == rows[e] && o < e);
            rows[e] > 0 && (0..rows.len()).filter(before).count() < pins(l)
        };
        let mut loads = Vec::new();
        for e in (0..rows.len()).filter(|&e| rows[e] > 0) {
            now += 1;
            if let Some(held) = pool.iter_mut().find(|h| h.expert == (*l, e)) {
                held.used = now;
            } else {
                if pool.len() == size(*l) {
                    let needed = |h: &Held| h.expert.0 == *l && rows[h.expert.1] > 0;
                    let mut leave: Vec<Held> = pool.iter().filter(|h| !pinned(h.expert)).cloned().collect();
                    if eviction == Eviction::Lifo && leave.iter().any(|h| !needed(h)) {
                        leave.retain(|h| !needed(h));
                    }
                    let victim = match eviction {
                        Eviction::Lifo | Eviction::PlainLifo => leave.iter().max_by_key(|h| h.loaded),
                        Eviction::Fifo => leave.iter().min_by_key(|h| h.loaded),
                        Eviction::Lru => leave.iter().min_by_key(|h| h.used),
                        _ => leave.iter().min_by_key(|h| (used[&h.expert], h.loaded)),
                    };
                    let victim = victim.expect("a slot that is not pinned").expert;
                    pool.retain(|h| h.expert != victim);
                }
                pool.push(Held {
                    expert: (*l, e),
                    loaded: now,
                    used: now,
                });
                loads.push(e);
            }
            *used.entry((*l, e)).or_default() += 1;
        }
        steps.push((loads, pools.values().flatten().map(|h| h.expert).collect()));
    }
    steps
}

#[test]
fn the_papers_policies_are_what_their_names_say() {
    for trace in traces() {
        let all: usize = trace.shelf.experts.iter().sum();
        for (slots, pin) in (1..=all).flat_map(|slots| [(slots, 0), (slots, 2)]) {
            for (eviction, scope) in Eviction::ALL[..5]
                .iter()
                .flat_map(|&e| [(e, Scope::Rank), (e, Scope::Layer)])
            {
                let mut residency = Residency::new(trace.shelf.clone(), slots, eviction, scope, pin);
                let mut visit = Visit::default();
                let slow = slowly(&trace, slots, eviction, scope, pin);
                for (v, ((pass, layer, rows), (loads, resident))) in trace.visits.iter().zip(slow).enumerate() {
                    residency.visit(*pass, *layer, rows, &mut visit);
                    let loaded = visit.uses.iter().filter(|u| u.load.is_some());
                    let loaded: Vec<usize> = loaded.map(|u| u.expert as usize).collect();
                    assert_eq!(loaded, loads, "visit {v}, {slots} slots, {eviction:?} {scope:?}");
                    assert_eq!(residency.resident().flatten().collect::<BTreeSet<_>>(), resident);
                }
            }
        }
    }
}

/// After a visit those are in slots whose next use is expected soonest, but that one must have been loaded last.
#[test]
fn lookahead_keeps_what_is_expected_soonest() {
    for trace in traces() {
        let all: usize = trace.shelf.experts.iter().sum();
        for (slots, scope) in (1..=all).flat_map(|slots| [(slots, Scope::Rank), (slots, Scope::Layer)]) {
            let mut residency = Residency::new(trace.shelf.clone(), slots, Eviction::Lookahead, scope, 0);
            let ledger = Ledger::new(&trace.shelf, slots, scope);
            let mut forecast = Forecast::new(&trace.shelf);
            let mut visit = Visit::default();
            for (pass, layer, rows) in &trace.visits {
                let mine = |held: &(usize, usize)| scope == Scope::Rank || held.0 == *layer;
                let before: BTreeSet<_> = residency.resident().flatten().filter(mine).collect();
                residency.visit(*pass, *layer, rows, &mut visit);
                forecast.visit(*pass, *layer, rows);
                let until = |&(l, e): &(usize, usize)| forecast.until(ledger.first[l] + e);
                let needed = (0..rows.len()).filter(|&e| rows[e] > 0).map(|e| (*layer, e));
                let missing: BTreeSet<_> = needed.filter(|held| !before.contains(held)).collect();
                let mut best: Vec<(f64, bool)> = before.iter().map(|h| (until(h), false)).collect();
                best.extend(missing.iter().map(|h| (until(h), true)));
                best.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)));
                let size = ledger.pools[*layer].len();
                if best.len() > size {
                    let soonest = best.iter().position(|b| b.1).expect("something is missing");
                    if soonest >= size {
                        best.swap(soonest, size - 1);
                    }
                    best.truncate(size);
                }
                let mut best: Vec<f64> = best.into_iter().map(|b| b.0).collect();
                let mut kept: Vec<f64> = residency.resident().flatten().filter(mine).map(|h| until(&h)).collect();
                best.sort_by(f64::total_cmp);
                kept.sort_by(f64::total_cmp);
                assert_eq!(kept, best);
                assert_eq!(visit.uses.iter().filter(|u| u.load.is_some()).count(), missing.len());
            }
        }
    }
}
