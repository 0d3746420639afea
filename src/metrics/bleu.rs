//! BLEU over a corpus (Papineni et al., 2002), as sacreBLEU computes it: n-grams up to 4, and by default 13a tokens, mixed
//! case, exponential smoothing, no effective order.

use super::ngram::{count, Numbers};
use super::tokenize::Tokenizer;
use super::{case, same_length, version, words, yes_no, References};

/// The longest n-gram that is counted.
pub const MAX_ORDER: usize = 4;

/// How an order without a match counts (Chen and Cherry, 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Smoothing {
    /// The first such order as half a match, the next as a quarter, and so on: NIST's.
    #[default]
    Exp,
    /// As this many matches.
    Floor(f64),
    /// This much is added to matches and totals of every order but the first.
    AddK(f64),
    /// As no match: the score is 0.
    None,
}

impl Smoothing {
    /// sacreBLEU's value of `floor`.
    pub const FLOOR: f64 = 0.1;
    /// sacreBLEU's value of `add-k`.
    pub const ADD_K: f64 = 1.0;

    /// What a signature says after `smooth:`.
    fn signature(self) -> String {
        match self {
            Smoothing::Exp => "exp".to_owned(),
            Smoothing::Floor(value) => format!("floor[{value:.2}]"),
            Smoothing::AddK(value) => format!("add-k[{value:.2}]"),
            Smoothing::None => "none".to_owned(),
        }
    }
}

/// Which BLEU. The default is sacreBLEU's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BleuOptions {
    /// What tokens are.
    pub tokenizer: Tokenizer,
    /// Upper and lower case are the same.
    pub lowercase: bool,
    /// How an order without a match counts.
    pub smoothing: Smoothing,
    /// Orders for which the system has no n-gram don't count: for single sentences.
    pub effective_order: bool,
}

/// A BLEU score and what it is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Bleu {
    /// The score, 0 to 100.
    pub score: f64,
    /// N-grams of the system that a reference has too, `[order]`.
    pub counts: [u64; MAX_ORDER],
    /// N-grams of the system, `[order]`.
    pub totals: [u64; MAX_ORDER],
    /// Smoothed n-gram precisions in percent, `[order]`.
    pub precisions: [f64; MAX_ORDER],
    /// Brevity penalty, 0 to 1.
    pub bp: f64,
    /// `sys_len / ref_len`, or 0.
    pub ratio: f64,
    /// Tokens of the system.
    pub sys_len: u64,
    /// Tokens of the references, of each segment the one closest in length.
    pub ref_len: u64,
}

impl Bleu {
    /// The score's parts as sacreBLEU prints them.
    pub fn verbose(&self) -> String {
        let precisions = self.precisions.map(|p| format!("{p:.1}")).join("/");
        format!(
            "{precisions} (BP = {:.3} ratio = {:.3} hyp_len = {} ref_len = {})",
            self.bp, self.ratio, self.sys_len, self.ref_len
        )
    }
}

/// What BLEU needs to know of segments: whole numbers that add up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BleuStats {
    options: BleuOptions,
    correct: [u64; MAX_ORDER],
    total: [u64; MAX_ORDER],
    sys_len: u64,
    ref_len: u64,
    references: References,
}

impl BleuStats {
    /// For BLEU with these options; none of its segments yet.
    pub fn new(options: BleuOptions) -> BleuStats {
        BleuStats {
            options,
            ..BleuStats::default()
        }
    }

    /// Adds a segment: the system's line and its references.
    pub fn add(&mut self, hyp: &str, refs: &[&str]) {
        self.references.add(refs.len());
        let tokenize = |text: &str| self.options.tokenizer.tokenize(&case(text, self.options.lowercase));
        let hyp = tokenize(hyp);
        let refs: Vec<String> = refs.iter().map(|r| tokenize(r)).collect();
        let mut numbers = Numbers::default();
        let hyp = numbers.of(words(&hyp));
        let refs: Vec<Vec<u32>> = refs.iter().map(|r| numbers.of(words(r))).collect();
        self.sys_len += hyp.len() as u64;
        // Of two references equally close the shorter one counts.
        let closest = refs
            .iter()
            .map(Vec::len)
            .min_by_key(|len| (len.abs_diff(hyp.len()), *len));
        self.ref_len += closest.unwrap_or(0) as u64;
        let texts: Vec<&[u32]> = std::iter::once(&hyp).chain(&refs).map(Vec::as_slice).collect();
        count(&texts, MAX_ORDER, |order, counts| {
            let allowed = |ngram: usize| counts[1..].iter().map(|counts| counts[ngram]).max().unwrap_or(0);
            let correct = (0..).zip(&counts[0]).map(|(ngram, count)| *count.min(&allowed(ngram)));
            self.correct[order - 1] += correct.map(u64::from).sum::<u64>();
            self.total[order - 1] += (hyp.len() + 1).saturating_sub(order) as u64;
        });
    }

    /// Adds the segments of another with the same options.
    ///
    /// # Errors
    /// The options differ.
    pub fn merge(&mut self, other: &BleuStats) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.options == other.options,
            "BLEU with {:?} cannot be added to one with {:?}",
            other.options,
            self.options
        );
        for order in 0..MAX_ORDER {
            self.correct[order] += other.correct[order];
            self.total[order] += other.total[order];
        }
        self.sys_len += other.sys_len;
        self.ref_len += other.ref_len;
        self.references.merge(&other.references);
        Ok(())
    }

    /// The score of all segments added.
    pub fn score(&self) -> Bleu {
        let (sys, reference) = (self.sys_len as f64, self.ref_len as f64);
        let bp = match self.sys_len {
            sys_len if sys_len >= self.ref_len => 1.0,
            0 => 0.0,
            _ => (1.0 - reference / sys).exp(),
        };
        let (precisions, orders) = self.precisions();
        // An order without any n-gram, or no match at all, makes the score 0.
        let score = if precisions[..orders].contains(&0.0) {
            0.0
        } else {
            bp * (precisions[..orders].iter().map(|p| p.ln()).sum::<f64>() / orders as f64).exp()
        };
        let ratio = if self.ref_len > 0 { sys / reference } else { 0.0 };
        Bleu {
            score,
            counts: self.correct,
            totals: self.total,
            precisions,
            bp,
            ratio,
            sys_len: self.sys_len,
            ref_len: self.ref_len,
        }
    }

    /// Precisions in percent, and how many orders count.
    fn precisions(&self) -> ([f64; MAX_ORDER], usize) {
        let (mut precisions, mut orders) = ([0.0; MAX_ORDER], MAX_ORDER);
        if self.correct.iter().all(|c| *c == 0) {
            return (precisions, orders);
        }
        let mut halved = 1.0;
        for (i, precision) in precisions.iter_mut().enumerate() {
            let (mut correct, mut total) = (self.correct[i] as f64, self.total[i] as f64);
            if let (Smoothing::AddK(value), 1..) = (self.options.smoothing, i) {
                correct += value;
                total += value;
            }
            if total == 0.0 {
                break;
            }
            if self.options.effective_order {
                orders = i + 1;
            }
            *precision = match self.options.smoothing {
                _ if correct > 0.0 => 100.0 * correct / total,
                Smoothing::Exp => {
                    halved *= 2.0;
                    100.0 / (halved * total)
                }
                Smoothing::Floor(value) => 100.0 * value / total,
                Smoothing::AddK(_) | Smoothing::None => 0.0,
            };
        }
        (precisions, orders)
    }

    /// sacreBLEU's signature of this score.
    pub fn signature(&self) -> String {
        format!(
            "nrefs:{}|case:{}|eff:{}|tok:{}|smooth:{}|{}",
            self.references.signature(),
            if self.options.lowercase { "lc" } else { "mixed" },
            yes_no(self.options.effective_order),
            self.options.tokenizer.signature(),
            self.options.smoothing.signature(),
            version()
        )
    }
}

/// BLEU of the lines `hyps` against the reference files `refs`: `refs[r][i]` is reference r of line i.
///
/// # Errors
/// There is no reference, or one has another number of lines.
pub fn corpus_bleu(hyps: &[&str], refs: &[Vec<&str>]) -> anyhow::Result<Bleu> {
    same_length(hyps.len(), refs)?;
    let mut stats = BleuStats::default();
    for (i, hyp) in hyps.iter().enumerate() {
        stats.add(hyp, &refs.iter().map(|r| r[i]).collect::<Vec<_>>());
    }
    Ok(stats.score())
}
