//! Phi-3.5-MoE (`PhimoeForCausalLM`; Abdin et al. 2024), for texts up to the positions before its extension.

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, NormKind, Spec};
use super::{decoder, mixtral, Architecture};
use crate::moe::gate::Rule;
use anyhow::{ensure, Result};
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "phimoe",
    eps: 1e-5,
    theta: 1e4,
    experts: &["num_local_experts", "num_experts"],
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
    let bias = config.switch_or("attention_bias", false)?;
    let attention = Grouped {
        qkv_bias: bias,
        out_bias: bias,
        ..config.grouped()?
    };
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(attention))?;
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
    let window = config.sliding_window()?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}
