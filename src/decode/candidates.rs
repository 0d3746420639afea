//! From a row of logits to the tokens that may come next (Hugging Face's logits processors).

use super::search::Settings;
use anyhow::{bail, Result};

/// A token that may come next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its id.
    pub token: u32,
    /// Its log-probability; 0 if it is forced.
    pub logprob: f32,
}

/// Tokens that may not follow `ids`, ascending, after those in `out`.
pub fn ruled_out(settings: &Settings, ids: &[u32], out: &mut Vec<u32>) {
    let first = out.len();
    if ids.len() < settings.min_length {
        out.extend_from_slice(&settings.eos);
    }
    out.extend(repeats(settings.no_repeat_ngram, ids));
    out[first..].sort_unstable();
}

/// Appends the best continuations of `ids` to `out`, best first: those that the head found (`best`, logit and token) as
/// log-probabilities, of which `log_sum` is the logarithm of all logits' exponentials, ruled out ones included. Where
/// fewer are left than asked for, ruled out tokens follow at -inf, as in the reference.
///
/// # Errors
/// When the logits hold a NaN.
pub fn candidates(
    settings: &Settings,
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
    match settings.forced_eos.filter(|_| ids.len() + 1 == settings.max_length) {
        Some(token) => out.push(Candidate { token, logprob: 0.0 }),
        None => out.extend(best.iter().map(|&(logit, token)| Candidate {
            token,
            logprob: logit - log_sum,
        })),
    }
    Ok(())
}

/// Tokens that would complete a sequence of `n` tokens for the second time.
fn repeats(n: usize, ids: &[u32]) -> impl Iterator<Item = u32> + '_ {
    let prefix = if n > 0 && ids.len() + 1 >= n {
        Some(&ids[ids.len() + 1 - n..])
    } else {
        None
    };
    let seen = ids.windows(n.max(1));
    seen.filter(move |w| prefix.is_some_and(|p| w[..n - 1] == *p))
        .map(move |w| w[n - 1])
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
        ruled_out(settings, ids, &mut tokens);
        assert!(tokens.is_sorted());
        tokens.iter().for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
        let (mut best, mut out) = (Vec::new(), Vec::new());
        let _ = top_k(logits, settings.candidates(), &mut best);
        super::candidates(settings, ids, log_sum, &best, &mut out)?;
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
        }
    }

    #[test]
    fn repeats_are_those_of_the_reference() {
        let banned = |n, ids: &[u32]| repeats(n, ids).collect::<Vec<_>>();
        assert_eq!(banned(0, &[1, 1, 1]), [0u32; 0]);
        assert_eq!(banned(1, &[5, 6]), [5, 6]);
        assert_eq!(banned(2, &[5, 6, 7, 5]), [6]);
        assert_eq!(banned(3, &[5, 6, 7, 5, 6]), [7]);
        assert_eq!(banned(3, &[5]), [0u32; 0]);
        assert_eq!(banned(3, &[5, 6]), [0u32; 0]);
        assert_eq!(banned(2, &[5, 5]), [5]);
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
