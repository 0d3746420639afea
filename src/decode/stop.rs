//! Stop strings: an output ends with the token that completes one of them in its text. Its ids stay as they were
//! generated; its text is cut before the stop string.

use anyhow::{ensure, Result};

/// Bytes at the front of a decoded tail that may differ from the same place in the whole text, and at its end may still
/// change: parts of a character (U+FFFD until it is complete, which is longer), a blank that a decoder takes off the front,
/// and the few bytes that the cleaning of blanks looks at.
const UNSURE: usize = 32;
/// Tokens of the shortest tail.
const SHORTEST: usize = 8;

/// The stop strings of an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    strings: Vec<String>,
    /// Bytes of the longest.
    longest: usize,
}

impl Stops {
    /// An output that ends with any of `strings`; none never ends one.
    ///
    /// # Errors
    /// A string is empty.
    pub fn new(strings: Vec<String>) -> Result<Stops> {
        ensure!(
            strings.iter().all(|s| !s.is_empty()),
            "an empty stop string, which would end every output at once; leave it out"
        );
        let longest = strings.iter().map(String::len).max().unwrap_or(0);
        Ok(Stops { strings, longest })
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Where the first stop string in a text begins, in bytes.
    pub fn ends(&self, text: &str) -> Option<usize> {
        self.strings.iter().filter_map(|s| text.find(s.as_str())).min()
    }

    /// A text up to its first stop string.
    pub fn cut<'t>(&self, text: &'t str) -> &'t str {
        &text[..self.ends(text).unwrap_or(text.len())]
    }

    /// Whether `next` completes a stop string in the text of an output whose tokens before, `ids`, hold none. `text` makes
    /// text of ids: of a tail of them that is long enough, and of all once that holds a stop string, as a tail may begin
    /// within a character.
    ///
    /// # Errors
    /// `text` fails.
    pub fn reached(&self, ids: &[u32], next: u32, text: impl Fn(&[u32]) -> Result<String>) -> Result<bool> {
        if self.is_empty() {
            return Ok(false);
        }
        // About three bytes a token; twice as many tokens, again and again, where they have less text.
        let mut tokens = SHORTEST + self.longest / 3;
        let mut first = ids.len().saturating_sub(tokens);
        while first > 0 && text(&ids[first..])?.len() < self.longest + UNSURE {
            tokens *= 2;
            first = ids.len().saturating_sub(tokens);
        }
        let text_from = |first: usize| text(&[&ids[first..], &[next]].concat());
        let found = self.ends(&text_from(first)?).is_some();
        Ok(found && (first == 0 || self.ends(&text_from(0)?).is_some()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::uniform;
    use super::*;
    use std::cell::Cell;

    fn stops(strings: &[&str]) -> Stops {
        Stops::new(strings.iter().map(|s| s.to_string()).collect()).unwrap()
    }

    /// Tokens of a byte-level vocabulary: characters whole and in parts, several at a time, and one without text.
    const PIECES: [&[u8]; 16] = [
        b"a",
        b"b",
        b"ab",
        b" a",
        b"\n",
        b"\n\n",
        b"",
        b" ",
        &[0xC3],
        &[0xA9],
        &[0xF0, 0x9F],
        &[0x98, 0x80],
        &[0x98],
        &[0x80],
        b".",
        b"                                        ba",
    ];

    type Decode = fn(&[u32]) -> Result<String>;

    fn bytes(ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|&id| PIECES[id as usize].iter().copied()).collect()
    }

    fn byte_level(ids: &[u32]) -> Result<String> {
        Ok(String::from_utf8_lossy(&bytes(ids)).into_owned())
    }

    /// As SentencePiece does it: a U+FFFD for every byte of what is no character, no blank at the front.
    fn sentence_piece(ids: &[u32]) -> Result<String> {
        let text: String = bytes(ids)
            .utf8_chunks()
            .flat_map(|c| c.valid().chars().chain(c.invalid().iter().map(|_| '\u{FFFD}')))
            .collect();
        Ok(text.strip_prefix(' ').unwrap_or(&text).to_string())
    }

    /// With blanks cleaned up.
    fn cleaned(ids: &[u32]) -> Result<String> {
        Ok(byte_level(ids)?.replace(" .", "."))
    }

    #[test]
    fn an_output_ends_with_the_first_token_that_completes_a_stop_string_in_its_text() {
        let decoders: [Decode; 3] = [byte_level, sentence_piece, cleaned];
        let lists: [&[&str]; 10] = [
            &["\n\n"],
            &["aba"],
            &["a\nb", "ab ab", "bbb"],
            &["é"],
            &["😀", "éa"],
            &["a😀b"],
            &["a😀", "b😀"],
            &[" a b"],
            &["b.", "a."],
            &["abababababababab", "                    b"],
        ];
        let mut ended = 0;
        for (d, decode) in decoders.iter().enumerate() {
            for (l, strings) in lists.iter().enumerate() {
                let stops = stops(strings);
                for run in 0..100 {
                    // Some runs keep to few tokens, so that long stop strings come about, or much without text.
                    let kinds = [16, 3, 6, 14][run % 4];
                    let draw = |i| (uniform(1, (100 * (10 * d + l) + run) as u64, i) * f64::from(kinds)) as u32;
                    let token = |i| if run % 5 == 4 && i % 50 > 9 { 6 } else { draw(i) };
                    let mut ids = Vec::new();
                    for i in 0..120 {
                        let reached = stops.reached(&ids, token(i), decode).unwrap();
                        ids.push(token(i));
                        let text = decode(&ids).unwrap();
                        let first = strings.iter().any(|s| text.contains(s));
                        assert_eq!(reached, first, "{strings:?} in {text:?}");
                        if first {
                            ended += 1;
                            let cut = stops.cut(&text);
                            assert!(text.starts_with(cut) && strings.iter().all(|s| !cut.contains(s)));
                            assert!(strings.iter().any(|s| text[cut.len()..].starts_with(s)));
                            break;
                        }
                    }
                }
            }
        }
        assert!(ended > 500, "{ended} outputs ended");
    }

    #[test]
    fn a_tail_of_a_long_output_is_enough() {
        let stops = stops(&["\n\nQuestion:", "\n\nAnswer:"]);
        let (ids, decoded) = (vec![2; 100_000], Cell::new(0));
        let text = |ids: &[u32]| {
            decoded.set(decoded.get() + ids.len());
            byte_level(ids)
        };
        assert!(!stops.reached(&ids, 0, text).unwrap());
        assert!(decoded.get() < 150, "{} ids made text", decoded.get());
    }

    #[test]
    fn a_tail_that_begins_within_a_character_ends_nothing() {
        let stops = stops(&["\u{FFFD}b"]);
        for length in 0..100 {
            let ids = [vec![8, 9], vec![1; length]].concat();
            assert!(!stops.reached(&ids, 1, byte_level).unwrap(), "{length}");
        }
        assert!(stops.reached(&[1, 1, 8], 1, byte_level).unwrap());
    }

    #[test]
    fn no_stop_strings_decode_nothing_and_empty_ones_are_refused() {
        let never = |_: &[u32]| panic!("nothing to look for");
        assert!(!Stops::default().reached(&[1, 2], 3, never).unwrap());
        assert_eq!(Stops::default().cut("all of it"), "all of it");
        assert!(Stops::new(vec!["a".into(), String::new()]).is_err());
    }

    #[test]
    fn a_text_is_cut_before_the_stop_string_that_begins_first() {
        let stops = stops(&["abc", "b", "cab"]);
        assert_eq!(stops.cut("xxcabc"), "xx");
        assert_eq!(stops.cut("é\nabc"), "é\n");
        assert_eq!((stops.ends("xyz"), stops.ends("b")), (None, Some(0)));
    }
}
