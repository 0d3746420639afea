//! The tokenizer `intl` of BLEU, mteval-v14's: punctuation and symbols of any script apart, numbers left whole.

use std::sync::LazyLock;

use regex::Regex;

static PASSES: LazyLock<[(Regex, &str); 3]> = LazyLock::new(|| {
    let regex = |pattern| Regex::new(pattern).expect("a constant pattern");
    [
        // punctuation, unless after a digit
        (regex(r"(\P{N})(\p{P})"), "${1} ${2} "),
        // punctuation, unless before a digit; at the end of a line after a digit it stays, as in mteval-v14
        (regex(r"(\p{P})(\P{N})"), " ${1} ${2}"),
        // symbols
        (regex(r"(\p{S})"), " ${1} "),
    ]
});

/// The tokens of a segment without white space at its end.
pub(super) fn tokenize(segment: &str) -> String {
    PASSES.iter().fold(segment.to_owned(), |line, (pattern, replacement)| {
        pattern.replace_all(&line, *replacement).into_owned()
    })
}
