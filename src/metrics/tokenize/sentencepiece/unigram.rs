//! The likeliest pieces of a text (Viterbi), in the library's precision and with its ties.

use super::file::Kind;
use super::SentencePiece;

/// By how much what is unknown is less likely than the least likely piece.
const UNKNOWN: f32 = 10.0;

/// The best way to a place in the text.
#[derive(Clone, Copy)]
struct Way {
    score: f32,
    /// Where its last piece begins.
    from: usize,
}

impl SentencePiece {
    pub(super) fn unigram<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let [least, most] = self.scores;
        let mut ways: Vec<Option<Way>> = vec![None; text.len() + 1];
        let offer = |ways: &mut Vec<Option<Way>>, from: usize, to: usize, score: f32| {
            if ways[to].is_none_or(|way| score > way.score) {
                ways[to] = Some(Way { score, from });
            }
        };
        for (from, first) in text.char_indices() {
            let next = from + first.len_utf8();
            let before = ways[from].map_or(0.0, |way| way.score);
            let mut is_known = false;
            let ends = text[from..].char_indices().map(|(i, c)| from + i + c.len_utf8());
            for to in ends.take(self.longest) {
                let Some(piece) = self.find(&text[from..to]).filter(|piece| piece.kind != Kind::Unused) else {
                    continue;
                };
                let score = match piece.kind {
                    Kind::UserDefined => (f64::from((to - from) as f32 * most) - 0.1) as f32,
                    _ => piece.score,
                };
                offer(&mut ways, from, to, score + before);
                is_known |= to == next;
            }
            if !is_known {
                offer(&mut ways, from, next, least - UNKNOWN + before);
            }
        }
        let mut pieces = Vec::new();
        let mut end = text.len();
        while let Some(way) = ways[end].filter(|_| end > 0) {
            pieces.push(&text[way.from..end]);
            end = way.from;
        }
        pieces.reverse();
        pieces
    }
}
