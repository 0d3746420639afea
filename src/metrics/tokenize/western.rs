//! The tokenizer `13a` of BLEU, mteval-v13a's, and what other tokenizers share with it.

use super::set_apart;

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

/// ASCII symbols that never belong to a word or a number; ' - . and , may.
pub(super) fn symbols(line: String) -> String {
    set_apart(
        &line,
        |c| matches!(c, '!'..='&' | '('..='+' | '/' | ':'..='@' | '['..='`' | '{'..='~'),
    )
}

/// Periods and commas apart unless digits stand on both sides, then a dash after a digit. What one pass writes, the next one
/// reads.
pub(super) fn numbers(line: String) -> String {
    let digit = |c: char| c.is_ascii_digit();
    let point = |c| c == '.' || c == ',';
    let line = pairs(&line, |a, b| !digit(a) && point(b), |a, b| [a, ' ', b, ' ']);
    let line = pairs(&line, |a, b| point(a) && !digit(b), |a, b| [' ', a, ' ', b]);
    pairs(&line, |a, b| digit(a) && b == '-', |a, b| [a, ' ', b, ' '])
}

/// Replaces pairs of characters from the left on; a character is in one pair at most.
fn pairs(line: &str, is: impl Fn(char, char) -> bool, to: impl Fn(char, char) -> [char; 4]) -> String {
    let mut spaced = String::with_capacity(line.len() + line.len() / 4);
    let mut chars = line.chars().peekable();
    while let Some(a) = chars.next() {
        match chars.next_if(|b| is(a, *b)) {
            Some(b) => spaced.extend(to(a, b)),
            None => spaced.push(a),
        }
    }
    spaced
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
