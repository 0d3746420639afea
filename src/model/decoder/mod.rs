//! Decoder-only models: one skeleton for all families, described by a [`Spec`] that a family's file makes of its
//! `config.json`. docs/adding-a-model.md tells how to add one.

mod attention;
pub mod config;
mod experts;
mod forward;
pub mod inventory;
mod latent;
mod load;
pub mod rope;
pub mod spec;
#[cfg(test)]
mod tests;

use super::blocks::{Gated, Norm, Table};
use super::cache::CacheType;
use super::inventory::Expected;
use super::{Architecture, Loading, Model, Shape, SpecialTokens};
use crate::checkpoint::Checkpoint;
use crate::device::{Dtype, Linear, Rotary};
use crate::moe::buffer::source::ExpertSource;
use crate::moe::layer::{Expert, MoeLayer};
use anyhow::Result;
use config::Config;
use serde_json::Value;
use spec::{Family, Spec};
use std::path::Path;
use std::sync::Arc;

/// A family's model as jobs see it, by `config.json`, whose path is named in errors.
///
/// # Errors
/// Names the key that is missing, absurd, or set to what is not computed here.
pub fn architecture(config: &Value, path: &Path, family: &Family) -> Result<Box<dyn Architecture>> {
    let spec = Spec::read(&Config::new(config, path)?, family)?;
    Ok(Box::new(DecoderArchitecture {
        shape: spec.shape(),
        spec,
    }))
}

/// A decoder-only family as jobs see it.
struct DecoderArchitecture {
    spec: Spec,
    shape: Shape,
}

impl Architecture for DecoderArchitecture {
    fn family(&self) -> &'static str {
        self.spec.family
    }

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn special_tokens(&self) -> &SpecialTokens {
        &self.spec.special
    }

    fn inventory(&self, stored: &dyn Fn(&str) -> bool) -> Vec<Expected> {
        inventory::inventory(&self.spec, stored)
    }

    fn surplus(&self, tensor: &str) -> Option<String> {
        inventory::surplus(&self.spec, tensor)
    }

    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    fn load(&self, loading: Loading<'_>) -> Result<Box<dyn Model>> {
        Ok(Box::new(load::decoder(&self.spec, loading)?))
    }

    fn experts(&self, checkpoint: &Arc<Checkpoint>, dtype: Dtype, threads: usize) -> Arc<dyn ExpertSource> {
        Arc::new(experts::Experts::new(&self.spec, checkpoint, dtype, threads))
    }
}

/// The model: all dense weights, and this rank's shard of every layer's experts.
struct Decoder {
    shape: Shape,
    cache_type: CacheType,
    /// `[vocabulary, d_model]`; nothing where the head is the embedding.
    embedding: Option<Table>,
    embedding_scale: f32,
    layers: Vec<Layer>,
    norm: Norm,
    head: Linear,
    rotary: Rotary,
    buffers: forward::Buffers,
}

struct Layer {
    attention_norm: Norm,
    attention: SelfAttention,
    window: Option<usize>,
    ffn_norm: Norm,
    ffn: FeedForward,
}

enum SelfAttention {
    Grouped(Box<attention::GroupedAttention>),
    Latent(Box<latent::LatentAttention>),
}

enum FeedForward {
    Dense(Box<Gated>),
    Sparse(Box<MoeLayer>),
}

impl Decoder {
    fn weight_bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            let attention = match &layer.attention {
                SelfAttention::Grouped(a) => a.qkv.bytes() + a.out.bytes(),
                SelfAttention::Latent(a) => {
                    let heads = a.keys.iter().chain(&a.values).map(Linear::bytes).sum::<usize>();
                    let queries = a.q_nope.bytes() + a.q_rope.bytes();
                    let latent = a.q_latent.as_ref().map_or(0, |(down, _)| down.bytes());
                    heads + queries + latent + a.kv.bytes() + a.out.bytes()
                }
            };
            let ffn = match &layer.ffn {
                FeedForward::Dense(dense) => dense.bytes(),
                FeedForward::Sparse(moe) => {
                    let shared = moe.shared.as_ref().map(|s| &s.expert);
                    let expert = |e: &Expert| e.up.bytes() + e.down.bytes();
                    moe.router.bytes() + moe.experts.bytes() + shared.map_or(0, expert)
                }
            };
            attention + ffn
        };
        let embedding = self.embedding.as_ref().map_or(0, Table::bytes);
        (embedding + self.head.bytes() + self.layers.iter().map(layer).sum::<usize>()) as u64
    }
}
