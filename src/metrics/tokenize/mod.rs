//! How BLEU cuts a segment into tokens: the tokenizers of sacreBLEU, each by its name there.

mod chinese;
mod international;
mod pieces;
mod sentencepiece;
pub(super) mod tercom;
mod western;

pub use pieces::Pieces;

use super::words;

/// A tokenizer of BLEU.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Tokenizer {
    /// `13a`: mteval-v13a's, sacreBLEU's default.
    #[default]
    V13a,
    /// `intl`: mteval-v14's, for punctuation and symbols of any script.
    International,
    /// `zh`: Chinese characters one by one, `13a` between them.
    Chinese,
    /// `char`: every character is a token.
    Char,
    /// `none`: tokens stand between white space already.
    None,
    /// `spm`: the pieces of a subword tokenizer.
    Pieces(Pieces),
}

impl Tokenizer {
    /// The names of those that need no file.
    pub const NAMES: [&'static str; 5] = ["13a", "intl", "zh", "char", "none"];

    /// The tokenizer of a name, one of [`Tokenizer::NAMES`].
    pub fn of(name: &str) -> Option<Tokenizer> {
        Some(match name {
            "13a" => Tokenizer::V13a,
            "intl" => Tokenizer::International,
            "zh" => Tokenizer::Chinese,
            "char" => Tokenizer::Char,
            "none" => Tokenizer::None,
            _ => return None,
        })
    }

    /// The tokens of a segment, with white space between them.
    pub fn tokenize(&self, segment: &str) -> String {
        let segment = segment.trim_end_matches(super::is_space);
        match self {
            Tokenizer::V13a => western::tokenize_13a(segment),
            Tokenizer::International => international::tokenize(segment),
            Tokenizer::Chinese => chinese::tokenize(segment),
            Tokenizer::Char => apart(words(segment).flat_map(str::chars)),
            Tokenizer::None => segment.to_owned(),
            Tokenizer::Pieces(pieces) => pieces.tokenize(segment),
        }
    }

    /// What a signature says after `tok:`.
    pub fn signature(&self) -> &str {
        match self {
            Tokenizer::V13a => "13a",
            Tokenizer::International => "intl",
            Tokenizer::Chinese => "zh",
            Tokenizer::Char => "char",
            Tokenizer::None => "none",
            Tokenizer::Pieces(pieces) => pieces.signature(),
        }
    }
}

/// The characters with a space after each.
fn apart(chars: impl Iterator<Item = char>) -> String {
    chars.flat_map(|c| [c, ' ']).collect()
}

/// The text with white space around the characters that are `alone`.
fn set_apart(text: &str, alone: impl Fn(char) -> bool) -> String {
    let mut spaced = String::with_capacity(text.len() * 2);
    for c in text.chars() {
        if alone(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    spaced
}
