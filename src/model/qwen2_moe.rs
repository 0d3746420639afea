//! Qwen1.5-MoE and Qwen2-MoE (`Qwen2MoeForCausalLM`; Yang et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, Shared, Spec};
use super::{decoder, Architecture};
use crate::moe::gate::Rule;
use anyhow::{ensure, Result};
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "qwen2_moe",
    eps: 1e-6,
    theta: 1e4,
    experts: &["num_experts", "num_local_experts"],
    width: "moe_intermediate_size",
};

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// Names the key that is missing, absurd, or set to what is not computed here.
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    decoder::architecture(config, path, spec)
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec> {
    config.off("use_sliding_window")?;
    let attention = Grouped {
        qkv_bias: config.switch_or("qkv_bias", true)?,
        ..config.grouped()?
    };
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(attention))?;
    let sliding = config.sliding_layers(spec.layers.len())?;
    ensure!(
        sliding.is_none_or(|sliding| !sliding.contains(&true)),
        config.fields.refuse("layer_types", "\"full_attention\" for all")
    );
    spec.make_dense(
        &config.qwen_dense(spec.layers.len())?,
        config.width("intermediate_size")?,
    );
    spec.moe.rule = Rule::Softmax {
        top_k: spec.moe.rule.top_k(),
        groups: None,
        renormalise: config.switch_or("norm_topk_prob", false)?,
        factor: 1.0,
    };
    spec.moe.shared = Some(Shared {
        width: config.width("shared_expert_intermediate_size")?,
        name: "mlp.shared_expert",
        gate: Some("mlp.shared_expert_gate"),
    });
    Ok(spec)
}
