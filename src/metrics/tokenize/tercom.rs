//! The tokenizer of TER, as sacreBLEU has it from Tercom.

use super::{set_apart, western};
use crate::metrics::is_space;

/// What TER does to segments before it compares them. The default is Tercom's and sacreBLEU's: lower case only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerOptions {
    /// Upper and lower case differ.
    pub case_sensitive: bool,
    /// Entities of XML are read, punctuation is set apart from words.
    pub normalized: bool,
    /// Punctuation is left out.
    pub no_punct: bool,
    /// With `normalized` Chinese and Japanese characters are tokens of their own; with `no_punct` their punctuation is left
    /// out too.
    pub asian_support: bool,
}

/// A segment as TER reads it; words stand between white space.
pub(in crate::metrics) fn tokenize(segment: &str, options: TerOptions) -> String {
    let mut line = segment.trim_end_matches(is_space).to_owned();
    if line.is_empty() {
        return line;
    }
    if !options.case_sensitive {
        line = line.to_lowercase();
    }
    if options.normalized {
        line = normalized(&line);
        if options.asian_support {
            // Tercom's rules for kana only look at the start of the line, where a space stands by now.
            line = set_apart(&line, |c| is_asian(c) || is_asian_punctuation(c));
        }
    }
    if options.no_punct {
        line.retain(|c| !(".,?:;!\"()".contains(c) || options.asian_support && is_asian_punctuation(c)));
    }
    line
}

fn normalized(line: &str) -> String {
    let line = western::entities(&line.replace("\n-", "").replace('\n', " "));
    let line = western::symbols(format!(" {line} "));
    western::numbers(line.replace("'s ", " 's "))
}

/// Ideographs, radicals, strokes, enclosed and compatibility forms. (sacreBLEU ends the enclosed letters at U+3F22, not
/// U+32FF.)
fn is_asian(c: char) -> bool {
    matches!(c, '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' | '\u{31c0}'..='\u{31ef}' | '\u{2e80}'..='\u{2eff}'
        | '\u{3200}'..='\u{3f22}' | '\u{f900}'..='\u{faff}' | '\u{fe30}'..='\u{fe4f}')
}

fn is_asian_punctuation(c: char) -> bool {
    matches!(c, '\u{3001}' | '\u{3002}' | '\u{3008}'..='\u{3011}' | '\u{3014}'..='\u{301f}' | '\u{ff61}'..='\u{ff65}'
        | '\u{30fb}' | '\u{ff0e}' | '\u{ff0c}' | '\u{ff1f}' | '\u{ff1a}' | '\u{ff1b}' | '\u{ff01}' | '\u{ff02}'
        | '\u{ff08}' | '\u{ff09}')
}
