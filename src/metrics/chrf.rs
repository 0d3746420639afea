//! chrF and chrF++ over a corpus (Popović, 2015 and 2017), as sacreBLEU computes them: character n-grams up to 6 without
//! white space, beta 2, averaged over the orders that occur.

use super::ngram::{count, shared, Numbers};
use super::{case, same_length, version, words, References};

/// The longest character n-gram that is counted.
pub const CHAR_ORDER: usize = 6;

/// Recall weighs beta times as much as precision.
const BETA: f64 = 2.0;

/// ASCII punctuation that chrF++ splits off the end or the beginning of a word.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

/// A chrF score.
#[derive(Clone, Debug, PartialEq)]
pub struct Chrf {
    /// The score, 0 to 100.
    pub score: f64,
    /// Word order: 0 for chrF, 2 for chrF++.
    pub word_order: usize,
}

impl Chrf {
    /// sacreBLEU's name of the metric: `chrF2`, `chrF2++`.
    pub fn name(&self) -> String {
        format!("chrF{BETA}{}", "+".repeat(self.word_order))
    }
}

/// N-grams of one order: those of the system, of the reference, and in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Matches {
    hyp: u64,
    reference: u64,
    both: u64,
}

/// What chrF needs to know of segments: whole numbers that add up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChrfStats {
    word_order: usize,
    lowercase: bool,
    orders: Vec<Matches>,
    references: References,
}

impl Default for ChrfStats {
    fn default() -> Self {
        ChrfStats::chrf()
    }
}

impl ChrfStats {
    /// For chrF2: characters only.
    pub fn chrf() -> ChrfStats {
        ChrfStats::with_word_order(0)
    }

    /// For chrF2++: characters, words and pairs of words.
    pub fn chrf_plus_plus() -> ChrfStats {
        ChrfStats::with_word_order(2)
    }

    /// For chrF2 with word n-grams up to `word_order`.
    pub fn with_word_order(word_order: usize) -> ChrfStats {
        ChrfStats {
            word_order,
            lowercase: false,
            orders: vec![Matches::default(); CHAR_ORDER + word_order],
            references: References::None,
        }
    }

    /// The same with upper and lower case as one, if `lowercase`.
    pub fn lowercase(self, lowercase: bool) -> ChrfStats {
        ChrfStats { lowercase, ..self }
    }

    /// Adds a segment: the system's line and its references, of which the one that fits best counts.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        self.references.add(refs.len());
        let mut best: Option<(f64, Vec<Matches>)> = None;
        for orders in compare(&case(hyp, self.lowercase), refs, self) {
            let score = f_score(&orders);
            if best.as_ref().is_none_or(|(found, _)| score > *found) {
                best = Some((score, orders));
            }
        }
        if let Some((_, orders)) = best {
            add_up(&mut self.orders, &orders);
        }
    }

    /// Adds the segments of another of the same word order and case.
    ///
    /// # Errors
    /// The word orders or cases differ.
    pub fn merge(&mut self, other: &ChrfStats) -> anyhow::Result<()> {
        anyhow::ensure!(
            (self.word_order, self.lowercase) == (other.word_order, other.lowercase),
            "chrF of word order {}, lower case {} cannot be added to one of {}, {}",
            other.word_order,
            other.lowercase,
            self.word_order,
            self.lowercase
        );
        add_up(&mut self.orders, &other.orders);
        self.references.merge(&other.references);
        Ok(())
    }

    /// The score of all segments added.
    pub fn score(&self) -> Chrf {
        Chrf {
            score: f_score(&self.orders),
            word_order: self.word_order,
        }
    }

    /// sacreBLEU's signature of this score.
    pub fn signature(&self) -> String {
        let nrefs = self.references.signature();
        let case = if self.lowercase { "lc" } else { "mixed" };
        format!(
            "nrefs:{nrefs}|case:{case}|eff:yes|nc:{CHAR_ORDER}|nw:{}|space:no|{}",
            self.word_order,
            version()
        )
    }
}

/// chrF (word order 0) or chrF++ (2) of the lines `hyps` against the reference files `refs`: `refs[r][i]` is reference r
/// of line i.
///
/// # Errors
/// There is no reference, or one has another number of lines.
pub fn corpus_chrf(hyps: &[&str], refs: &[Vec<&str>], word_order: usize) -> anyhow::Result<Chrf> {
    same_length(hyps.len(), refs)?;
    let mut stats = ChrfStats::with_word_order(word_order);
    for (i, hyp) in hyps.iter().enumerate() {
        stats.add(hyp, &refs.iter().map(|r| r[i]).collect::<Vec<_>>());
    }
    Ok(stats.score())
}

/// What a line shares with each reference, `[references][orders]`.
fn compare(hyp: &str, refs: &[&str], options: &ChrfStats) -> Vec<Vec<Matches>> {
    let refs: Vec<_> = refs.iter().map(|r| case(r, options.lowercase)).collect();
    let texts: Vec<&str> = std::iter::once(hyp).chain(refs.iter().map(AsRef::as_ref)).collect();
    let mut found = vec![Vec::with_capacity(CHAR_ORDER + options.word_order); refs.len()];
    let mut numbers = Numbers::default();
    let chars = texts.iter().map(|text| numbers.of(words(text).flat_map(str::chars)));
    matches(&chars.collect::<Vec<_>>(), CHAR_ORDER, &mut found);
    let mut numbers = Numbers::default();
    let words = texts.iter().map(|text| numbers.of(words(text).flat_map(apart)));
    matches(&words.collect::<Vec<_>>(), options.word_order, &mut found);
    found
}

/// Adds to `found` what the first text shares with each of the others, order after order.
fn matches(texts: &[Vec<u32>], orders: usize, found: &mut [Vec<Matches>]) {
    let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    count(&slices, orders, |order, counts| {
        let of = |text: &[u32]| (text.len() + 1).saturating_sub(order) as u64;
        for (found, (text, counts_there)) in found.iter_mut().zip(slices.iter().zip(counts).skip(1)) {
            let reference = of(text);
            found.push(Matches {
                // The system's n-grams don't count where the reference has none of that order.
                hyp: if reference == 0 { 0 } else { of(slices[0]) },
                reference,
                both: shared(&counts[0], counts_there),
            });
        }
    });
}

/// A word with one punctuation mark split off its end or else its beginning: `(hi)` gives `(hi` and `)`.
fn apart(word: &str) -> impl Iterator<Item = &str> {
    let mut chars = word.chars();
    let (first, last) = (chars.next(), chars.next_back());
    let cut = match (first, last) {
        (Some(_), Some(last)) if PUNCTUATION.contains(last) => word.len() - last.len_utf8(),
        (Some(first), Some(_)) if PUNCTUATION.contains(first) => first.len_utf8(),
        _ => word.len(),
    };
    let (head, tail) = word.split_at(cut);
    [head, tail].into_iter().filter(|part| !part.is_empty())
}

fn add_up(sum: &mut [Matches], more: &[Matches]) {
    for (sum, more) in sum.iter_mut().zip(more) {
        sum.hyp += more.hyp;
        sum.reference += more.reference;
        sum.both += more.both;
    }
}

/// F-beta in percent of the precision and recall averaged over the orders that occur on both sides.
fn f_score(orders: &[Matches]) -> f64 {
    let (mut precision, mut recall, mut effective) = (0.0, 0.0, 0.0);
    for order in orders.iter().filter(|o| o.hyp > 0 && o.reference > 0) {
        precision += order.both as f64 / order.hyp as f64;
        recall += order.both as f64 / order.reference as f64;
        effective += 1.0;
    }
    if precision + recall == 0.0 {
        return 0.0;
    }
    precision /= effective;
    recall /= effective;
    let factor = BETA * BETA;
    100.0 * ((1.0 + factor) * precision * recall) / (factor * precision + recall)
}
