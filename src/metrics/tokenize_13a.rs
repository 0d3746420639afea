//! The tokenizer `13a` of BLEU, mteval-v13a's, as sacreBLEU has it.

use std::sync::LazyLock;

use regex::Regex;

use super::{is_space, words};

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

/// The tokens of a segment, joined by single spaces.
pub fn tokenize(segment: &str) -> String {
    let mut line = segment
        .trim_end_matches(is_space)
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    if line.contains('&') {
        line = line
            .replace("&quot;", "\"")
            .replace("&amp;", "&")
            .replace("&lt;", "<")
            .replace("&gt;", ">");
    }
    line = format!(" {line} ");
    for (pattern, replacement) in PASSES.iter() {
        line = pattern.replace_all(&line, *replacement).into_owned();
    }
    words(&line).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::tokenize;

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
            assert_eq!(tokenize(segment), tokens, "{segment:?}");
        }
    }
}
