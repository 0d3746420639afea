//! Phi-3.5-MoE (`PhimoeForCausalLM`; Abdin et al. 2024), for texts up to the positions before its extension.

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, NormKind, Spec};
use super::mixtral;
use crate::moe::gate::Rule;
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "phimoe",
    eps: 1e-5,
    theta: 1e6,
    experts: "num_local_experts",
    width: "intermediate_size",
    attention: |config| Ok(Attention::Grouped(config.biased(false)?)),
    differs,
};

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    ensure!(
        spec.moe.rule.top_k() == 2,
        config
            .fields
            .refuse("num_experts_per_tok", "2: nothing else is supported")
    );
    spec.moe.rule = Rule::SparseMixer {
        jitter: config.number_or("router_jitter_noise", 0.01)? as f32,
    };
    spec.moe.names = mixtral::NAMES;
    spec.norm = NormKind::Layer;
    spec.head_bias = config.switch_or("lm_head_bias", false)?;
    ensure!(
        !(spec.tied && spec.head_bias),
        config
            .fields
            .refuse("lm_head_bias", "false where `tie_word_embeddings` is true")
    );
    spec.look_back(config.sliding_window()?);
    Ok(())
}
