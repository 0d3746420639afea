//! Mixtral 8x7B, 8x22B and their like (`MixtralForCausalLM`; Jiang et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, MoeNames, Spec, Storage};
use super::{decoder, Architecture};
use anyhow::Result;
use serde_json::Value;
use std::path::Path;

const FAMILY: Family = Family {
    name: "mixtral",
    eps: 1e-5,
    theta: 1e6,
    experts: &["num_local_experts", "num_experts"],
    width: "intermediate_size",
};

/// Names of the experts' tensors.
pub(super) const NAMES: MoeNames = MoeNames {
    module: "block_sparse_moe",
    router: "gate",
    storage: Storage::Each {
        names: ["w1", "w3", "w2"],
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
    let mut spec = Spec::read(config, &FAMILY, Attention::Grouped(config.grouped()?))?;
    spec.moe.names = NAMES;
    let window = config.sliding_window()?;
    spec.layers.iter_mut().for_each(|layer| layer.window = window);
    Ok(spec)
}
