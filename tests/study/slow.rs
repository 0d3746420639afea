//! Loads counted slowly, straight from a run's datasets, by nothing of the program's own.

use std::path::Path;

/// A run's visits in order, by start and group: layer, experts needed.
pub type Visits = Vec<Vec<(usize, Vec<usize>)>>;

/// Start and group, step and phase, layer, experts needed.
type Entry = ((u32, u32), (u64, usize), usize, Vec<usize>);

/// Reads `/routing` by its names alone.
pub fn visits(path: &Path) -> Visits {
    let file = hdf5::File::open(path).unwrap();
    let mut all: Vec<Entry> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for (order, phase) in ["encode", "decode"].into_iter().enumerate() {
        let group = file.group(&format!("routing/{phase}")).unwrap();
        let layers: Vec<hdf5::types::VarLenUnicode> = group.attr("layers").unwrap().read_raw().unwrap();
        let read = |name: &str| group.dataset(name).unwrap();
        let (attempt, number): (Vec<u32>, Vec<u32>) =
            (read("attempt").read_raw().unwrap(), read("group").read_raw().unwrap());
        let step: Vec<u64> = read("step").read_raw().unwrap();
        for layer in layers.iter().map(|layer| layer.to_string()) {
            if !names.contains(&layer) {
                names.push(layer.clone());
            }
            let index = names.iter().position(|name| *name == layer).unwrap();
            let data = read(&format!("{layer}/counts"));
            let (experts, counts): (usize, Vec<u32>) = (data.shape()[1], data.read_raw().unwrap());
            for (entry, counts) in counts.chunks(experts).enumerate() {
                let needed = (0..experts).filter(|&e| counts[e] > 0).collect();
                all.push(((attempt[entry], number[entry]), (step[entry], order), index, needed));
            }
        }
    }
    all.sort_by_key(|(span, step, layer, _)| (*span, *step, *layer));
    let mut spans: Visits = Vec::new();
    let mut before = None;
    for (span, _, layer, needed) in all {
        if before != Some(span) {
            spans.push(Vec::new());
            before = Some(span);
        }
        spans.last_mut().unwrap().push((layer, needed));
    }
    spans
}

/// Experts needed, and those loaded if the one that was loaded (or, with `renew`, used) first makes room. `rank`: of an
/// expert of a layer; `share`: all layers of a rank share its slots, `slots` for each layer.
pub fn count(
    spans: &Visits,
    ranks: usize,
    rank: &dyn Fn(usize, usize) -> usize,
    slots: usize,
    share: bool,
    renew: bool,
) -> (u64, u64) {
    let (mut needed, mut loaded) = (0, 0);
    for visits in spans {
        let layers = visits.iter().map(|(layer, _)| layer + 1).max().unwrap_or(0);
        for me in 0..ranks {
            // A queue for each pool: the first one goes.
            let mut queues: Vec<Vec<(usize, usize)>> = vec![Vec::new(); layers];
            let room = if share { slots * layers } else { slots };
            for (layer, experts) in visits {
                for &expert in experts.iter().filter(|&&expert| rank(*layer, expert) == me) {
                    let queue = &mut queues[if share { 0 } else { *layer }];
                    let place = queue.iter().position(|&held| held == (*layer, expert));
                    needed += 1;
                    if place.is_none() {
                        loaded += 1;
                        if queue.len() == room {
                            queue.remove(0);
                        }
                        queue.push((*layer, expert));
                    } else if let (Some(place), true) = (place, renew) {
                        let held = queue.remove(place);
                        queue.push(held);
                    }
                }
            }
        }
    }
    (needed, loaded)
}
