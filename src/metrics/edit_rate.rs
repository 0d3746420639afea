//! The edits that make a reference of a system's line, shifts of words among them: Tercom's search, with the limits and the
//! order of preference that sacreBLEU gives it. Words are numbers; equal words have the same.
//!
//! One shift after the other is taken, each time the one that saves the most, until none does.

/// The longest run of words that is shifted.
const SHIFT_WORDS: usize = 10;
/// How far apart a run may stand in the line and in the reference.
const SHIFT_DISTANCE: usize = 50;
/// Cells on either side of the diagonal in which the edit distance is searched.
const BEAM: usize = 25;
/// Shifts that are tried for a line.
const SHIFTS_TRIED: usize = 1000;

/// Beyond the beam.
const FAR: u32 = u32::MAX / 2;

/// How many edits the line `hyp` takes to become `reference`; a shift of a run of words is one.
pub(super) fn edits(hyp: &[u32], reference: &[u32]) -> u64 {
    if reference.is_empty() {
        return hyp.len() as u64;
    }
    let (mut line, mut shifts, mut tried) = (hyp.to_vec(), 0, 0);
    let mut table = Table::new(hyp.len(), reference);
    loop {
        table.fill(&line);
        let best = best_shift(&line, &table, &mut tried);
        match best {
            // A line with too many possible shifts stays as it is, and so does one that no shift brings nearer.
            Some((saved, shifted)) if saved > 0 && tried < SHIFTS_TRIED => {
                shifts += 1;
                line = shifted;
            }
            _ => return shifts + u64::from(table.distance()),
        }
    }
}

/// The shift that saves the most edits, and how many; none where nothing can be shifted.
fn best_shift(line: &[u32], table: &Table, tried: &mut usize) -> Option<(i64, Vec<u32>)> {
    let reference = table.reference;
    let alignment = table.alignment(line);
    let before = i64::from(table.distance());
    // Most edits saved, then the longest run, then the earliest, then the earliest place.
    type Rank = (i64, usize, std::cmp::Reverse<usize>, std::cmp::Reverse<usize>);
    let mut best: Option<(Rank, Vec<u32>)> = None;
    let mut scratch = Scratch::default();
    for start in 0..line.len() {
        let near = start.saturating_sub(SHIFT_DISTANCE)..(start + SHIFT_DISTANCE + 1).min(reference.len());
        for at in near {
            let equal = line[start..].iter().zip(&reference[at..]).take(SHIFT_WORDS);
            let run = equal.take_while(|(a, b)| a == b).count();
            for length in 1..=run {
                // Words that stand right in the line, or a place in the reference that is right, are left alone.
                if !alignment.line_wrong[start..start + length].contains(&true)
                    || !alignment.reference_wrong[at..at + length].contains(&true)
                {
                    continue;
                }
                let here = alignment.place[at];
                if here > start && here <= start + length {
                    continue; // the place lies inside the run
                }
                let mut previous = None;
                // Before the first word of the place, then after each of them but the last.
                for offset in 0..=length {
                    let target = match at + offset {
                        0 => 0,
                        after => alignment.place[after - 1],
                    };
                    if previous.replace(target) == Some(target) {
                        continue;
                    }
                    let shifted = shift(line, start, length, target);
                    let unchanged = start.min(target);
                    let after = i64::from(table.distance_of(&shifted, unchanged, &mut scratch));
                    let rank = (
                        before - after,
                        length,
                        std::cmp::Reverse(start),
                        std::cmp::Reverse(target),
                    );
                    *tried += 1;
                    if best.as_ref().is_none_or(|(found, _)| rank > *found) {
                        best = Some((rank, shifted));
                    }
                }
                if *tried >= SHIFTS_TRIED {
                    return best.map(|((saved, ..), shifted)| (saved, shifted));
                }
            }
        }
    }
    best.map(|((saved, ..), shifted)| (saved, shifted))
}

/// The line with the `length` words from `start` on before word `target` instead.
fn shift(line: &[u32], start: usize, length: usize, target: usize) -> Vec<u32> {
    let end = start + length;
    let run = &line[start..end];
    if target < start {
        [&line[..target], run, &line[target..start], &line[end..]].concat()
    } else if target > end {
        [&line[..start], &line[end..target], run, &line[target..]].concat()
    } else {
        // Into itself: as far to the right as the target lies behind the run's start.
        let behind = (length + target).min(line.len());
        [&line[..start], &line[end..behind], run, &line[behind..]].concat()
    }
}

/// Which word of the line stands where the reference has its words, and what is wrong on either side.
struct Alignment {
    /// For each word of the reference: how many words of the line come up to its place, that place included.
    place: Vec<usize>,
    reference_wrong: Vec<bool>,
    line_wrong: Vec<bool>,
}

/// Edit distances of the beginnings of a line and of a reference, `[words + 1, words of the reference + 1]`, near the
/// diagonal. All lines have the same number of words.
struct Table<'a> {
    reference: &'a [u32],
    words: usize,
    costs: Vec<u32>,
}

/// Two rows of a [`Table`].
#[derive(Default)]
struct Scratch {
    above: Vec<u32>,
    row: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(words: usize, reference: &'a [u32]) -> Table<'a> {
        let width = reference.len() + 1;
        let mut costs = vec![FAR; (words + 1) * width];
        (0..).zip(&mut costs[..width]).for_each(|(cost, cell)| *cell = cost);
        Table {
            reference,
            words,
            costs,
        }
    }

    fn width(&self) -> usize {
        self.reference.len() + 1
    }

    fn row(&self, i: usize) -> &[u32] {
        &self.costs[i * self.width()..(i + 1) * self.width()]
    }

    fn distance(&self) -> u32 {
        self.row(self.words)[self.reference.len()]
    }

    fn fill(&mut self, line: &[u32]) {
        let width = self.width();
        for i in 1..=self.words {
            let (above, below) = self.costs.split_at_mut(i * width);
            next_row(
                self.reference,
                (i, self.words),
                line[i - 1],
                &above[(i - 1) * width..],
                &mut below[..width],
            );
        }
    }

    /// The distance of another line that begins with the same `unchanged` words.
    fn distance_of(&self, line: &[u32], unchanged: usize, scratch: &mut Scratch) -> u32 {
        let Scratch { above, row } = scratch;
        above.clear();
        above.extend_from_slice(self.row(unchanged));
        row.resize(self.width(), FAR);
        for i in unchanged + 1..=self.words {
            next_row(self.reference, (i, self.words), line[i - 1], above, row);
            std::mem::swap(above, row);
        }
        above[self.reference.len()]
    }

    /// Follows the cheapest edits back from the end; a substitution is preferred to a deletion, and that to an insertion.
    fn alignment(&self, line: &[u32]) -> Alignment {
        let (mut i, mut j) = (self.words, self.reference.len());
        let mut alignment = Alignment {
            place: vec![0; j],
            reference_wrong: vec![true; j],
            line_wrong: vec![true; i],
        };
        while i > 0 || j > 0 {
            let cost = self.row(i)[j];
            let equal = i > 0 && j > 0 && line[i - 1] == self.reference[j - 1];
            if i > 0 && j > 0 && cost == self.row(i - 1)[j - 1] + u32::from(!equal) {
                alignment.place[j - 1] = i;
                alignment.reference_wrong[j - 1] = !equal;
                alignment.line_wrong[i - 1] = !equal;
                (i, j) = (i - 1, j - 1);
            } else if i > 0 && (j == 0 || cost == self.row(i - 1)[j] + 1) {
                i -= 1;
            } else {
                alignment.place[j - 1] = i;
                j -= 1;
            }
        }
        alignment
    }
}

/// Row `i` of `words` of a [`Table`], for the word `word` of the line, from the row above.
fn next_row(reference: &[u32], (i, words): (usize, usize), word: u32, above: &[u32], row: &mut [u32]) {
    let ratio = reference.len() as f64 / words as f64;
    // Where lengths differ much, rows near the diagonal would not overlap.
    let beam = if (BEAM as f64) < ratio / 2.0 {
        (ratio / 2.0 + BEAM as f64).ceil() as usize
    } else {
        BEAM
    };
    let diagonal = (i as f64 * ratio).floor() as usize;
    let first = diagonal.saturating_sub(beam);
    let end = if i == words {
        row.len()
    } else {
        row.len().min(diagonal + beam)
    };
    row.fill(FAR);
    for j in first..end {
        row[j] = if j == 0 {
            above[0] + 1
        } else {
            let substituted = above[j - 1] + u32::from(word != reference[j - 1]);
            // What lies beyond the beam stays there.
            substituted.min(above[j] + 1).min(row[j - 1] + 1).min(FAR)
        };
    }
}
