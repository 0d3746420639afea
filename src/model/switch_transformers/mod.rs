//! Switch Transformers (google/switch-base-8 and its like; `SwitchTransformersForConditionalGeneration`; Fedus et al. 2022):
//! T5 with top-1 mixtures of experts in place of some feed-forward layers. Reference: transformers 5.23.

mod config;

pub use config::SwitchTransformersConfig;

use super::encoder_decoder::spec::Sublayer;
use super::encoder_decoder::{EncoderDecoderArchitecture, Names};
use super::Architecture;
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

/// `model_type` in `config.json`.
pub const FAMILY: &str = "switch_transformers";

const NAMES: Names = Names {
    embedding: "shared",
    root: "",
    layers: "block",
    final_norm: "final_layer_norm",
    own: Sublayer {
        module: "layer.0.SelfAttention",
        norm: "layer.0.layer_norm",
    },
    cross: Sublayer {
        module: "layer.1.EncDecAttention",
        norm: "layer.1.layer_norm",
    },
    projections: ["q", "k", "v", "o"],
    feed_forward: [
        Sublayer {
            module: "layer.1.mlp",
            norm: "layer.1.layer_norm",
        },
        Sublayer {
            module: "layer.2.mlp",
            norm: "layer.2.layer_norm",
        },
    ],
    products: ["wi", "wo"],
    router: "router.classifier",
    expert: "experts.expert_",
    // T5's own checkpoints hold one; no attention to the source adds a bias.
    unused: &["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
};

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// As [`SwitchTransformersConfig::from_json`].
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    let config = SwitchTransformersConfig::from_json(config, path)?;
    let warnings = config.drops_tokens().into_iter().collect();
    Ok(Box::new(EncoderDecoderArchitecture::new(
        config.spec(),
        config.special_tokens(),
        warnings,
    )))
}
