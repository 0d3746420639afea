//! NLLB-MoE (NLLB-200 54.5B and its like; `NllbMoeForConditionalGeneration`): an encoder-decoder whose every M-th
//! feed-forward layer is a top-2 mixture of experts. Reference: transformers 4.57 (5.x computes it wrongly).

pub mod config;
mod forward;
pub mod inventory;
pub mod names;

pub use config::NllbMoeConfig;

use super::blocks::{Dense, Loader, Norm, Sinusoids};
use super::cache::CacheType;
use super::inventory::Expected;
use super::{Architecture, Loading, Model, Shape, SpecialTokens};
use crate::device::Linear;
use crate::moe::dispatch::Owners;
use crate::moe::gate::Rule;
use crate::moe::layer::{Expert, MoeLayer};
use anyhow::Result;
use names::Stack;
use serde_json::Value;
use std::path::Path;

const EPS: f32 = 1e-5;

/// The model: all dense weights, and this rank's shard of every layer's experts.
pub struct NllbMoe {
    /// `config.json`
    pub config: NllbMoeConfig,
    /// `[vocabulary, d_model]`: embedding and output projection in one.
    embedding: Linear,
    encoder: Vec<EncoderLayer>,
    encoder_norm: Norm,
    decoder: Vec<DecoderLayer>,
    decoder_norm: Norm,
    positions: Sinusoids,
    cache_type: CacheType,
    shape: Shape,
    buffers: forward::Buffers,
}

struct EncoderLayer {
    attention_norm: Norm,
    /// Queries, keys, values: `[3 * d_model, d_model]`.
    qkv: Linear,
    out: Linear,
    ffn_norm: Norm,
    ffn: FeedForward,
}

struct DecoderLayer {
    self_norm: Norm,
    qkv: Linear,
    self_out: Linear,
    cross_norm: Norm,
    cross_q: Linear,
    /// Keys and values of the source: `[2 * d_model, d_model]`.
    cross_kv: Linear,
    cross_out: Linear,
    ffn_norm: Norm,
    ffn: FeedForward,
}

enum FeedForward {
    Dense(Dense),
    Sparse(MoeLayer),
}

/// Reads the model for one rank of a group.
struct Reader<'a> {
    load: Loader<'a>,
    config: &'a NllbMoeConfig,
    rank: usize,
    ranks: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

/// Reads and checks `config.json`, whose path is named in errors.
///
/// # Errors
/// As [`NllbMoeConfig::from_json`].
pub fn architecture(config: &Value, path: &Path) -> Result<Box<dyn Architecture>> {
    let config = NllbMoeConfig::from_json(config, path)?;
    Ok(Box::new(NllbMoeArchitecture {
        shape: config.shape(),
        special: config.special_tokens(),
        config,
    }))
}

/// NLLB-MoE as jobs see it.
struct NllbMoeArchitecture {
    config: NllbMoeConfig,
    shape: Shape,
    special: SpecialTokens,
}

impl Architecture for NllbMoeArchitecture {
    fn family(&self) -> &'static str {
        "nllb-moe"
    }

    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }

    fn inventory(&self, _: &dyn Fn(&str) -> bool) -> Vec<Expected> {
        inventory::inventory(&self.config)
    }

    fn surplus(&self, tensor: &str) -> Option<String> {
        inventory::surplus(tensor, &self.config)
    }

    fn warnings(&self) -> Vec<String> {
        self.config.drops_tokens().into_iter().collect()
    }

    fn load(&self, loading: Loading<'_>) -> Result<Box<dyn Model>> {
        Ok(Box::new(NllbMoe::load(&self.config, loading)?))
    }
}

impl NllbMoe {
    /// Reads the dense weights and this rank's experts from a checkpoint that has passed [`super::open`], and packs them.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds a NaN: names file, tensor and place.
    pub fn load(config: &NllbMoeConfig, loading: Loading<'_>) -> Result<NllbMoe> {
        let Loading {
            checkpoint,
            dtype,
            threads,
            rank,
            ranks,
            progress,
        } = loading;
        let load = Loader {
            checkpoint,
            dtype,
            threads,
        };
        let mut reader = Reader {
            load,
            config,
            rank,
            ranks,
            progress,
        };
        let encoder = (0..config.encoder_layers)
            .map(|i| reader.encoder_layer(i))
            .collect::<Result<_>>()?;
        let decoder = (0..config.decoder_layers)
            .map(|i| reader.decoder_layer(i))
            .collect::<Result<_>>()?;
        let load = &reader.load;
        Ok(NllbMoe {
            embedding: load.linear(&[names::EMBEDDING.trim_end_matches(".weight")])?,
            encoder,
            encoder_norm: load.norm(&names::final_norm(Stack::Encoder), EPS)?,
            decoder,
            decoder_norm: load.norm(&names::final_norm(Stack::Decoder), EPS)?,
            positions: Sinusoids::new(config.d_model),
            cache_type: CacheType::of(dtype),
            shape: config.shape(),
            buffers: forward::Buffers::default(),
            config: config.clone(),
        })
    }
}

impl NllbMoe {
    fn weight_bytes(&self) -> u64 {
        let ffn = |f: &FeedForward| match f {
            FeedForward::Dense(d) => d.up.bytes() + d.down.bytes(),
            FeedForward::Sparse(m) => {
                m.router.bytes() + m.experts.iter().map(|e| e.up.bytes() + e.down.bytes()).sum::<usize>()
            }
        };
        let encoder = self.encoder.iter().map(|l| l.qkv.bytes() + l.out.bytes() + ffn(&l.ffn));
        let decoder = self.decoder.iter().map(|l| {
            let cross = l.cross_q.bytes() + l.cross_kv.bytes() + l.cross_out.bytes();
            l.qkv.bytes() + l.self_out.bytes() + cross + ffn(&l.ffn)
        });
        (self.embedding.bytes() + encoder.sum::<usize>() + decoder.sum::<usize>()) as u64
    }
}

impl Reader<'_> {
    fn encoder_layer(&mut self, i: usize) -> Result<EncoderLayer> {
        (self.progress)(i, self.config.encoder_layers + self.config.decoder_layers);
        let name = names::encoder_layer(i);
        let attention = |part: &str| format!("{name}.self_attn.{part}");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(attention);
        Ok(EncoderLayer {
            attention_norm: self.load.norm(&format!("{name}.self_attn_layer_norm"), EPS)?,
            qkv: self.load.linear(&[&q, &k, &v])?,
            out: self.load.linear(&[&attention("out_proj")])?,
            ffn_norm: self.load.norm(&format!("{name}.ff_layer_norm"), EPS)?,
            ffn: self.feed_forward(Stack::Encoder, i, &name)?,
        })
    }

    fn decoder_layer(&mut self, i: usize) -> Result<DecoderLayer> {
        let (before, after) = (self.config.encoder_layers, self.config.decoder_layers);
        (self.progress)(before + i, before + after);
        let name = names::decoder_layer(i);
        let own = |part: &str| format!("{name}.self_attn.{part}");
        let cross = |part: &str| format!("{name}.cross_attention.{part}");
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(own);
        Ok(DecoderLayer {
            self_norm: self.load.norm(&format!("{name}.self_attn_layer_norm"), EPS)?,
            qkv: self.load.linear(&[&q, &k, &v])?,
            self_out: self.load.linear(&[&own("out_proj")])?,
            cross_norm: self.load.norm(&format!("{name}.cross_attention_layer_norm"), EPS)?,
            cross_q: self.load.linear(&[&cross("q_proj")])?,
            cross_kv: self.load.linear(&[&cross("k_proj"), &cross("v_proj")])?,
            cross_out: self.load.linear(&[&cross("out_proj")])?,
            ffn_norm: self.load.norm(&format!("{name}.ff_layer_norm"), EPS)?,
            ffn: self.feed_forward(Stack::Decoder, i, &name)?,
        })
    }

    fn feed_forward(&self, stack: Stack, i: usize, layer: &str) -> Result<FeedForward> {
        if !self.config.is_sparse(stack, i) {
            let (up, down) = self.load.feed_forward(&format!("{layer}.ffn"))?;
            return Ok(FeedForward::Dense(Dense { up, down }));
        }
        let index = self
            .config
            .moe_layers()
            .iter()
            .position(|&l| l == (stack, i))
            .expect("a sparse layer");
        let expert = |e| {
            let (up, down) = self.load.feed_forward(&names::expert(layer, e))?;
            Ok(Expert { up, down })
        };
        Ok(FeedForward::Sparse(MoeLayer {
            index,
            name: names::moe_layer(stack, i),
            rule: Rule::Top2,
            router: self.load.linear_f32(&names::router(layer))?,
            experts: Owners::block(self.config.num_experts, self.ranks, self.rank)
                .map(expert)
                .collect::<Result<_>>()?,
            owners: Owners::blocks(self.config.num_experts, self.ranks),
            dtype: self.load.dtype,
            scale: 1.0 - self.config.moe_token_dropout,
        }))
    }
}
