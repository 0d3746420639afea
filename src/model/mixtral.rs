//! Mixtral 8x7B, 8x22B and their like (`MixtralForCausalLM`; Jiang et al. 2024).

use super::decoder::config::Config;
use super::decoder::spec::{Attention, Family, MoeNames, Spec, Storage};
use anyhow::Result;

/// What the family has otherwise than the skeleton.
pub const FAMILY: Family = Family {
    name: "mixtral",
    eps: 1e-5,
    theta: 1e6,
    experts: "num_local_experts",
    width: "intermediate_size",
    attention: |config| Ok(Attention::Grouped(config.grouped()?)),
    differs,
};

/// Names of the experts' tensors.
pub(super) const NAMES: MoeNames = MoeNames {
    module: "block_sparse_moe",
    router: "gate",
    storage: Storage::Each {
        names: ["w1", "w3", "w2"],
    },
};

fn differs(config: &Config<'_>, spec: &mut Spec) -> Result<()> {
    spec.moe.names = NAMES;
    spec.look_back(config.sliding_window()?);
    Ok(())
}
