//! The tokenizer `zh` of BLEU: Chinese characters one by one, what is between them as `13a` has it.

use super::{set_apart, western};
use crate::metrics::is_space;

/// What counts as Chinese, ends included. sacreBLEU writes two planes beyond U+FFFF with four digits too few, so that
/// they became ranges of dashes, quotes, arrows and signs; figures are equal only with these.
const CHINESE: [(char, char); 22] = [
    ('\u{2001}', '\u{2a6d}'),
    ('\u{2e80}', '\u{2eff}'),
    ('\u{2f00}', '\u{2fdf}'),
    ('\u{2f81}', '\u{2fa1}'),
    ('\u{2ff0}', '\u{2fff}'),
    ('\u{3000}', '\u{303f}'),
    ('\u{3100}', '\u{312f}'),
    ('\u{31a0}', '\u{31bf}'),
    ('\u{31c0}', '\u{31ef}'),
    ('\u{3200}', '\u{32ff}'),
    ('\u{3300}', '\u{33ff}'),
    ('\u{3400}', '\u{4db5}'),
    ('\u{4e00}', '\u{9fa5}'),
    ('\u{9fa6}', '\u{9fbb}'),
    ('\u{f900}', '\u{fa2d}'),
    ('\u{fa30}', '\u{fa6a}'),
    ('\u{fa70}', '\u{fad9}'),
    ('\u{fe10}', '\u{fe1f}'),
    ('\u{fe30}', '\u{fe4f}'),
    ('\u{ff00}', '\u{ffef}'),
    ('\u{2600}', '\u{26ff}'),
    ('\u{2700}', '\u{27bf}'),
];

/// The tokens of a segment without white space at its end.
pub(super) fn tokenize(segment: &str) -> String {
    let line = set_apart(segment.trim_start_matches(is_space), |c| {
        CHINESE.iter().any(|(first, last)| (*first..=*last).contains(&c))
    });
    // Without a space on either side, unlike 13a: a period that ends a number that ends the line stays with it.
    western::punctuation(line)
}
