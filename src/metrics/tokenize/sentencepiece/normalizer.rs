//! How a sentencepiece model makes a text ready: characters mapped, white space put together and marked.

use super::file::Rules;

/// What stands for a space.
const SPACE: char = '\u{2581}';

/// The rules of a model.
pub struct Normalizer {
    rules: Rules,
    /// The trie of what is mapped, a double array.
    trie: Vec<u32>,
    /// Where the texts behind it begin in the map.
    texts: usize,
    /// Pieces that are never touched.
    whole: Vec<String>,
}

impl Normalizer {
    /// The rules of a model that leaves `whole` untouched.
    pub fn new(rules: Rules, mut whole: Vec<String>) -> Result<Normalizer, String> {
        whole.retain(|text| !text.is_empty());
        whole.sort_by_key(|text| std::cmp::Reverse(text.len()));
        let map = &rules.map;
        let (trie, texts) = match map.first_chunk() {
            None => (Vec::new(), map.len()),
            Some(&size) => {
                let size = u32::from_le_bytes(size) as usize;
                let trie = map.get(4..4 + size).filter(|_| size.is_multiple_of(4));
                let trie = trie.ok_or("its map of characters is cut off")?.chunks_exact(4);
                let unit = |unit: &[u8]| u32::from_le_bytes(unit.try_into().unwrap_or_default());
                (trie.map(unit).collect(), 4 + size)
            }
        };
        Ok(Normalizer {
            rules,
            trie,
            texts,
            whole,
        })
    }

    /// The text as it is cut into pieces.
    pub fn normalize(&self, mut text: &str) -> String {
        let Rules {
            dummy_prefix,
            single_spaces,
            escape_spaces,
            suffix,
            ..
        } = self.rules;
        while single_spaces && !text.is_empty() {
            let (length, mapped) = self.first(text);
            if mapped != b" " {
                break;
            }
            text = &text[length..];
        }
        let space = if escape_spaces { SPACE } else { ' ' };
        let mut made = Vec::with_capacity(text.len() * 2);
        let push = |made: &mut Vec<u8>| made.extend_from_slice(space.encode_utf8(&mut [0; 4]).as_bytes());
        if text.is_empty() {
            return String::new();
        }
        if dummy_prefix && !suffix {
            push(&mut made);
        }
        let mut after_space = single_spaces;
        while !text.is_empty() {
            let (length, mut mapped) = self.first(text);
            while let Some(rest) = mapped.strip_prefix(b" ").filter(|_| after_space) {
                mapped = rest;
            }
            for byte in mapped {
                match byte {
                    b' ' => push(&mut made),
                    byte => made.push(*byte),
                }
            }
            if let Some(last) = mapped.last() {
                after_space = single_spaces && *last == b' ';
            }
            text = &text[length..];
        }
        let mut made = String::from_utf8_lossy(&made).into_owned();
        if single_spaces {
            made.truncate(made.trim_end_matches(space).len());
        }
        if dummy_prefix && suffix {
            made.push(space);
        }
        made
    }

    /// Bytes of the piece at the beginning of a text that is never touched.
    pub fn whole(&self, text: &str) -> Option<usize> {
        self.whole
            .iter()
            .find(|whole| text.starts_with(*whole))
            .map(String::len)
    }

    /// How many bytes at the beginning of a text are mapped together, and to what.
    fn first<'a>(&'a self, text: &'a str) -> (usize, &'a [u8]) {
        if let Some(length) = self.whole(text) {
            return (length, &text.as_bytes()[..length]);
        }
        match self.longest(text) {
            Some((length, at)) => {
                let mapped = &self.rules.map[at..];
                let end = mapped.iter().position(|byte| *byte == 0).unwrap_or(mapped.len());
                (length, &mapped[..end])
            }
            None => {
                let length = text.chars().next().map_or(0, char::len_utf8);
                (length, &text.as_bytes()[..length])
            }
        }
    }

    /// The longest beginning that is mapped: its bytes, and where in the map its text begins.
    fn longest(&self, text: &str) -> Option<(usize, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.trie.first()?);
        let mut found = None;
        for (i, byte) in text.bytes().enumerate() {
            node ^= usize::from(byte);
            let Some(&unit) = self.trie.get(node) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            node ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let value = (self.trie.get(node)? & !(1 << 31)) as usize;
                let at = self.texts + value;
                found = (at <= self.rules.map.len() && text.is_char_boundary(i + 1))
                    .then_some((i + 1, at))
                    .or(found);
            }
        }
        found
    }
}
