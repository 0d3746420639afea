//! DeepSeek-V3 and R1 (`DeepseekV3ForCausalLM`; DeepSeek-AI 2024), without the layers that predict further tokens.

use super::decoder::config::Config;
use super::decoder::spec::{Family, Spec};
use super::deepseek;
use crate::moe::gate::Rule;
use anyhow::Result;

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "deepseek_v3",
    eps: 1e-6,
    theta: 1e4,
    experts: "n_routed_experts",
    width: "moe_intermediate_size",
    attention: deepseek::latent,
    differs,
};

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    config.only("scoring_func", "sigmoid")?;
    config.only("topk_method", "noaux_tc")?;
    deepseek::rotate_latent(spec);
    spec.rope.interleaved = config.switch_or("rope_interleave", true)?;
    spec.moe.rule = Rule::Sigmoid {
        top_k: spec.moe.rule.top_k(),
        groups: deepseek::groups(config, spec, [8, 4], 2)?,
        bias: Vec::new(),
        renormalise: config.switch_or("norm_topk_prob", true)?,
        factor: config.number_or("routed_scaling_factor", 2.5)? as f32,
    };
    deepseek::feed_forward(config, spec, 3)?;
    let key = if config.fields.value("num_mtp_layers").is_some() {
        "num_mtp_layers"
    } else {
        "num_nextn_predict_layers"
    };
    spec.further_layers = config.fields.whole(key, 0..=1 << 10)?.unwrap_or(1);
    Ok(())
}
