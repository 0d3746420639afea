//! OLMoE (`OlmoeForCausalLM`; Muennighoff et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, Grouped, QkNorm, Spec};
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "olmoe",
    eps: 1e-5,
    theta: 1e4,
    experts: "num_experts",
    width: "intermediate_size",
    attention,
    differs,
};

fn attention(config: &Config<'_>) -> Result<Attention> {
    let clip = config.fields.number("clip_qkv")?;
    ensure!(
        clip.is_none_or(|clip| clip > 0.0),
        config.fields.refuse("clip_qkv", "a number above 0")
    );
    Ok(Attention::Grouped(Grouped {
        qk_norm: QkNorm::Whole,
        clip: clip.map(|clip| clip as f32),
        ..config.biased(false)?
    }))
}

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    spec.moe.rule = config.softmax(spec.moe.rule.top_k())?;
    Ok(())
}
