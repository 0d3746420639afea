//! NLLB-MoE (NLLB-200 54.5B and its like; `NllbMoeForConditionalGeneration`): an encoder-decoder whose every M-th
//! feed-forward layer is a top-2 mixture of experts. Reference: transformers 4.57 (5.x computes it wrongly).

mod config;

pub use config::NllbMoeConfig;

use super::encoder_decoder::spec::Sublayer;
use super::encoder_decoder::{EncoderDecoderArchitecture, Names};
use super::Architecture;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// `model_type` in `config.json`.
pub const FAMILY: &str = "nllb-moe";

const FEED_FORWARD: Sublayer = Sublayer {
    module: "ffn",
    norm: "ff_layer_norm",
};

const NAMES: Names = Names {
    embedding: "model.shared",
    root: "model.",
    layers: "layers",
    final_norm: "layer_norm",
    own: Sublayer {
        module: "self_attn",
        norm: "self_attn_layer_norm",
    },
    cross: Sublayer {
        module: "cross_attention",
        norm: "cross_attention_layer_norm",
    },
    projections: ["q_proj", "k_proj", "v_proj", "out_proj"],
    feed_forward: [FEED_FORWARD; 2],
    products: ["fc1", "fc2"],
    router: "router.classifier",
    expert: "experts.expert_",
    unused: &[],
};

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// As [`NllbMoeConfig::from_json`].
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    let config = NllbMoeConfig::from_json(config, path)?;
    let warnings = config.drops_tokens().into_iter().collect();
    Ok(Box::new(EncoderDecoderArchitecture::new(
        config.spec(),
        config.special_tokens(),
        warnings,
    )))
}
