//! The tokenizer `13a` of BLEU, mteval-v13a's, and what other tokenizers share with it.

use std::sync::LazyLock;

use regex::Regex;

/// Punctuation apart from its words, pass after pass: what one pass writes, the next one reads.
static PASSES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let regex = |pattern| Regex::new(pattern).expect("a constant pattern");
    [
        // ASCII punctuation, save ' - . and ,
        (regex(r"([\{-~\[-` -&\(-\+:-@/])"), " ${1} "),
        // period and comma, unless after a digit
        (regex(r"([^0-9])([\.,])"), "${1} ${2} "),
        // period and comma, unless before a digit
        (regex(r"([\.,])([^0-9])"), " ${1} ${2}"),
        // a dash after a digit
        (regex(r"([0-9])(-)"), "${1} ${2} "),
    ]
});

/// The tokens of a segment without white space at its end.
pub(super) fn tokenize_13a(segment: &str) -> String {
    let line = segment.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    let line = if line.contains('&') { entities(&line) } else { line };
    punctuation(format!(" {line} "))
}

/// The four entities of XML as the characters they stand for, one after the other.
pub(super) fn entities(line: &str) -> String {
    line.replace("&quot;", "\"")
        .replace("&amp;", "&")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
}

/// All passes.
pub(super) fn punctuation(line: String) -> String {
    numbers(symbols(line))
}

/// The first pass: symbols that never belong to a word or a number.
pub(super) fn symbols(line: String) -> String {
    pass(line, &PASSES[0])
}

/// The other passes: periods, commas and dashes, which may belong to a number.
pub(super) fn numbers(line: String) -> String {
    PASSES[1..].iter().fold(line, pass)
}

fn pass(line: String, (pattern, replacement): &(Regex, &str)) -> String {
    pattern.replace_all(&line, *replacement).into_owned()
}

#[cfg(test)]
mod tests {
    use super::super::Tokenizer;
    use crate::metrics::words;

    /// Tokens as sacreBLEU 2.6.0 gives them.
    #[test]
    fn tokens_of_sacrebleu() {
        for (segment, tokens) in [
            ("", ""),
            ("Hello, world.", "Hello , world ."),
            ("It's 3.5% of 1,000-odd e.g.", "It's 3.5 % of 1,000 - odd e . g ."),
            ("&quot;a&quot; &amp;lt; <b>", "\" a \" < < b >"),
            ("co-\noperate<skipped> now\nthen\n", "cooperate now then"),
            ("a...b ..,", "a . . . b . . ,"),
        ] {
            let found = Tokenizer::V13a.tokenize(segment);
            assert_eq!(words(&found).collect::<Vec<_>>().join(" "), tokens, "{segment:?}");
        }
    }
}
