//! Granite MoE (`GraniteMoeForCausalLM`; IBM 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, MoeNames, Spec, Storage};
use super::{decoder, Architecture};
use anyhow::{ensure, Result};
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "granitemoe",
    eps: 1e-6,
    theta: 1e4,
    experts: &["num_local_experts", "num_experts"],
    width: "intermediate_size",
};

const NAMES: MoeNames = MoeNames {
    module: "block_sparse_moe",
    router: "router.layer",
    storage: Storage::Stacked {
        names: ["input_linear.weight", "output_linear.weight"],
    },
};

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// Names the key that is missing, absurd, or set to what is not computed here.
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    decoder::architecture(config, path, spec)
}

pub(super) fn spec(config: &Config<'_>) -> Result<Spec> {
    let factor = |key: &str| {
        let factor = config.number_or(key, 1.0)?;
        ensure!(factor > 0.0, config.fields.refuse(key, "a number above 0"));
        Ok(factor as f32)
    };
    let bias = config.switch_or("attention_bias", false)?;
    let attention = Grouped {
        qkv_bias: bias,
        out_bias: bias,
        scale: factor("attention_multiplier")?,
        ..config.grouped()?
    };
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(attention))?;
    // Every branch is multiplied by `residual`. The residual stream is kept divided by it: a norm makes the same of it, if
    // what it adds to the variance is divided by the square.
    let residual = factor("residual_multiplier")?;
    spec.embedding_scale = factor("embedding_multiplier")? / residual;
    spec.eps /= residual * residual;
    spec.logits_scale = 1.0 / factor("logits_scaling")?;
    spec.moe.names = NAMES;
    Ok(spec)
}
