//! A small model that tests spoil and write, and what must be said of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{json, Value};
use sluicegate::checkpoint::Checkpoint;
use sluicegate::model;
use sluicegate::model::nllb_moe::NllbMoeConfig;
use tempfile::TempDir;

pub const SINGLE: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";
/// An expert of the small model, and one of its tensors.
pub const EXPERT: &str = "model.encoder.layers.1.ffn.experts.expert_2";
pub const VICTIM: &str = "model.encoder.layers.1.ffn.experts.expert_2.fc1.weight";

/// A small model, to be spoilt and written.
pub struct Model {
    pub config: Value,
    pub tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Model {
    pub fn new() -> Model {
        let config = json!({
            "model_type": "nllb-moe", "d_model": 8, "encoder_layers": 2, "decoder_layers": 2,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12, "decoder_ffn_dim": 10,
            "encoder_sparse_step": 2, "decoder_sparse_step": 2, "num_experts": 4, "vocab_size": 20,
            "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0, "dtype": "float32",
        });
        let mut tensors = BTreeMap::new();
        for (seed, tensor) in parsed(&config).spec().inventory().into_iter().enumerate() {
            let values = (0..tensor.elements()).map(|i| (seed * 1000 + i) as f32 / 64.0);
            let bytes = values.flat_map(f32::to_le_bytes).collect();
            tensors.insert(tensor.name, (Dtype::F32, tensor.shape, bytes));
        }
        Model { config, tensors }
    }

    pub fn set(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.insert(name.to_string(), (dtype, shape.to_vec(), bytes));
    }

    pub fn copy(&mut self, from: &str, to: &str) {
        self.tensors.insert(to.to_string(), self.tensors[from].clone());
    }

    /// One file's bytes, of the tensors that `wanted` picks.
    pub fn bytes(&self, wanted: impl Fn(&str) -> bool) -> Vec<u8> {
        let picked = self.tensors.iter().filter(|(name, _)| wanted(name));
        let views = picked.map(|(name, (dtype, shape, bytes))| {
            (
                name.as_str(),
                TensorView::new(*dtype, shape.clone(), bytes).expect("a sound tensor"),
            )
        });
        safetensors::serialize(views, None).expect("a sound file")
    }

    pub fn save(&self) -> TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        fs::write(dir.path().join("config.json"), self.config.to_string()).expect("written");
        fs::write(dir.path().join(SINGLE), self.bytes(|_| true)).expect("written");
        dir
    }

    /// Encoder (with the embedding) and decoder in a shard each.
    pub fn save_sharded(&self) -> TempDir {
        let dir = self.save();
        fs::remove_file(dir.path().join(SINGLE)).expect("removed");
        for shard in [1, 2] {
            fs::write(
                dir.path().join(shard_name(shard)),
                self.bytes(|name| shard_of(name) == shard),
            )
            .expect("written");
        }
        self.index(dir.path(), |name| shard_name(shard_of(name)));
        dir
    }

    pub fn index(&self, dir: &Path, place: impl Fn(&str) -> String) {
        let map: BTreeMap<&String, String> = self.tensors.keys().map(|name| (name, place(name))).collect();
        fs::write(dir.join(INDEX), json!({"metadata": {}, "weight_map": map}).to_string()).expect("written");
    }
}

pub fn shard_of(name: &str) -> usize {
    1 + usize::from(name.contains("decoder"))
}

pub fn shard_name(shard: usize) -> String {
    format!("model-{shard:05}-of-00002.safetensors")
}

pub fn parsed(config: &Value) -> NllbMoeConfig {
    NllbMoeConfig::from_json(config, Path::new("config.json")).expect("a sound config")
}

/// Everything that a job looks at before work.
pub fn inspect(dir: &Path) -> anyhow::Result<std::sync::Arc<Checkpoint>> {
    Ok(model::open(dir)?.0)
}

/// The folder is refused before work, and the error says all of `words`.
#[track_caller]
pub fn refused(dir: &Path, words: &[&str]) {
    says(&inspect(dir).expect_err("refused"), words);
}

#[track_caller]
pub fn says(error: &anyhow::Error, words: &[&str]) {
    let error = format!("{error:#}");
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

pub fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
