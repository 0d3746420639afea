//! Qwen3-MoE (`Qwen3MoeForCausalLM`; Yang et al. 2025).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, QkNorm, Spec};
use anyhow::Result;

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "qwen3_moe",
    eps: 1e-6,
    theta: 1e4,
    experts: "num_experts",
    width: "moe_intermediate_size",
    attention,
    differs,
};

fn attention(config: &Config<'_>) -> Result<Attention> {
    Ok(Attention::Grouped(Grouped {
        qk_norm: QkNorm::Heads,
        ..config.biased(false)?
    }))
}

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    if config.switch_or("use_sliding_window", false)? {
        spec.look_back(config.sliding_window()?);
    }
    spec.make_dense(
        &config.qwen_dense(spec.layers.len())?,
        config.width("intermediate_size")?,
    );
    spec.moe.rule = config.softmax(spec.moe.rule.top_k())?;
    Ok(())
}
