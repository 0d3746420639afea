//! Where sentences lie in the caches. Pure: hands out row numbers, touches no memory.

use std::ops::Range;

/// Room for sentences in flight: equal slots for generated tokens, spans of source tokens.
#[derive(Debug)]
pub struct Slots {
    /// Cache rows of a slot: positions times beams.
    rows: usize,
    free: Vec<usize>,
    spans: Spans,
}

/// Where one sentence and its outputs lie.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Cross rows.
    pub source: Range<usize>,
    /// First cache row of each output's generated tokens.
    pub own: Vec<usize>,
}

impl Slots {
    /// `slots` slots of `rows` cache rows each, and `tokens` cross rows.
    pub fn new(slots: usize, rows: usize, tokens: usize) -> Slots {
        Slots {
            rows,
            free: (0..slots).rev().collect(),
            spans: Spans::new(tokens),
        }
    }

    /// Room for a sentence of `tokens` source tokens with `outputs` outputs, or nothing for now.
    pub fn take(&mut self, tokens: usize, outputs: usize) -> Option<Place> {
        if self.free.len() < outputs {
            return None;
        }
        let source = self.spans.take(tokens)?;
        let own = (0..outputs)
            .filter_map(|_| self.free.pop())
            .map(|slot| slot * self.rows)
            .collect();
        Some(Place { source, own })
    }

    /// Gives back the slot of one output, by its first cache row.
    pub fn give_back_own(&mut self, own: usize) {
        self.free.push(own / self.rows);
    }

    /// Gives back a sentence's cross rows.
    pub fn give_back_source(&mut self, source: Range<usize>) {
        self.spans.give_back(source);
    }

    /// Free slots.
    pub fn free(&self) -> usize {
        self.free.len()
    }
}

/// Free spans of a row of cells: first fit, neighbours joined.
#[derive(Debug)]
struct Spans {
    free: Vec<Range<usize>>,
}

impl Spans {
    fn new(cells: usize) -> Spans {
        Spans {
            free: std::iter::once(0..cells).filter(|r| !r.is_empty()).collect(),
        }
    }

    fn take(&mut self, n: usize) -> Option<Range<usize>> {
        if n == 0 {
            return Some(0..0);
        }
        let i = self.free.iter().position(|r| r.len() >= n)?;
        let start = self.free[i].start;
        self.free[i].start += n;
        if self.free[i].is_empty() {
            self.free.remove(i);
        }
        Some(start..start + n)
    }

    fn give_back(&mut self, span: Range<usize>) {
        if span.is_empty() {
            return;
        }
        let i = self.free.partition_point(|r| r.start < span.start);
        self.free.insert(i, span);
        if i + 1 < self.free.len() && self.free[i].end == self.free[i + 1].start {
            self.free[i].end = self.free.remove(i + 1).end;
        }
        if i > 0 && self.free[i - 1].end == self.free[i].start {
            self.free[i - 1].end = self.free.remove(i).end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn give_back(slots: &mut Slots, place: Place) {
        place.own.into_iter().for_each(|own| slots.give_back_own(own));
        slots.give_back_source(place.source);
    }

    #[test]
    fn no_cell_is_handed_out_twice_and_all_come_back() {
        let (mut slots, mut held, mut seed) = (Slots::new(9, 10, 100), Vec::<Place>::new(), 7u64);
        for _ in 0..5000 {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let n = 1 + (seed >> 33) as usize % 20;
            if seed >> 63 == 0 && !held.is_empty() {
                let place = held.swap_remove(n % held.len());
                give_back(&mut slots, place);
            } else if let Some(place) = slots.take(n, n % 3) {
                let apart = |a: &Range<usize>, b: &Range<usize>| a.end <= b.start || b.end <= a.start;
                assert!(held.iter().all(|h| apart(&h.source, &place.source)));
                assert!(held.iter().all(|h| h.own.iter().all(|o| !place.own.contains(o))));
                assert!(place.source.len() == n && place.source.end <= 100 && place.own.len() == n % 3);
                held.push(place);
            }
        }
        held.into_iter().for_each(|h| give_back(&mut slots, h));
        assert_eq!(slots.free(), 9);
        assert_eq!(slots.take(100, 1).map(|p| p.source), Some(0..100), "one span again");
    }

    #[test]
    fn nothing_is_taken_when_either_runs_out() {
        let mut slots = Slots::new(2, 4, 10);
        let a = slots.take(8, 1).unwrap();
        assert!(slots.take(3, 1).is_none() && slots.free() == 1);
        let b = slots.take(2, 1).unwrap();
        assert!(slots.take(0, 1).is_none());
        assert_eq!(
            slots.take(0, 0).map(|p| p.source),
            Some(0..0),
            "a prompt of one token leaves none to read"
        );
        give_back(&mut slots, a);
        assert_eq!(slots.take(8, 1).map(|p| p.own), Some(vec![0]));
        assert_eq!(b.own, [4]);
    }
}
