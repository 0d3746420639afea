//! The pieces of a text whose best neighbours are merged, one pair after the other.

use super::file::Kind;
use super::SentencePiece;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::ops::Range;

/// A part of the text that is one piece so far.
struct Symbol {
    /// Its bytes; none once it is merged into the one before.
    span: Range<usize>,
    before: Option<usize>,
    behind: Option<usize>,
    /// Whether it is never merged.
    fixed: bool,
}

/// Two neighbours that make a piece.
struct Pair {
    left: usize,
    right: usize,
    score: f32,
    bytes: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        let score = self.score.partial_cmp(&other.score).unwrap_or(Ordering::Equal);
        score.then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Pair {}

impl SentencePiece {
    pub(super) fn bpe<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut symbols = self.symbols(text);
        let mut agenda = BinaryHeap::new();
        // Of a piece that may be no result: where it was put together.
        let mut taken_apart: HashMap<&'t str, usize> = HashMap::new();
        let mut consider =
            |symbols: &[Symbol], agenda: &mut BinaryHeap<Pair>, left: Option<usize>, right: Option<usize>| {
                let (Some(left), Some(right)) = (left, right) else {
                    return;
                };
                let [a, b] = [&symbols[left], &symbols[right]];
                let span = a.span.start..b.span.end;
                let Some(piece) = self.find(&text[span.clone()]).filter(|_| !a.fixed && !b.fixed) else {
                    return;
                };
                if piece.kind == Kind::Unused {
                    taken_apart.insert(&text[span.clone()], a.span.len());
                }
                agenda.push(Pair {
                    left,
                    right,
                    score: piece.score,
                    bytes: span.len(),
                });
            };
        for i in 1..symbols.len() {
            consider(&symbols, &mut agenda, Some(i - 1), Some(i));
        }
        while let Some(Pair { left, right, bytes, .. }) = agenda.pop() {
            let lengths = [left, right].map(|i| symbols[i].span.len());
            if lengths.contains(&0) || lengths.iter().sum::<usize>() != bytes {
                continue;
            }
            symbols[left].span.end = symbols[right].span.end;
            let behind = symbols[right].behind;
            symbols[left].behind = behind;
            if let Some(behind) = behind {
                symbols[behind].before = Some(left);
            }
            symbols[right].span = 0..0;
            let before = symbols[left].before;
            consider(&symbols, &mut agenda, before, Some(left));
            consider(&symbols, &mut agenda, Some(left), behind);
        }
        let mut pieces = Vec::new();
        let mut next = (!symbols.is_empty()).then_some(0);
        while let Some(i) = next {
            self.resegment(&text[symbols[i].span.clone()], &taken_apart, &mut pieces);
            next = symbols[i].behind;
        }
        pieces
    }

    /// The characters of a text, and pieces that are always one.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::new();
        let mut at = 0;
        while let Some(first) = text[at..].chars().next() {
            let whole = self.normalizer.whole(&text[at..]);
            let end = at + whole.unwrap_or(first.len_utf8());
            let i = symbols.len();
            symbols.push(Symbol {
                span: at..end,
                before: i.checked_sub(1),
                behind: (end < text.len()).then_some(i + 1),
                fixed: whole.is_some(),
            });
            at = end;
        }
        symbols
    }

    fn resegment<'t>(&self, piece: &'t str, taken_apart: &HashMap<&'t str, usize>, pieces: &mut Vec<&'t str>) {
        let unused = self.find(piece).is_some_and(|piece| piece.kind == Kind::Unused);
        match taken_apart.get(piece).filter(|_| unused) {
            Some(&middle) => {
                let (left, right) = piece.split_at(middle);
                self.resegment(left, taken_apart, pieces);
                self.resegment(right, taken_apart, pieces);
            }
            None => pieces.push(piece),
        }
    }
}
