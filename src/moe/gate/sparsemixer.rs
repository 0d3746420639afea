//! SparseMixer's weights (Phi-3.5-MoE; Liu et al. 2023, "Sparse Backpropagation for MoE Training", as run without noise).

use super::sum_of_exp;

/// Weights of the two `chosen` experts: each one's probability among the experts that are close to it, the first one not
/// counted for the second. They don't sum to one.
pub(super) fn weigh(logits: &[f32], chosen: &[u32], jitter: f32, weights: &mut [f32], scratch: &mut Vec<f32>) {
    for (j, weight) in weights.iter_mut().enumerate() {
        let most = logits[chosen[j] as usize];
        let close = logits.iter().zip(0..).map(|(&logit, e)| {
            // 0 / 0 where both are zero: close.
            let far = (most - logit) / logit.abs().max(most) > 2.0 * jitter;
            if far || chosen[..j].contains(&e) {
                f32::NEG_INFINITY
            } else {
                logit - most
            }
        });
        *weight = 1.0 / sum_of_exp(close, scratch);
    }
}
