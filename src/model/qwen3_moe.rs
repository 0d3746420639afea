//! Qwen3-MoE (`Qwen3MoeForCausalLM`; Yang et al. 2025).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, QkNorm, Spec};
use super::{decoder, Architecture};
use crate::moe::gate::Rule;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "qwen3_moe",
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
    let bias = config.switch_or("attention_bias", false)?;
    let attention = Grouped {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: QkNorm::Heads,
        ..config.grouped()?
    };
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(attention))?;
    if config.switch_or("use_sliding_window", false)? {
        let window = config.sliding_window()?;
        spec.layers.iter_mut().for_each(|layer| layer.window = window);
    }
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
    Ok(spec)
}
