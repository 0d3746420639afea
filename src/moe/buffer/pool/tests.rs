//! Visits at random over experts that carry their number in every byte: each runs once, with its own weights.

use super::*;
use crate::device::{Dtype, Layout};
use crate::moe::buffer::source::expert_bytes;
use anyhow::ensure;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{mpsc, Mutex};
use std::time::Duration;

const PREFETCH: [Prefetch; 3] = [Prefetch::Off, Prefetch::Trace, Prefetch::Gate];

/// The rank's first expert among all of the model.
const FIRST: usize = 3;

struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// What an expert consists of: its number, again and again.
fn mark(layer: usize, expert: usize) -> [u8; 4] {
    (0x1000_0000 + (layer as u32) * 1000 + expert as u32).to_le_bytes()
}

/// Writes marks, slowly, over garbage; may fail, panic or wait for one expert.
#[derive(Default)]
struct Marks {
    /// What was read: layer, expert.
    seen: Mutex<Vec<(usize, usize)>>,
    /// Longest time that a read takes, in microseconds.
    slow: usize,
    fails: Option<(usize, usize)>,
    panics: Option<(usize, usize)>,
    /// Reading waits while it is set.
    held: AtomicBool,
}

impl Marks {
    fn seen(&self) -> Vec<(usize, usize)> {
        self.seen.lock().unwrap().clone()
    }
}

impl ExpertSource for Marks {
    // No two layers' experts are of one shape, and none is a whole number of pages.
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        let layout = |inputs, outputs| Layout {
            inputs,
            outputs,
            dtype: Dtype::F32,
            gated: false,
            bias: layer % 2 == 1,
        };
        [layout(5 + layer, 7), layout(7, 5 + 9 * layer)]
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let number = {
            let mut seen = self.seen.lock().unwrap();
            seen.push((layer, expert));
            seen.len()
        };
        into.up.bytes_mut().fill(0xee);
        into.down.bytes_mut().fill(0xee);
        if self.slow > 0 {
            let pause = Dice(number as u64 * 7919).below(self.slow);
            std::thread::sleep(Duration::from_micros(pause as u64));
        }
        while self.held.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_micros(50));
        }
        assert_ne!(self.panics, Some((layer, expert)), "this one panics");
        ensure!(self.fails != Some((layer, expert)), "experts.bin: nothing but noise");
        for room in [&mut into.up, &mut into.down] {
            let bytes = room.bytes_mut().chunks_exact_mut(4);
            bytes.for_each(|four| four.copy_from_slice(&mark(layer, expert)));
        }
        Ok(expert_bytes(self.layouts(layer)) as u64)
    }

    fn staging(&self) -> u64 {
        0
    }
}

fn shelf(experts: &[usize], encode: usize) -> Shelf {
    let layers = experts.len();
    Shelf {
        experts: experts.to_vec(),
        encode: if encode == 0 { 0..layers } else { 0..encode },
        decode: encode..layers,
    }
}

/// Whether what is given to a product is the expert's.
fn is_whole(expert: &Expert, layouts: [Layout; 2], layer: usize, e: usize) {
    for (room, layout) in [(&expert.up, layouts[0]), (&expert.down, layouts[1])] {
        assert_eq!(room.layout(), layout, "layer {layer}, expert {e}");
        assert!(!room.bytes_of().is_empty());
        let sound = room.bytes_of().chunks_exact(4).all(|four| four == mark(layer, e));
        assert!(
            sound,
            "layer {layer}, expert {e} computes with {:?}",
            &room.bytes_of()[..4]
        );
    }
}

/// Rows of a visit: of none, one, some, all, mostly one.
fn rows(dice: &mut Dice, experts: usize) -> Vec<u32> {
    let mut rows = vec![0; experts];
    match dice.below(6) {
        0 if dice.below(3) == 0 => {}
        0 => {
            if experts > 0 {
                rows[dice.below(experts)] = 9;
            }
        }
        1 => rows.fill(1),
        2 => (0..experts).for_each(|e| rows[e] = u32::from(dice.below(1 << e.min(8)) == 0) * 5),
        _ => rows
            .iter_mut()
            .for_each(|n| *n = (dice.below(4) as u32).saturating_sub(2)),
    }
    rows
}

/// Takes a buffer through visits at random and looks at each turn. What was done.
fn wander(buffer: &mut Buffer, source: &Marks, shelf: &Shelf, visits: usize, dice: &mut Dice) -> Tally {
    let mut meter = Meter::default();
    let mut uses = 0;
    let mut left = visits;
    while left > 0 {
        let (pass, layers) = match dice.below(4) {
            0 => (Pass::Encode, shelf.encode.clone()),
            _ => (Pass::Decode, shelf.decode.clone()),
        };
        for layer in layers {
            left = left.saturating_sub(1);
            let rows = rows(dice, shelf.experts[layer]);
            let guess: Vec<u32> = rows.iter().map(|_| dice.below(2) as u32).collect();
            let even = shelf.experts.iter().all(|n| *n == rows.len());
            let guess = (even && buffer.asks_gates()).then_some(&guess[..]);
            buffer.begin(pass, layer, &rows, guess);
            if dice.below(3) == 0 {
                std::thread::sleep(Duration::from_micros(dice.below(300) as u64));
            }
            let mut ran = Vec::new();
            buffer
                .run(&mut meter, |_, experts| {
                    assert!(!experts.is_empty());
                    for &(e, expert) in experts {
                        is_whole(expert, source.layouts(layer), layer, FIRST + e);
                        ran.push(e);
                    }
                })
                .unwrap();
            ran.sort_unstable();
            let needed: Vec<usize> = (0..rows.len()).filter(|&e| rows[e] > 0).collect();
            assert_eq!(ran, needed, "each expert with rows once");
            uses += needed.len() as u64;
        }
    }
    assert_eq!(buffer.tally().uses, uses);
    buffer.tally()
}

/// Fails where it hangs.
fn in_time(what: String, work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    match end.recv_timeout(Duration::from_secs(60)) {
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what} hangs"),
        _ => thread.join().unwrap_or_else(|_| panic!("{what}")),
    }
}

fn plan(slots: usize, eviction: Eviction, prefetch: Prefetch) -> Plan {
    Plan {
        slots,
        eviction,
        prefetch,
        pin: 0,
        readers: 1,
    }
}

#[test]
fn every_expert_of_every_visit_runs_once_with_its_own_weights() {
    for (experts, encode) in [
        (vec![6, 6, 6, 6], 2),
        (vec![5, 5, 5], 0),
        (vec![1], 0),
        (vec![3, 4, 2, 9], 1),
        (vec![0, 3, 0, 2], 2),
    ] {
        let shelf = shelf(&experts, encode);
        let all: usize = experts.iter().sum();
        for (i, eviction) in Eviction::ALL.into_iter().enumerate() {
            for (j, prefetch) in PREFETCH.into_iter().enumerate() {
                let mut slots = plan(0, eviction, prefetch).scope().least(&shelf);
                while slots <= all {
                    let plan = Plan {
                        pin: slots % 3,
                        readers: 1 + (slots + i) % 3,
                        ..plan(slots, eviction, prefetch)
                    };
                    let (shelf, what) = (shelf.clone(), format!("{plan:?} for {experts:?}"));
                    let mut dice = Dice((i * 100 + j * 10 + slots) as u64);
                    in_time(what, move || {
                        let source = Arc::new(Marks {
                            slow: dice.below(3) * 60,
                            ..Marks::default()
                        });
                        let mut buffer = Buffer::new(plan.clone(), shelf.clone(), FIRST, source.clone()).unwrap();
                        if dice.below(2) == 0 {
                            filled(&mut buffer, &source);
                        }
                        let tally = wander(&mut buffer, &source, &shelf, 60, &mut dice);
                        drop(buffer);
                        counted(&plan, tally, &source);
                    });
                    slots += 1 + all / 7;
                }
            }
        }
    }
}

/// Fills the slots: with as many experts as there are slots, each once, which is not counted.
fn filled(buffer: &mut Buffer, source: &Marks) {
    buffer.fill(source).unwrap();
    let seen = std::mem::take(&mut *source.seen.lock().unwrap());
    let slots = buffer.slots.iter();
    assert_eq!(seen.len(), slots.filter(|slot| slot.generation > 0).count());
    let different: std::collections::BTreeSet<_> = seen.iter().collect();
    assert_eq!(different.len(), seen.len());
    assert_eq!(buffer.tally(), Tally::default());
}

/// What was counted is what was read, but for what was planned ahead and given up before it began.
fn counted(plan: &Plan, tally: Tally, source: &Marks) {
    let seen = source.seen();
    let bytes = |&(layer, _): &(usize, usize)| expert_bytes(source.layouts(layer)) as u64;
    let read: u64 = seen.iter().map(bytes).sum();
    assert_eq!(tally.encode[1] + tally.decode[1], tally.loads);
    assert!(tally.loads <= tally.uses + tally.ahead);
    if plan.prefetch == Prefetch::Off {
        assert_eq!((seen.len() as u64, read, 0), (tally.loads, tally.bytes, tally.ahead));
    } else {
        let (most, least) = (tally.loads, tally.loads - tally.ahead);
        assert!((least..=most).contains(&(seen.len() as u64)), "{tally:?}");
        assert!(tally.bytes <= read);
    }
}

#[test]
fn all_in_slots_are_read_once() {
    for eviction in Eviction::ALL {
        let (shelf, source) = (shelf(&[4, 4, 4], 1), Arc::new(Marks::default()));
        let plan = plan(12, eviction, Prefetch::Off);
        let mut buffer = Buffer::new(plan, shelf.clone(), FIRST, source.clone()).unwrap();
        wander(&mut buffer, &source, &shelf, 200, &mut Dice(5));
        let mut seen = source.seen();
        let reads = seen.len();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!((seen.len(), reads), (12, 12), "{eviction:?}");
    }
}

/// A visit of two experts of layer 0 and what `run` says.
fn visited(buffer: &mut Buffer, rows: &[u32]) -> (Result<()>, Vec<usize>) {
    let mut ran = Vec::new();
    buffer.begin(Pass::Decode, 0, rows, None);
    let end = buffer.run(&mut Meter::default(), |_, experts| {
        ran.extend(experts.iter().map(|(e, _)| *e))
    });
    (end, ran)
}

fn breaks(source: Marks, cause: &str) {
    for eviction in Eviction::ALL {
        for prefetch in PREFETCH {
            for readers in [1, 3] {
                let source = Arc::new(Marks {
                    fails: source.fails,
                    panics: source.panics,
                    ..Marks::default()
                });
                let cause = cause.to_owned();
                in_time(format!("{eviction:?} {prefetch:?}"), move || {
                    let plan = Plan {
                        readers,
                        ..plan(4, eviction, prefetch)
                    };
                    let mut buffer = Buffer::new(plan, shelf(&[6, 6], 0), FIRST, source.clone()).unwrap();
                    assert!(visited(&mut buffer, &[1, 0, 0, 1, 0, 0]).0.is_ok());
                    let (end, ran) = visited(&mut buffer, &[1, 1, 1, 1, 1, 0]);
                    let error = format!("{:#}", end.unwrap_err());
                    assert!(
                        error.starts_with("expert 5 of MoE layer 0") && error.contains(&cause),
                        "{error}"
                    );
                    assert!(!ran.contains(&2), "what was not read has not run");
                    // The rank goes on in step with the others, without experts.
                    let reads = source.seen().len();
                    for _ in 0..3 {
                        let (end, ran) = visited(&mut buffer, &[1; 6]);
                        assert!(end.is_ok() && ran.is_empty());
                    }
                    drop(buffer);
                    assert!(source.seen().len() <= reads + 4, "nothing new is asked for");
                });
            }
        }
    }
}

#[test]
fn an_expert_that_cannot_be_read_ends_the_visit_with_its_name() {
    let fails = Some((0, FIRST + 2));
    breaks(
        Marks {
            fails,
            ..Marks::default()
        },
        "experts.bin: nothing but noise",
    );
}

#[test]
fn a_panic_while_reading_ends_the_visit_too() {
    let panics = Some((0, FIRST + 2));
    breaks(
        Marks {
            panics,
            ..Marks::default()
        },
        "panicked",
    );
}

#[test]
fn a_buffer_that_goes_in_the_middle_of_loads_takes_its_threads_along() {
    for readers in [1, 2, 4] {
        in_time(format!("{readers} readers"), move || {
            let source = Arc::new(Marks {
                held: AtomicBool::new(true),
                ..Marks::default()
            });
            let plan = Plan {
                readers,
                ..plan(8, Eviction::Lookahead, Prefetch::Off)
            };
            let mut buffer = Buffer::new(plan, shelf(&[8, 8], 0), FIRST, source.clone()).unwrap();
            buffer.begin(Pass::Decode, 0, &[1; 8], None);
            while source.seen().len() < readers {
                std::thread::sleep(Duration::from_micros(50));
            }
            let opener = source.clone();
            let thread = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(5));
                opener.held.store(false, Ordering::SeqCst);
            });
            drop(buffer);
            thread.join().unwrap();
            assert_eq!(Arc::strong_count(&source), 1, "no thread is left");
            // What was begun was read to its end, the rest was given up.
            assert_eq!(source.seen().len(), readers);
        });
    }
}

#[test]
fn resident_experts_run_while_the_others_are_read() {
    in_time("resident experts wait".into(), || {
        let source = Arc::new(Marks::default());
        let plan = plan(4, Eviction::Lookahead, Prefetch::Off);
        let mut buffer = Buffer::new(plan, shelf(&[6], 0), FIRST, source.clone()).unwrap();
        assert!(visited(&mut buffer, &[1, 1, 1, 0, 0, 0]).0.is_ok());
        source.held.store(true, Ordering::SeqCst);
        buffer.begin(Pass::Decode, 0, &[1, 1, 1, 1, 0, 0], None);
        let mut ran = Vec::new();
        let run = buffer.run(&mut Meter::default(), |_, experts| {
            ran.extend(experts.iter().map(|(e, _)| *e));
            // Nothing is read before the three that are there have run.
            if ran.len() == 3 {
                source.held.store(false, Ordering::SeqCst);
            }
        });
        assert!(run.is_ok());
        assert_eq!((ran.len(), ran.last()), (4, Some(&3)));
    });
}
