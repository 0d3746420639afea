//! Encoder-decoder transformers: pre-norm blocks, feed-forward layers of two products with ReLU between them, some of them
//! mixtures of experts. A family is a [`Spec`]: what its tensors are called, and sizes.

mod attention;
mod embedding;
mod forward;
mod inventory;
mod load;
mod relative;
pub mod spec;

pub use spec::{Names, Spec, Stack};

use super::blocks::{Dense, Norm};
use super::cache::CacheType;
use super::inventory::Expected;
use super::{Architecture, Loading, Model, Shape, SpecialTokens};
use crate::checkpoint::Checkpoint;
use crate::device::{Dtype, KeyRows, Linear};
use crate::moe::buffer::source::ExpertSource;
use crate::moe::layer::{MoeBuffers, MoeLayer};
use anyhow::Result;
use attention::Attention;
use embedding::Embedding;
use relative::RelativeBias;
use std::sync::Arc;

/// A family's configuration as jobs see it.
pub struct EncoderDecoderArchitecture {
    shape: Shape,
    special: SpecialTokens,
    warnings: Vec<String>,
    spec: Spec,
}

impl EncoderDecoderArchitecture {
    /// What `spec` describes; `warnings` are told before a run.
    pub fn new(spec: Spec, special: SpecialTokens, warnings: Vec<String>) -> EncoderDecoderArchitecture {
        EncoderDecoderArchitecture {
            shape: spec.shape(),
            special,
            warnings,
            spec,
        }
    }
}

impl Architecture for EncoderDecoderArchitecture {
    fn family(&self) -> &'static str {
        self.spec.family
    }

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    fn inventory(&self, _: &dyn Fn(&str) -> bool) -> Vec<Expected> {
        self.spec.inventory()
    }

    fn surplus(&self, tensor: &str) -> Option<String> {
        self.spec.surplus(tensor)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }

    fn load(&self, loading: Loading<'_>) -> Result<Box<dyn Model>> {
        Ok(Box::new(EncoderDecoder::load(&self.spec, loading)?))
    }

    fn experts(&self, checkpoint: &Arc<Checkpoint>, dtype: Dtype, threads: usize) -> Arc<dyn ExpertSource> {
        Arc::new(load::Experts::new(&self.spec, checkpoint, dtype, threads))
    }
}

/// The model: all dense weights, and this rank's shard of every layer's experts.
struct EncoderDecoder {
    shape: Shape,
    cache_type: CacheType,
    embedding: Embedding,
    encoder: Half,
    decoder: Half,
    /// Of each decoder layer.
    cross: Vec<CrossAttention>,
    buffers: Buffers,
}

/// The layers of encoder or decoder, the decoder's attention to the source aside.
struct Half {
    layers: Vec<Layer>,
    norm: Norm,
    /// What all layers add to the scores of their self-attention.
    bias: Option<RelativeBias>,
}

struct Layer {
    own: Attention,
    ffn_norm: Norm,
    ffn: FeedForward,
}

struct CrossAttention {
    attention: Attention,
    /// Keys and values of the source: `[2 * heads * head_dim, d_model]`.
    kv: Linear,
}

enum FeedForward {
    Dense(Box<Dense>),
    Sparse(Box<MoeLayer>),
}

/// Scratch rows of a step; they only grow.
#[derive(Default)]
struct Buffers {
    /// The residual stream, `[rows, d]`.
    x: Vec<f32>,
    /// Normalised rows; MoE layers append rows of other ranks.
    normed: Vec<f32>,
    /// Queries, or queries, keys and values side by side.
    projected: Vec<f32>,
    /// What attention gathered, `[rows, heads * head_dim]`.
    gathered: Vec<f32>,
    hidden: Vec<f32>,
    moe: MoeBuffers,
    /// Cache rows that are written.
    written: Vec<u32>,
    /// The place of each query among its keys.
    places: Vec<u32>,
    /// Key rows of each query, of its own tokens and of its source; empty between two calls.
    keys: Vec<KeyRows<'static>>,
    cross_keys: Vec<KeyRows<'static>>,
}

impl EncoderDecoder {
    fn weight_bytes(&self) -> u64 {
        let ffn = |f: &FeedForward| match f {
            FeedForward::Dense(d) => d.up.bytes() + d.down.bytes(),
            FeedForward::Sparse(m) => m.router.bytes() + m.experts.bytes(),
        };
        let layers = self.encoder.layers.iter().chain(&self.decoder.layers);
        let layers: usize = layers.map(|l| l.own.bytes() + ffn(&l.ffn)).sum();
        let cross: usize = self.cross.iter().map(|c| c.attention.bytes() + c.kv.bytes()).sum();
        (self.embedding.table.bytes() + layers + cross) as u64
    }
}
