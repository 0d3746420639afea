//! DeepSeek-V3 and R1 (`DeepseekV3ForCausalLM`; DeepSeek-AI 2024), without the layers that predict further tokens.

use super::decoder::config::Config;
use super::decoder::spec::{Family, Spec};
use super::{decoder, deepseek, Architecture};
use crate::moe::gate::Rule;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "deepseek_v3",
    eps: 1e-6,
    theta: 1e4,
    experts: &["n_routed_experts", "num_local_experts"],
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
    config.only("scoring_func", "sigmoid")?;
    config.only("topk_method", "noaux_tc")?;
    let mut spec = deepseek::with_latent(config, &FAMILY)?;
    spec.rope.interleaved = config.switch_or("rope_interleave", true)?;
    spec.moe.rule = Rule::Sigmoid {
        top_k: spec.moe.rule.top_k(),
        groups: deepseek::groups(config, &spec, [8, 4], 2)?,
        bias: Vec::new(),
        renormalise: config.switch_or("norm_topk_prob", true)?,
        factor: config.number_or("routed_scaling_factor", 2.5)? as f32,
    };
    deepseek::feed_forward(config, &mut spec, 3)?;
    let key = if config.fields.value("num_mtp_layers").is_some() {
        "num_mtp_layers"
    } else {
        "num_nextn_predict_layers"
    };
    spec.further_layers = config.fields.whole(key, 0..=1 << 10)?.unwrap_or(1);
    Ok(spec)
}
