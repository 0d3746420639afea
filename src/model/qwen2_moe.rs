//! Qwen1.5-MoE and Qwen2-MoE (`Qwen2MoeForCausalLM`; Yang et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, Shared, Spec};
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "qwen2_moe",
    eps: 1e-6,
    theta: 1e4,
    experts: "num_experts",
    width: "moe_intermediate_size",
    attention,
    differs,
};

fn attention(config: &Config<'_>) -> Result<Attention> {
    Ok(Attention::Grouped(Grouped {
        qkv_bias: config.switch_or("qkv_bias", true)?,
        ..config.grouped()?
    }))
}

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    config.off("use_sliding_window")?;
    let sliding = config.sliding_layers(spec.layers.len())?;
    ensure!(
        sliding.is_none_or(|sliding| !sliding.contains(&true)),
        config.fields.refuse("layer_types", "\"full_attention\" for all")
    );
    spec.make_dense(
        &config.qwen_dense(spec.layers.len())?,
        config.width("intermediate_size")?,
    );
    spec.moe.rule = config.softmax(spec.moe.rule.top_k())?;
    spec.moe.shared = Some(Shared {
        width: config.width("shared_expert_intermediate_size")?,
        name: "mlp.shared_expert",
        gate: Some("mlp.shared_expert_gate"),
    });
    Ok(())
}
