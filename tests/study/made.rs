//! Made traces: starts, groups, ranks without experts, placements.

use crate::place::{counts, Place, Start};
use crate::slow;
use serde_json::json;
use sluicegate::results::{Phase, RoutingLayout, StepCounts};

fn layout(encoder: &[&str], decoder: &[&str], experts: usize) -> RoutingLayout {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    RoutingLayout {
        encoder_layers: names(encoder),
        decoder_layers: names(decoder),
        experts,
        top_k: 1,
    }
}

/// Steps whose experts seem to be chosen at random, some more often than others.
fn steps(layout: &RoutingLayout, groups: u32, steps: u64, mut seed: u64) -> Vec<StepCounts> {
    let mut all = Vec::new();
    for step in 1..=steps {
        for group in 0..groups {
            for phase in Phase::ALL {
                // Not every step begins with new sentences, and groups run out of them at different times.
                let skipped = phase == Phase::Encode && step % 3 != 1 || step + u64::from(5 * group) > steps;
                let cells = layout.layers(phase).len() * layout.experts;
                let mut random = |cell: usize| {
                    seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    let often = 1 + cell % layout.experts;
                    u32::from((seed >> 40) % 8 < often as u64) * (1 + (seed >> 60) as u32)
                };
                let counts = (0..cells).map(&mut random).collect();
                if !skipped && cells > 0 {
                    all.push(StepCounts {
                        attempt: 0,
                        group,
                        step,
                        phase,
                        counts,
                    });
                }
            }
        }
    }
    all
}

fn two_starts(place: &Place, layout: &RoutingLayout) {
    let starts = [(4, 2, 30, 1), (2, 1, 12, 2)].map(|(ranks, groups, count, seed)| Start {
        ranks,
        steps: steps(layout, groups, count, seed),
    });
    place.run("run.h5", Some(layout), starts.into());
}

#[test]
fn every_start_and_group_begins_with_empty_slots() {
    let place = Place::new();
    let layout = layout(&["e1"], &["d1", "d3"], 6);
    two_starts(&place, &layout);
    let visits = slow::visits(&place.path("run.h5"));
    assert_eq!(visits.len(), 3, "two groups, then one");
    for ranks in [1, 2, 4, 7] {
        for (pool, share) in [("rank", true), ("layer", false)] {
            let line = format!(
                "--trace run.h5 --output s.h5 --overwrite --slots 1..6 --policies fifo,lru --ranks {ranks} --pool {pool}"
            );
            let page = place.json(&line);
            let owner = |_: usize, expert: usize| (0..ranks).find(|r| expert < (r + 1) * 6 / ranks).unwrap();
            let found = &page["placements"][0];
            let slots: Vec<usize> = serde_json::from_value(page["slots"].clone()).unwrap();
            assert_eq!(slots, (1..=6usize.div_ceil(ranks)).collect::<Vec<_>>(), "{ranks} ranks");
            for (policy, renew) in [false, true].into_iter().enumerate() {
                for (at, &slots) in slots.iter().enumerate() {
                    let (needed, loaded) = slow::count(&visits, ranks, &owner, slots, share, renew);
                    let case = format!("{ranks} ranks, pool {pool}, {slots} slots, policy {policy}");
                    // Under blocks of 1 or 2 experts a pool has room for twice as many as the smaller block has.
                    if 6 % ranks == 0 {
                        assert_eq!(found["policies"][policy]["loads"][at], loaded, "{case}");
                    }
                    assert_eq!(found["accesses"], needed, "{case}");
                }
            }
            let loads = |policy: usize| -> Vec<u64> {
                serde_json::from_value(found["policies"][policy]["loads"].clone()).unwrap()
            };
            let least = loads(2);
            for policy in 0..2 {
                assert!(loads(policy).iter().zip(&least).all(|(loads, least)| loads >= least));
            }
            let experts = visits.iter().map(|span| {
                let pairs = span
                    .iter()
                    .flat_map(|(layer, needed)| needed.iter().map(move |e| (*layer, *e)));
                pairs.collect::<std::collections::BTreeSet<_>>().len() as u64
            });
            assert_eq!(
                *least.last().unwrap(),
                experts.sum::<u64>(),
                "with room for all, each is loaded once"
            );
        }
    }
}

#[test]
fn the_runs_ranks_are_taken_and_others_can_be_asked_for() {
    let place = Place::new();
    two_starts(&place, &layout(&[], &["d1"], 4));
    assert!(place
        .study("--trace run.h5 -o a.h5")
        .contains("ranks: 2 (as in the run)"));
    assert!(place
        .study("--trace run.h5 -o b.h5 --ranks 3")
        .contains("ranks: 3 (--ranks)"));
    assert_eq!(counts(&place.path("b.h5"), "loads_by_rank").0, [1, 7, 2, 3]);
}

#[test]
fn a_placement_stands_beside_the_blocks() {
    let place = Place::new();
    let layout = layout(&["e1"], &["d1"], 4);
    two_starts(&place, &layout);
    let ranks = [[1, 0, 1, 1], [0, 0, 1, 0]];
    let file = json!({"ranks": 2, "layers": {"e1": ranks[0], "d1": ranks[1]}, "comment": "by hand"});
    place.write("best.json", &file.to_string());
    let line =
        "--trace run.h5 -o s.h5 --policies fifo --pool layer --placement best.json --slots 1..9 --figures figures";
    let page = place.study(line);
    for part in [
        "placement blocks",
        "placement best",
        "ranks: 2 (of the placement)",
        "4 slots and more are left out",
    ] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let visits = slow::visits(&place.path("run.h5"));
    let (shape, loads) = counts(&place.path("s.h5"), "loads");
    assert_eq!(shape, [2, 2, 3]);
    let blocks = |_: usize, expert: usize| expert / 2;
    let placed = |layer: usize, expert: usize| ranks[layer][expert];
    for slots in 1..=3 {
        let of_blocks = slow::count(&visits, 2, &blocks, slots, false, false);
        let of_placed = slow::count(&visits, 2, &placed, slots, false, false);
        assert_eq!(
            (loads[slots - 1], loads[6 + slots - 1]),
            (of_blocks.1, of_placed.1),
            "{slots}"
        );
        assert_eq!(counts(&place.path("s.h5"), "accesses").1, [of_blocks.0, of_placed.0]);
    }
    for name in ["misses-blocks", "misses-best"] {
        for ending in ["svg", "png"] {
            assert!(
                place.path(&format!("figures/{name}.{ending}")).exists(),
                "{name}.{ending}"
            );
        }
    }
    assert!(!place.path("figures/memory-blocks.svg").exists(), "bytes are not known");
}
