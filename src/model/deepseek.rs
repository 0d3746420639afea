//! DeepSeekMoE 16B (`DeepseekForCausalLM`; Dai et al. 2024), and what the later DeepSeek families share with it.

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Latent, Shared, Spec};
use crate::moe::gate::Groups;
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "deepseek",
    eps: 1e-6,
    theta: 1e4,
    experts: "n_routed_experts",
    width: "moe_intermediate_size",
    attention: |config| Ok(Attention::Grouped(config.biased(false)?)),
    differs,
};

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    config.only("scoring_func", "softmax")?;
    spec.moe.rule = config.softmax(spec.moe.rule.top_k())?;
    feed_forward(config, spec, 0)
}

/// Multi-head latent attention, but for what rotary positions make of its scale.
///
/// # Errors
/// If a number is missing or absurd.
pub(super) fn latent(config: &Config<'_>) -> Result<Attention> {
    let (nope, rope) = (config.width("qk_nope_head_dim")?, config.width("qk_rope_head_dim")?);
    ensure!(
        rope.is_multiple_of(2),
        config
            .fields
            .refuse("qk_rope_head_dim", "an even number: elements are rotated in pairs")
    );
    Ok(Attention::Latent(Latent {
        heads: config.width("num_attention_heads")?,
        q_lora: config.fields.whole("q_lora_rank", 1..=1 << 20)?,
        kv_lora: config.width("kv_lora_rank")?,
        nope,
        rope,
        value: config.width("v_head_dim")?,
        bias: config.switch_or("attention_bias", false)?,
        scale: ((nope + rope) as f32).powf(-0.5),
    }))
}

/// What latent attention makes of rotary positions, and they of its scale.
pub(super) fn rotate_latent(spec: &mut Spec) {
    spec.rope.interleaved = true;
    let factor = spec.rope.softmax_factor();
    if let Attention::Latent(latent) = &mut spec.attention {
        latent.scale *= factor;
    }
}

/// The first layers dense, and one feed-forward part as wide as all shared experts beside the others.
///
/// # Errors
/// If a number is absurd, or layers between the others are dense.
pub(super) fn feed_forward(config: &Config<'_>, spec: &mut Spec, first: usize) -> Result<()> {
    let key = "moe_layer_freq";
    ensure!(
        config.width_or(key, 1)? == 1,
        config.fields.refuse(key, "1: nothing else is supported")
    );
    let key = "first_k_dense_replace";
    let dense = config.fields.whole(key, 0..=1 << 12)?.unwrap_or(first);
    let dense: Vec<bool> = (0..spec.layers.len()).map(|i| i < dense).collect();
    if dense.contains(&true) {
        spec.make_dense(&dense, config.width("intermediate_size")?);
    }
    let shared = config.fields.whole("n_shared_experts", 0..=1 << 10)?.unwrap_or(0);
    spec.moe.shared = (shared > 0).then_some(Shared {
        width: shared * spec.moe.width,
        name: "mlp.shared_experts",
        gate: None,
    });
    Ok(())
}

/// Groups of experts, of which a token may choose from some only; none where all may be chosen from. The best `counted`
/// experts of a group decide.
///
/// # Errors
/// If they don't divide the experts, or the groups kept have fewer than a token goes to.
pub(super) fn groups(config: &Config<'_>, spec: &Spec, defaults: [usize; 2], counted: usize) -> Result<Option<Groups>> {
    let count = config.width_or("n_group", defaults[0])?;
    let kept = config.width_or("topk_group", defaults[1])?;
    let (experts, top_k) = (spec.moe.experts, spec.moe.rule.top_k());
    ensure!(
        experts.is_multiple_of(count) && experts / count >= counted,
        config.fields.refuse(
            "n_group",
            &format!("a number that divides the {experts} experts into groups of {counted} or more")
        )
    );
    ensure!(
        kept <= count && kept * (experts / count) >= top_k,
        config.fields.refuse(
            "topk_group",
            &format!("at most the {count} groups, with {top_k} experts together")
        )
    );
    Ok((kept < count).then_some(Groups { count, kept }))
}
