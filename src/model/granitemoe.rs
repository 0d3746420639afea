//! Granite MoE (`GraniteMoeForCausalLM`; IBM 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, MoeNames, Spec, Storage};
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "granitemoe",
    eps: 1e-6,
    theta: 1e4,
    experts: "num_local_experts",
    width: "intermediate_size",
    attention,
    differs,
};

const NAMES: MoeNames = MoeNames {
    module: "block_sparse_moe",
    router: "router.layer",
    storage: Storage::Stacked {
        names: ["input_linear.weight", "output_linear.weight"],
    },
};

fn attention(config: &Config<'_>) -> Result<Attention> {
    Ok(Attention::Grouped(Grouped {
        scale: factor(config, "attention_multiplier")?,
        ..config.biased(false)?
    }))
}

fn factor(config: &Config<'_>, key: &str) -> Result<f32> {
    let factor = config.number_or(key, 1.0)?;
    ensure!(factor > 0.0, config.fields.refuse(key, "a number above 0"));
    Ok(factor as f32)
}

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    // Every branch is multiplied by `residual`. The residual stream is kept divided by it: a norm makes the same of it, if
    // what it adds to the variance is divided by the square.
    let residual = factor(config, "residual_multiplier")?;
    spec.embedding_scale = factor(config, "embedding_multiplier")? / residual;
    spec.eps /= residual * residual;
    spec.logits_scale = 1.0 / factor(config, "logits_scaling")?;
    spec.moe.names = NAMES;
    Ok(())
}
