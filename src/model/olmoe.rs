//! OLMoE (`OlmoeForCausalLM`; Muennighoff et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, QkNorm, Spec};
use super::{decoder, Architecture};
use crate::moe::gate::Rule;
use anyhow::{ensure, Result};
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "olmoe",
    eps: 1e-5,
    theta: 1e4,
    experts: &["num_experts", "num_local_experts"],
    width: "intermediate_size",
};

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// Names the key that is missing, absurd, or set to what is not computed here.
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    decoder::architecture(config, path, spec)
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec> {
    let clip = config.fields.number("clip_qkv")?;
    ensure!(
        clip.is_none_or(|clip| clip > 0.0),
        config.fields.refuse("clip_qkv", "a number above 0")
    );
    let bias = config.switch_or("attention_bias", false)?;
    let attention = Grouped {
        qkv_bias: bias,
        out_bias: bias,
        qk_norm: QkNorm::Whole,
        clip: clip.map(|clip| clip as f32),
        ..config.grouped()?
    };
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(attention))?;
    spec.moe.rule = Rule::Softmax {
        top_k: spec.moe.rule.top_k(),
        groups: None,
        renormalise: config.switch_or("norm_topk_prob", false)?,
        factor: 1.0,
    };
    Ok(spec)
}
