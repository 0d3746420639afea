//! A tiny checkpoint with random weights and the bundled tokenizer, whole or spoilt.

use crate::place::{bundled, Place};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};
use sluicegate::model::nllb_moe::NllbMoeConfig;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// An expert of the first sparse layer that only the last rank owns, and one of its tensors.
pub const LAST_EXPERT: &str = "model.encoder.layers.1.ffn.experts.expert_3";
pub const VICTIM: &str = "model.encoder.layers.1.ffn.experts.expert_3.fc1.weight";

/// Tensors by name: shape and float32 values.
pub struct SmallModel {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl SmallModel {
    pub fn new(experts: usize) -> SmallModel {
        let config = json!({
            "model_type": "nllb-moe", "d_model": 16, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20,
            "encoder_sparse_step": 2, "decoder_sparse_step": 2, "num_experts": experts, "vocab_size": 8256,
            "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "dtype": "float32",
        });
        SmallModel::of(config)
    }

    /// One whose experts, 2 layers of 16, take 128 MiB, and the rest little.
    pub fn of_experts() -> SmallModel {
        let mut config = SmallModel::new(2).config;
        for (key, value) in [
            ("d_model", 256),
            ("encoder_ffn_dim", 2048),
            ("decoder_ffn_dim", 2048),
            ("num_experts", 16),
        ] {
            config[key] = value.into();
        }
        SmallModel::of(config)
    }

    /// One of its changed config.
    pub fn again(&self) -> SmallModel {
        SmallModel::of(self.config.clone())
    }

    pub fn of(config: Value) -> SmallModel {
        let parsed = NllbMoeConfig::from_json(&config, Path::new("config.json")).expect("a sound config");
        let mut seed = 1u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        let tensors = parsed.spec().inventory().into_iter().map(|tensor| {
            let values = (0..tensor.elements()).map(|_| random()).collect();
            (tensor.name, (tensor.shape, values))
        });
        SmallModel {
            tensors: tensors.collect(),
            config,
        }
    }

    /// Writes it as one file.
    pub fn save(&self, place: &Place, name: &str) -> PathBuf {
        let dir = self.save_rest(place, name);
        fs::write(dir.join("model.safetensors"), self.bytes(|_| true)).expect("written");
        dir
    }

    /// Writes encoder and decoder as a shard each.
    pub fn save_sharded(&self, place: &Place, name: &str) -> PathBuf {
        let dir = self.save_rest(place, name);
        let of = |tensor: &str| shard(1 + usize::from(tensor.contains("decoder")));
        for i in [1, 2] {
            fs::write(dir.join(shard(i)), self.bytes(|tensor| of(tensor) == shard(i))).expect("written");
        }
        let map: BTreeMap<&String, String> = self.tensors.keys().map(|tensor| (tensor, of(tensor))).collect();
        let index = json!({"metadata": {}, "weight_map": map}).to_string();
        fs::write(dir.join("model.safetensors.index.json"), index).expect("written");
        dir
    }

    fn save_rest(&self, place: &Place, name: &str) -> PathBuf {
        let dir = place.path(name);
        fs::create_dir(&dir).expect("a folder");
        fs::write(dir.join("config.json"), self.config.to_string()).expect("written");
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(bundled("en-fr-de").join(file), dir.join(file)).expect("copied");
        }
        dir
    }

    fn bytes(&self, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let picked = self.tensors.iter().filter(|(name, _)| wanted(name));
        let raw: Vec<_> = picked
            .map(|(name, (shape, values))| {
                (
                    name,
                    shape,
                    values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>(),
                )
            })
            .collect();
        let views = raw.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("a sound tensor");
            (name.as_str(), view)
        });
        safetensors::serialize(views, None).expect("a sound file")
    }
}

/// The name of one of two shards.
pub fn shard(i: usize) -> String {
    format!("model-{i:05}-of-00002.safetensors")
}
