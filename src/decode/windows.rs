//! How a text is cut into windows that a model scores one by one. Pure.

use std::ops::Range;

/// What stands before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// Nothing: the first token of a text, and of a window that shares none with the one before, is not scored.
    None,
    /// This token, before the first window; every token of the text is scored.
    Token(u32),
}

/// How long windows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Tokens that a window has at most.
    pub window: usize,
    /// Tokens from one window to the next, at most `window`: the rest is read again as context.
    pub stride: usize,
}

/// A part of a text that is read at once.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// Whether the prefix is read before it.
    pub prefix: bool,
    /// Tokens of the text that are read.
    pub read: Range<usize>,
    /// Tokens that are scored: each by what is read up to the one before it.
    pub scored: Range<usize>,
}

impl Window {
    /// Tokens that are read, the prefix included.
    pub fn tokens(&self) -> usize {
        self.prefix as usize + self.read.len()
    }

    /// Place among the tokens read of the one that scores token `t`.
    pub fn scores_at(&self, t: usize) -> usize {
        t + self.prefix as usize - self.read.start - 1
    }
}

/// The windows of a text of `tokens` tokens, in order. Every token is scored once, but for those that have nothing before
/// them.
///
/// Without a prefix windows begin at multiples of the stride and score what no earlier one has (as in Hugging Face's guide
/// to the perplexity of fixed-length models). With one they are lm-evaluation-harness's rolling windows: the first scores
/// `window` tokens behind the prefix, each later one the next `stride`, reading `window` tokens up to the last but one.
pub fn windows(tokens: usize, cut: Cut, prefix: Prefix) -> Windows {
    Windows {
        tokens,
        cut,
        prefix,
        begun: 0,
        done: 0,
    }
}

/// Whether a text of `tokens` tokens has a window.
pub fn any(tokens: usize, cut: Cut, prefix: Prefix) -> bool {
    match prefix {
        Prefix::None => tokens > 1 && cut.window > 1,
        Prefix::Token(_) => tokens > 0,
    }
}

/// Windows that are made as they are asked for: at a stride of 1 there are as many as tokens.
#[derive(Clone, Debug)]
pub struct Windows {
    tokens: usize,
    cut: Cut,
    prefix: Prefix,
    /// Windows before the next one, those that score nothing included.
    begun: usize,
    /// Tokens before those that the next one scores.
    done: usize,
}

impl Iterator for Windows {
    type Item = Window;

    fn next(&mut self) -> Option<Window> {
        while self.done < self.tokens {
            let next = self.cut_next();
            self.begun += 1;
            self.done = next.scored.end;
            if !next.scored.is_empty() {
                return Some(next);
            }
        }
        None
    }
}

impl Windows {
    fn cut_next(&self) -> Window {
        let (Cut { window, stride }, tokens, done) = (self.cut, self.tokens, self.done);
        match (self.prefix, done) {
            (Prefix::None, _) => {
                let first = self.begun * stride;
                let end = tokens.min(first + window);
                Window {
                    prefix: false,
                    read: first..end - 1,
                    scored: done.max(first + 1)..end,
                }
            }
            (Prefix::Token(_), 0) => {
                let end = tokens.min(window);
                Window {
                    prefix: true,
                    read: 0..end - 1,
                    scored: 0..end,
                }
            }
            (Prefix::Token(_), _) => {
                let end = tokens.min(done + stride);
                Window {
                    prefix: false,
                    read: (end - 1).saturating_sub(window)..end - 1,
                    scored: done..end,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(window: usize, stride: usize) -> Cut {
        Cut { window, stride }
    }

    /// Which windows score a token, and how many tokens of the text each of them has before it.
    fn context(all: &[Window], token: usize) -> Vec<usize> {
        let scoring = all.iter().filter(|w| w.scored.contains(&token));
        scoring.map(|w| token - w.read.start).collect()
    }

    #[test]
    fn every_token_with_something_before_it_is_scored_once() {
        for tokens in [0, 1, 2, 3, 7, 8, 9, 16, 17, 40] {
            for (window, stride) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 8), (8, 3), (8, 1), (64, 64)] {
                for prefix in [Prefix::None, Prefix::Token(5)] {
                    let all: Vec<Window> = windows(tokens, cut(window, stride), prefix).collect();
                    assert_eq!(any(tokens, cut(window, stride), prefix), !all.is_empty());
                    for t in 0..tokens {
                        let found = context(&all, t).len();
                        let first = prefix == Prefix::None && (t == 0 || window == stride && t % window == 0);
                        assert_eq!(
                            found, !first as usize,
                            "token {t} of {tokens}, {window}/{stride}, {prefix:?}"
                        );
                    }
                    for w in &all {
                        let most = window + (prefix != Prefix::None) as usize;
                        assert!(w.tokens() <= most && w.read.end <= tokens, "{w:?}");
                        for t in w.scored.clone() {
                            assert!(w.scores_at(t) < w.tokens(), "{w:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn windows_of_a_text_of_any_length_are_made_one_by_one() {
        let tokens = usize::MAX / 4;
        for prefix in [Prefix::None, Prefix::Token(5)] {
            let third = windows(tokens, cut(2048, 1), prefix).nth(2);
            assert_eq!(third.map(|w| w.scored.len()), Some(1));
            assert!(any(tokens, cut(2048, 1), prefix));
        }
        assert!(!any(tokens, cut(1, 1), Prefix::None));
    }

    #[test]
    fn windows_are_the_references() {
        let w = |prefix, read, scored| Window { prefix, read, scored };
        let all = |tokens, cut, prefix| windows(tokens, cut, prefix).collect::<Vec<_>>();
        // Hugging Face's guide: begin at multiples of the stride, score what is new.
        assert_eq!(
            all(10, cut(6, 3), Prefix::None),
            [w(false, 0..5, 1..6), w(false, 3..8, 6..9), w(false, 6..9, 9..10)]
        );
        assert_eq!(
            all(10, cut(4, 4), Prefix::None),
            [w(false, 0..3, 1..4), w(false, 4..7, 5..8), w(false, 8..9, 9..10)]
        );
        // lm-evaluation-harness, get_rolling_token_windows(range(10), prefix, max_seq_len=4, context_len=1).
        assert_eq!(
            all(10, cut(4, 4), Prefix::Token(1)),
            [w(true, 0..3, 0..4), w(false, 3..7, 4..8), w(false, 5..9, 8..10)]
        );
        // The same with context_len=3.
        assert_eq!(
            all(8, cut(5, 3), Prefix::Token(1)),
            [w(true, 0..4, 0..5), w(false, 2..7, 5..8)]
        );
    }
}
