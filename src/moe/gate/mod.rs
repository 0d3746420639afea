//! The gate: from router logits to the experts of each token and their weights.
//!
//! A family's rule is a plain description. Experts are chosen by their logits or by what the rule makes of them, ties
//! going to the lower expert; weights are float32, summed in one order, so that a token's route is the same alone or
//! among a thousand.

mod choice;
mod sparsemixer;
#[cfg(test)]
mod tests;

use crate::device::{exp_slice, Cpu, NotANumber};
use anyhow::{bail, Result};
use choice::Choice;

/// Tokens that a thread routes at a time.
const BLOCK: usize = 64;

/// The experts chosen for a run of tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routes {
    /// Experts a token.
    pub top_k: usize,
    /// Chosen experts, the gate's first choice first, `[tokens, top_k]`.
    pub experts: Vec<u32>,
    /// Their weights, `[tokens, top_k]`.
    pub weights: Vec<f32>,
}

impl Routes {
    /// Tokens routed.
    pub fn tokens(&self) -> usize {
        self.experts.len() / self.top_k.max(1)
    }
}

/// Group-limited choice (DeepSeek-V2, section 2.1.3): experts lie in groups of equal size, one after another, and a token
/// may choose only from the best groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// Groups; divides the number of experts.
    pub count: usize,
    /// Groups that are kept for a token, of equal ones the lower; together they have at least `top_k` experts.
    pub kept: usize,
}

/// A family's routing rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Rule {
    /// The largest probabilities of a softmax over all experts.
    ///
    /// Renormalised: NLLB-MoE (`top_k` 2), Mixtral, Qwen3-MoE; GPT-OSS and Granite too, whose softmax over the chosen
    /// logits is the same. As they are: Switch (`top_k` 1), OLMoE, Qwen2-MoE, DeepSeek and DeepSeek-V2, the last with
    /// groups and a factor.
    Softmax {
        /// Experts a token.
        top_k: usize,
        /// A group counts as much as its best expert.
        groups: Option<Groups>,
        /// Whether the chosen weights are divided by their sum (`norm_topk_prob`).
        renormalise: bool,
        /// Factor on the weights (`routed_scaling_factor`).
        factor: f32,
    },
    /// DeepSeek-V3 (section 2.1.2): sigmoids of the logits; a bias moves the choice, but not the weights.
    Sigmoid {
        /// Experts a token.
        top_k: usize,
        /// A group counts as much as its two best experts together, bias included.
        groups: Option<Groups>,
        /// `e_score_correction_bias`, `[experts]`.
        bias: Vec<f32>,
        /// Whether the chosen weights are divided by their sum plus 1e-20 (`norm_topk_prob`).
        renormalise: bool,
        /// Factor on the weights (`routed_scaling_factor`).
        factor: f32,
    },
    /// Phi-3.5-MoE's SparseMixer, without its noise: two experts a token, each weighted by a softmax over the experts
    /// whose logits are close to its own.
    SparseMixer {
        /// Half the relative distance that counts as close (`router_jitter_noise`).
        jitter: f32,
    },
}

impl Rule {
    /// [`Rule::Softmax`] over all experts, renormalised.
    pub fn top(top_k: usize) -> Rule {
        Rule::Softmax {
            top_k,
            groups: None,
            renormalise: true,
            factor: 1.0,
        }
    }

    /// Experts a token.
    pub fn top_k(&self) -> usize {
        match *self {
            Rule::Softmax { top_k, .. } | Rule::Sigmoid { top_k, .. } => top_k,
            Rule::SparseMixer { .. } => 2,
        }
    }

    /// Chooses experts for each token from router logits `[tokens, experts]`, on the device's threads.
    ///
    /// # Errors
    /// When a token's logits hold a NaN, or infinities that leave no weights: no expert is the right one then. There are
    /// no routes then.
    pub fn route(&self, device: &Cpu, logits: &[f32], experts: usize, routes: &mut Routes) -> Result<()> {
        let k = self.top_k();
        let tokens = logits.len() / experts;
        routes.top_k = k;
        routes.experts.resize(tokens * k, 0);
        routes.weights.resize(tokens * k, 0.0);
        let chosen = routes.experts.chunks_mut(BLOCK * k);
        let weights = routes.weights.chunks_mut(BLOCK * k);
        let block = |((logits, experts), weights)| Block {
            logits,
            experts,
            weights,
            damage: None,
        };
        let blocks = logits.chunks(BLOCK * experts).zip(chosen).zip(weights);
        let mut blocks: Vec<Block> = blocks.map(block).collect();
        // About the choice of the best; exponentials take less.
        let nanoseconds = tokens as f64 * (2 * experts + 20 * k) as f64;
        device.for_each_of(&mut blocks, nanoseconds, |_, block| self.route_block(block, experts));
        if let Some((expert, logit)) = blocks.iter().find_map(|block| block.damage) {
            routes.experts.clear();
            routes.weights.clear();
            bail!("router logits hold {logit} (expert {expert}): the weights or the hidden states are damaged");
        }
        Ok(())
    }

    fn route_block(&self, block: &mut Block, experts: usize) {
        let (k, mut scratch) = (self.top_k(), Scratch::default());
        let chosen = block.experts.chunks_exact_mut(k);
        let rows = block.logits.chunks_exact(experts).zip(chosen);
        for ((logits, chosen), weights) in rows.zip(block.weights.chunks_exact_mut(k)) {
            let damaged = match self.choose(logits, chosen, weights, &mut scratch) {
                Err(NotANumber { index }) => index,
                // Only the largest logit can do that: infinite where it should not be, or where all are.
                Ok(()) if weights.iter().any(|w| !w.is_finite()) => chosen[0] as usize,
                Ok(()) => continue,
            };
            block.damage = Some((damaged, logits[damaged]));
            return;
        }
    }

    /// Routes one token.
    fn choose(
        &self,
        logits: &[f32],
        chosen: &mut [u32],
        weights: &mut [f32],
        scratch: &mut Scratch,
    ) -> Result<(), NotANumber> {
        match self {
            Rule::Softmax {
                groups,
                renormalise,
                factor,
                ..
            } => {
                // The larger logit is the larger probability, and the best expert is in the best group.
                scratch.choose(logits, *groups, 1, chosen)?;
                let most = logits[chosen[0] as usize];
                put(weights, chosen, |e| logits[e] - most);
                exp_slice(weights);
                let total = if *renormalise {
                    weights.iter().sum()
                } else {
                    sum_of_exp(logits.iter().map(|l| l - most), &mut scratch.scores)
                };
                weights.iter_mut().for_each(|w| *w = *w / total * factor);
            }
            Rule::Sigmoid {
                groups,
                bias,
                renormalise,
                factor,
                ..
            } => {
                let mut scores = std::mem::take(&mut scratch.scores);
                fill(&mut scores, logits.iter().map(|l| -l));
                exp_slice(&mut scores);
                scores.iter_mut().for_each(|s| *s = 1.0 / (1.0 + *s));
                let mut biased = std::mem::take(&mut scratch.biased);
                fill(&mut biased, scores.iter().zip(bias).map(|(s, b)| s + b));
                let found = scratch.choose(&biased, *groups, 2, chosen);
                (scratch.scores, scratch.biased) = (scores, biased);
                found?;
                put(weights, chosen, |e| scratch.scores[e]);
                let total = if *renormalise {
                    weights.iter().sum::<f32>() + 1e-20
                } else {
                    1.0
                };
                weights.iter_mut().for_each(|w| *w = *w / total * factor);
            }
            Rule::SparseMixer { jitter } => {
                scratch.choose(logits, None, 1, chosen)?;
                sparsemixer::weigh(logits, chosen, *jitter, weights, &mut scratch.scores);
            }
        }
        Ok(())
    }
}

/// Tokens that one thread routes.
struct Block<'a> {
    /// `[tokens, experts]`
    logits: &'a [f32],
    /// `[tokens, top_k]`
    experts: &'a mut [u32],
    /// `[tokens, top_k]`
    weights: &'a mut [f32],
    /// An expert whose logit leaves no choice, with that logit.
    damage: Option<(usize, f32)>,
}

/// What a thread needs for a token, kept from token to token.
#[derive(Default)]
struct Scratch {
    choice: Choice,
    scores: Vec<f32>,
    /// Scores with a bias.
    biased: Vec<f32>,
    /// Scores of the groups kept, `-inf` for the others.
    allowed: Vec<f32>,
    /// Of each group.
    worths: Vec<f32>,
    places: Vec<u32>,
}

impl Scratch {
    /// The experts with the largest `scores` `[experts]`, the largest first, from the best groups where there are some: a
    /// group is worth the sum of its `of` best scores.
    fn choose(
        &mut self,
        scores: &[f32],
        groups: Option<Groups>,
        of: usize,
        chosen: &mut [u32],
    ) -> Result<(), NotANumber> {
        match groups {
            Some(groups) if groups.kept < groups.count => {
                self.allow(scores, groups, of)?;
                self.choice.find(&self.allowed, chosen)
            }
            _ => self.choice.find(scores, chosen),
        }
    }

    fn allow(&mut self, scores: &[f32], groups: Groups, of: usize) -> Result<(), NotANumber> {
        let size = scores.len() / groups.count;
        self.places.resize(groups.kept.max(of), 0);
        self.worths.clear();
        for (g, group) in scores.chunks_exact(size).enumerate() {
            let best = &mut self.places[..of.min(size)];
            self.choice.find(group, best).map_err(|e| NotANumber {
                index: g * size + e.index,
            })?;
            self.worths.push(best.iter().map(|&e| group[e as usize]).sum());
        }
        let kept = &mut self.places[..groups.kept];
        self.choice.find(&self.worths, kept)?;
        self.allowed.clear();
        self.allowed.resize(scores.len(), f32::NEG_INFINITY);
        for &mut g in kept {
            let at = g as usize * size..(g as usize + 1) * size;
            self.allowed[at.clone()].copy_from_slice(&scores[at]);
        }
        Ok(())
    }
}

fn fill(to: &mut Vec<f32>, values: impl Iterator<Item = f32>) {
    to.clear();
    to.extend(values);
}

fn put(weights: &mut [f32], chosen: &[u32], weight: impl Fn(usize) -> f32) {
    weights
        .iter_mut()
        .zip(chosen)
        .for_each(|(w, &e)| *w = weight(e as usize));
}

/// The sum of exponentials over 16 lanes, `scratch` holding them.
fn sum_of_exp(values: impl Iterator<Item = f32>, scratch: &mut Vec<f32>) -> f32 {
    fill(scratch, values);
    exp_slice(scratch);
    let mut lanes = [0.0; 16];
    for piece in scratch.chunks(16) {
        lanes.iter_mut().zip(piece).for_each(|(sum, e)| *sum += e);
    }
    lanes.iter().sum()
}
