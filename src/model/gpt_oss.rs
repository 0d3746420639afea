//! GPT-OSS 20B and 120B (`GptOssForCausalLM`; OpenAI 2025).

use super::decoder::config::Config;
use super::decoder::rope::{Scaling, Yarn};
use super::decoder::spec::{Attention, Family, Grouped, MoeNames, Spec, Storage};
use crate::device::Activation;
use anyhow::{ensure, Result};

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "gpt_oss",
    eps: 1e-5,
    theta: 150_000.0,
    experts: "num_local_experts",
    width: "intermediate_size",
    attention,
    differs,
};

const NAMES: MoeNames = MoeNames {
    module: "mlp",
    router: "router",
    storage: Storage::Interleaved,
};

fn attention(config: &Config<'_>) -> Result<Attention> {
    Ok(Attention::Grouped(Grouped {
        sinks: true,
        ..config.biased(true)?
    }))
}

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    if ["rope_parameters", "rope_scaling"]
        .iter()
        .all(|key| config.fields.value(key).is_none())
    {
        spec.rope.scaling = Scaling::Yarn(Yarn {
            factor: 32.0,
            original: 4096,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: false,
            attention_factor: None,
            mscale: [0.0; 2],
        });
    }
    let window = config.sliding_window()?;
    let alternate = || (0..spec.layers.len()).map(|i| i.is_multiple_of(2)).collect();
    let sliding = config.sliding_layers(spec.layers.len())?.unwrap_or_else(alternate);
    ensure!(
        window.is_some() || !sliding.contains(&true),
        config.fields.refuse("sliding_window", "a whole number from 1")
    );
    for (layer, sliding) in spec.layers.iter_mut().zip(sliding) {
        layer.window = window.filter(|_| sliding);
    }
    let limit = config.number_or("swiglu_limit", 7.0)?;
    ensure!(limit > 0.0, config.fields.refuse("swiglu_limit", "a number above 0"));
    spec.moe.activation = Activation::ClampedSwish {
        alpha: config.number_or("swiglu_alpha", 1.702)? as f32,
        limit: limit as f32,
    };
    spec.moe.names = NAMES;
    Ok(())
}
