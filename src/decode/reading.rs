//! How sources are read ahead of decoding. Pure.

use std::ops::Range;

/// What becomes of a source.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Reading {
    /// It is encoded, into the cross caches.
    Encoder,
    /// But for its last token, it goes into the cache of the decoder's own tokens, behind this row; the last token is
    /// the start of its outputs.
    Prompt(usize),
}

impl Reading {
    /// Tokens of a source that are read ahead of decoding.
    pub fn ahead(self, ids: &[u32]) -> &[u32] {
        match self {
            Reading::Encoder => ids,
            Reading::Prompt(_) => &ids[..ids.len().saturating_sub(1)],
        }
    }

    /// Where the rows of a span begin.
    pub fn first(self, span: &Range<usize>) -> usize {
        match self {
            Reading::Encoder => span.start,
            Reading::Prompt(behind) => behind + span.start,
        }
    }

    /// How much of each source, in order, is read in one go of `most` tokens; `unread` is what is left of each. An encoder
    /// looks back and ahead, so it reads a sentence that it begins to its end; of a prompt a part will do.
    pub fn portion(self, unread: impl Iterator<Item = usize>, most: usize) -> Vec<usize> {
        let (mut parts, mut tokens) = (Vec::new(), 0);
        for left in unread {
            let part = match self {
                Reading::Encoder => left,
                Reading::Prompt(_) => left.min(most.saturating_sub(tokens)),
            };
            // What has nothing to be read needs no room.
            if left > 0 && tokens >= most {
                break;
            }
            parts.push(part);
            tokens += part;
            if part < left {
                break;
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn portion(reading: Reading, unread: &[usize], most: usize) -> Vec<usize> {
        reading.portion(unread.iter().copied(), most)
    }

    #[test]
    fn prompts_are_cut_and_sentences_are_not() {
        let unread = [3, 0, 4, 0, 5];
        for (most, prompts, sentences) in [
            (0, &[][..], &[][..]),
            (1, &[1], &[3, 0]),
            (3, &[3, 0], &[3, 0]),
            (5, &[3, 0, 2], &[3, 0, 4, 0]),
            (7, &[3, 0, 4, 0], &[3, 0, 4, 0]),
            (100, &unread, &unread),
        ] {
            assert_eq!(portion(Reading::Encoder, &unread, most), sentences, "{most}");
            assert_eq!(portion(Reading::Prompt(9), &unread, most), prompts, "{most}");
        }
        assert_eq!(portion(Reading::Prompt(0), &[0, 0], 0), [0, 0]);
    }
}
