//! DeepSeek-V2, its Lite and Coder forms (`DeepseekV2ForCausalLM`; DeepSeek-AI 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Family, Spec};
use super::deepseek;
use crate::moe::gate::Rule;
use anyhow::{bail, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "deepseek_v2",
    eps: 1e-6,
    theta: 1e4,
    experts: "n_routed_experts",
    width: "moe_intermediate_size",
    attention: deepseek::latent,
    differs,
};

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    config.only("scoring_func", "softmax")?;
    config.off("mlp_bias")?;
    deepseek::rotate_latent(spec);
    let groups = match config.fields.text("topk_method")? {
        None | Some("greedy") => None,
        Some("group_limited_greedy") => deepseek::groups(config, spec, [1, 1], 1)?,
        _ => bail!(config
            .fields
            .refuse("topk_method", "\"greedy\" or \"group_limited_greedy\"")),
    };
    spec.moe.rule = Rule::Softmax {
        top_k: spec.moe.rule.top_k(),
        groups,
        // `norm_topk_prob` changes nothing in the reference.
        renormalise: false,
        factor: config.number_or("routed_scaling_factor", 1.0)? as f32,
    };
    deepseek::feed_forward(config, spec, 0)
}
