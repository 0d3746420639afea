//! From a row of logits to the tokens that may come next (Hugging Face's logits processors).

use super::search::{Bounds, Settings};
use anyhow::{bail, Result};

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its log-probability; 0 if it is forced.
    pub logprob: f32,
}

/// Tokens that may not follow `ids`, ascending, after those in `out`. `before` is what stands before the start token: a
/// decoder-only model's prompt without its last token. What it holds may not be repeated either, as in the reference.
pub fn ruled_out(settings: &Settings, bounds: &Bounds, before: &[u32], ids: &[u32], out: &mut Vec<u32>) {
    let first = out.len();
    if ids.len() < bounds.min_length {
        out.extend_from_slice(&settings.eos);
    }
    out.extend(repeats(settings.no_repeat_ngram, before, ids));
    out[first..].sort_unstable();
}

/// Appends the best continuations of `ids` to `out`, best first: those that the head found (`best`, logit and token) as
/// log-probabilities, or the one token that was drawn ([`super::sample::Drawn`]); of which `log_sum` is the logarithm of all logits' exponentials, ruled out ones included. Where
/// fewer are left than asked for, ruled out tokens follow at -inf, as in the reference.
///
/// # Errors
/// When the logits hold a NaN.
pub fn candidates(
    settings: &Settings,
    bounds: &Bounds,
    ids: &[u32],
    log_sum: f32,
    best: &[(f32, u32)],
    out: &mut Vec<Candidate>,
) -> Result<()> {
    if log_sum.is_nan() {
        bail!(
            "the logits after {} tokens hold a NaN: the weights or the hidden states are damaged",
            ids.len()
        );
    }
    match settings.forced_eos.filter(|_| ids.len() + 1 == bounds.max_length) {
        Some(token) => out.push(Candidate { token, logprob: 0.0 }),
        None => out.extend(best.iter().map(|&(logit, token)| Candidate {
            token,
            logprob: logit - log_sum,
        })),
    }
    Ok(())
}

/// Tokens behind `before` and `ids` that would complete a sequence of `n` tokens for the second time.
fn repeats<'a>(n: usize, before: &'a [u32], ids: &'a [u32]) -> impl Iterator<Item = u32> + 'a {
    let at = |i: usize| before.get(i).unwrap_or_else(|| &ids[i - before.len()]);
    // Where the sequence begins that the next token completes; n - 1 tokens of it are there.
    let last = (before.len() + ids.len() + 1).checked_sub(n).filter(|_| n > 0);
    let last = last.unwrap_or(0);
    let again = move |i: &usize| (0..n - 1).all(|j| at(i + j) == at(last + j));
    (0..last).filter(again).map(move |i| *at(i + n - 1))
}

#[cfg(test)]
mod tests {
    use super::super::search::EarlyStopping;
    use super::*;
    use crate::device::{log_sum_exp, top_k};

    /// From a whole row of logits, as the head does it in chunks.
    fn candidates(settings: &Settings, ids: &[u32], logits: &mut [f32]) -> Result<Vec<Candidate>> {
        let log_sum = log_sum_exp(logits);
        let mut tokens = Vec::new();
        let bounds = settings.bounds(None);
        ruled_out(settings, &bounds, &[], ids, &mut tokens);
        assert!(tokens.is_sorted());
        tokens.iter().for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
        let (mut best, mut out) = (Vec::new(), Vec::new());
        let _ = top_k(logits, settings.candidates(), &mut best);
        super::candidates(settings, &bounds, ids, log_sum, &best, &mut out)?;
        Ok(out)
    }

    fn settings() -> Settings {
        Settings {
            beams: 2,
            max_length: 20,
            min_length: 3,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            no_repeat_ngram: 0,
            forced_eos: Some(3),
            start: 0,
            eos: vec![1],
            sampling: None,
        }
    }

    #[test]
    fn repeats_are_those_of_the_reference() {
        let banned = |n, ids: &[u32]| repeats(n, &[], ids).collect::<Vec<_>>();
        assert_eq!(banned(0, &[1, 1, 1]), [0u32; 0]);
        assert_eq!(banned(1, &[5, 6]), [5, 6]);
        assert_eq!(banned(2, &[5, 6, 7, 5]), [6]);
        assert_eq!(banned(3, &[5, 6, 7, 5, 6]), [7]);
        assert_eq!(banned(3, &[5]), [0u32; 0]);
        assert_eq!(banned(3, &[5, 6]), [0u32; 0]);
        assert_eq!(banned(2, &[5, 5]), [5]);
    }

    #[test]
    fn repeats_of_a_prompt_are_those_of_the_whole() {
        let slowly = |n: usize, all: &[u32]| -> Vec<u32> {
            let again = |t: &u32| {
                let whole = [all, &[*t]].concat();
                n > 0 && whole.len() > n && all.windows(n).any(|w| *w == whole[whole.len() - n..])
            };
            (0..3).filter(again).collect()
        };
        let mut bans = 0;
        for pattern in 0..3u32.pow(7) {
            let all: Vec<u32> = (0..7).map(|i| pattern / 3u32.pow(i) % 3).collect();
            for (n, cut) in (0..9).flat_map(|n| (0..7).map(move |cut| (n, cut))) {
                let mut banned: Vec<u32> = repeats(n, &all[..cut], &all[cut..]).collect();
                banned.sort();
                banned.dedup();
                bans += banned.len();
                assert_eq!(banned, slowly(n, &all), "{n} {cut} {all:?}");
            }
        }
        assert!(bans > 10_000);
        let (s, mut out) = (
            Settings {
                no_repeat_ngram: 2,
                ..settings()
            },
            vec![9],
        );
        ruled_out(&s, &s.bounds(None), &[7, 8, 4, 6, 7], &[4], &mut out);
        assert_eq!(
            out,
            [9, 1, 6],
            "the end, as the output is too short, and what the prompt has behind a 4"
        );
    }

    #[test]
    fn an_output_has_bounds_of_its_own() {
        let s = settings();
        let bounds = Bounds {
            max_length: 4,
            min_length: 2,
            ..s.bounds(None)
        };
        let (mut out, mut offered) = (Vec::new(), Vec::new());
        ruled_out(&s, &bounds, &[], &[0, 2], &mut out);
        assert_eq!(out, [0u32; 0], "the job's least length is 3");
        super::candidates(&s, &bounds, &[0, 2, 2], 1.0, &[(0.5, 4)], &mut offered).unwrap();
        assert_eq!(
            offered,
            [Candidate { token: 3, logprob: 0.0 }],
            "forced at the output's own full length"
        );
    }

    #[test]
    fn the_end_waits_for_the_least_length_and_probabilities_stay() {
        let logits = [0.0, 9.0, 1.0, 2.0, 3.0];
        let get = |ids: &[u32]| candidates(&settings(), ids, &mut logits.clone()).unwrap();
        let early = get(&[0, 2]);
        assert_eq!(early.iter().map(|c| c.token).collect::<Vec<_>>()[..3], [4, 3, 2]);
        let late = get(&[0, 2, 3]);
        assert_eq!(late[0].token, 1);
        assert_eq!(late[1], early[0], "ruling out the end changes no other probability");
        let total: f32 = logits.iter().map(|x| x.exp()).sum::<f32>();
        assert!((late[1].logprob - (3.0 - total.ln())).abs() < 1e-5);
        let last = candidates(&settings(), &[0; 19], &mut logits.clone()).unwrap();
        assert_eq!(last, [Candidate { token: 3, logprob: 0.0 }], "forced at full length");
        assert_eq!(get(&[0; 18]).len(), 4);
        assert!(candidates(&settings(), &[0], &mut [0.0, f32::NAN, 1.0, 0.0, 2.0]).is_err());
    }
}
