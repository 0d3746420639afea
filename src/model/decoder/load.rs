//! Reading a decoder-only model: the dense weights and one rank's experts.

use super::attention::GroupedAttention;
use super::experts::{plain, Experts};
use super::inventory::{self, EMBEDDING, HEAD, NORM};
use super::latent::LatentAttention;
use super::spec::{Attention, Grouped, Latent, LayerSpec, MoeNames, NormKind, QkNorm, Spec};
use super::{forward, Decoder, FeedForward, Layer, SelfAttention};
use crate::device::{Epilogue, Linear, Part};
use crate::model::blocks::{source, Gated, Loader, Norm};
use crate::model::cache::CacheType;
use crate::model::Loading;
use crate::moe;
use crate::moe::buffer::source::resident;
use crate::moe::dispatch::Owners;
use crate::moe::gate::Rule;
use crate::moe::layer::{Expert, MoeLayer};
use crate::moe::shared::SharedExpert;
use anyhow::Result;
use std::sync::Arc;

/// Reads the model for one rank of a group.
struct Reader<'a> {
    load: Loader<'a>,
    spec: &'a Spec,
    names: MoeNames,
    experts: &'a Experts,
    rank: usize,
    ranks: usize,
    buffered: bool,
}

/// Reads the dense weights and this rank's experts from a checkpoint that has passed [`crate::model::open`].
///
/// # Errors
/// When a tensor cannot be read or holds a NaN: names file, tensor and place.
pub(super) fn decoder(spec: &Spec, loading: Loading<'_>) -> Result<Decoder> {
    let Loading {
        checkpoint,
        dtype,
        threads,
        rank,
        ranks,
        buffered,
        progress,
    } = loading;
    let load = Loader {
        checkpoint,
        dtype,
        threads,
    };
    let stored = |name: &str| checkpoint.info(name).is_some();
    let names = spec.moe_names(&stored);
    let reader = Reader {
        load,
        spec,
        names,
        experts: &Experts::new(spec, checkpoint, dtype, threads),
        rank,
        ranks,
        buffered,
    };
    let mut layers = Vec::new();
    for i in 0..spec.layers.len() {
        progress(i, spec.layers.len());
        layers.push(reader.layer(i)?);
    }
    moe::layer::link(layers.iter_mut().filter_map(|layer| match &mut layer.ffn {
        FeedForward::Sparse(moe) => Some(moe.as_mut()),
        FeedForward::Dense(_) => None,
    }));
    let mut norm = reader.norm(NORM)?;
    norm.scale(spec.logits_scale);
    let (rows, outputs) = (format!("{EMBEDDING}.weight"), format!("{HEAD}.weight"));
    let tied = match inventory::has_head(spec, &stored) {
        false => true,
        // A copy of the embedding is passed over.
        true => spec.tied && checkpoint.read(&rows)? == checkpoint.read(&outputs)?,
    };
    let (embedding, head) = match tied {
        true => (None, EMBEDDING),
        false => (Some(reader.load.table(&rows)?), HEAD),
    };
    Ok(Decoder {
        shape: spec.shape(),
        cache_type: CacheType::of(dtype),
        embedding,
        embedding_scale: spec.embedding_scale,
        layers,
        norm,
        head: reader.load.linear(&[head])?,
        rotary: spec.rope.rotary(),
        buffers: forward::Buffers::default(),
    })
}

impl Reader<'_> {
    fn norm(&self, name: &str) -> Result<Norm> {
        match self.spec.norm {
            NormKind::Rms => self.load.rms_norm(name, self.spec.eps),
            NormKind::Layer => self.load.norm(name, self.spec.eps),
        }
    }

    fn layer(&self, i: usize) -> Result<Layer> {
        let (name, LayerSpec { window, dense }) = (inventory::layer(i), self.spec.layers[i]);
        let attention = format!("{name}.self_attn");
        Ok(Layer {
            attention_norm: self.norm(&format!("{name}.input_layernorm"))?,
            attention: match &self.spec.attention {
                Attention::Grouped(spec) => SelfAttention::Grouped(Box::new(self.grouped(&attention, spec)?)),
                Attention::Latent(spec) => SelfAttention::Latent(Box::new(self.latent(&attention, spec)?)),
            },
            window,
            ffn_norm: self.norm(&format!("{name}.post_attention_layernorm"))?,
            ffn: match dense {
                Some(_) => FeedForward::Dense(Box::new(self.gated(&format!("{name}.mlp"))?)),
                None => FeedForward::Sparse(Box::new(self.sparse(i, &name)?)),
            },
        })
    }

    fn gated(&self, name: &str) -> Result<Gated> {
        let of = |part: &str| format!("{name}.{part}");
        let names = [of("gate_proj"), of("up_proj"), of("down_proj")];
        self.load
            .gated(names.each_ref().map(String::as_str), self.spec.moe.activation)
    }

    fn grouped(&self, name: &str, spec: &Grouped) -> Result<GroupedAttention> {
        let of = |part: &str| format!("{name}.{part}");
        let read = |part: &str| self.load.checkpoint.read_f32(&of(part));
        let norms = match spec.qk_norm {
            QkNorm::None => [Vec::new(), Vec::new()],
            QkNorm::Whole | QkNorm::Heads => [read("q_norm.weight")?, read("k_norm.weight")?],
        };
        Ok(GroupedAttention {
            spec: *spec,
            qkv: self.load.linear(&[&of("q_proj"), &of("k_proj"), &of("v_proj")])?,
            out: self.load.linear(&[&of("o_proj")])?,
            norms,
            sinks: spec.sinks.then(|| read("sinks")).transpose()?,
            eps: self.spec.eps,
        })
    }

    fn latent(&self, name: &str, spec: &Latent) -> Result<LatentAttention> {
        let of = |part: &str| format!("{name}.{part}");
        let read = |part: &str| self.load.checkpoint.read_f32(&of(part));
        let q_latent = match spec.q_lora {
            Some(_) => Some((self.load.linear(&[&of("q_a_proj")])?, read("q_a_layernorm.weight")?)),
            None => None,
        };
        let (q, inputs) = match spec.q_lora {
            Some(rank) => ("q_b_proj.weight", rank),
            None => ("q_proj.weight", self.spec.d_model),
        };
        let q = self.load.checkpoint.read(&of(q))?;
        let Latent {
            nope,
            rope,
            value,
            kv_lora,
            ..
        } = *spec;
        // A head's rows are those that are not rotated, then those that are.
        let rows = |first: usize, count: usize| -> Result<Linear> {
            let part = |head: usize| {
                let offset = (head * (nope + rope) + first) * inputs;
                plain(source(&q).strided(offset, [count, inputs], [inputs, 1]))
            };
            self.pack(inputs, &(0..spec.heads).map(part).collect::<Vec<_>>())
        };
        let kv = self.load.checkpoint.read(&of("kv_b_proj.weight"))?;
        let first = |head: usize| head * (nope + value) * kv_lora;
        let keys = |head: usize| {
            let transposed = source(&kv).strided(first(head), [kv_lora, nope], [1, kv_lora]);
            self.pack(nope, &[plain(transposed)])
        };
        let values = |head: usize| {
            let offset = first(head) + nope * kv_lora;
            let rows = source(&kv).strided(offset, [value, kv_lora], [kv_lora, 1]);
            self.pack(kv_lora, &[plain(rows)])
        };
        Ok(LatentAttention {
            spec: *spec,
            q_latent,
            q_nope: rows(0, nope)?,
            q_rope: rows(nope, rope)?,
            kv: self.load.linear(&[&of("kv_a_proj_with_mqa")])?,
            kv_norm: read("kv_a_layernorm.weight")?,
            keys: (0..spec.heads).map(keys).collect::<Result<_>>()?,
            values: (0..spec.heads).map(values).collect::<Result<_>>()?,
            out: self.load.linear(&[&of("o_proj")])?,
        })
    }

    fn sparse(&self, i: usize, layer: &str) -> Result<MoeLayer> {
        let (moe, load) = (&self.spec.moe, &self.load);
        let module = format!("{layer}.{}", self.names.module);
        let router = format!("{module}.{}", self.names.router);
        let rule = match moe.rule.clone() {
            Rule::Sigmoid {
                top_k,
                groups,
                renormalise,
                factor,
                ..
            } => Rule::Sigmoid {
                top_k,
                groups,
                bias: load.checkpoint.read_f32(&format!("{router}.e_score_correction_bias"))?,
                renormalise,
                factor,
            },
            rule => rule,
        };
        let shared = match moe.shared {
            None => None,
            Some(shared) => {
                let Gated { up, down, .. } = self.gated(&format!("{layer}.{}", shared.name))?;
                Some(SharedExpert {
                    expert: Expert { up, down },
                    gate: match shared.gate {
                        Some(gate) => Some(load.linear_f32(&format!("{layer}.{gate}"))?),
                        None => None,
                    },
                })
            }
        };
        let index = self.spec.sparse().take_while(|&sparse| sparse < i).count();
        let own = Owners::block(moe.experts, self.ranks, self.rank);
        Ok(MoeLayer {
            index,
            name: format!("layers.{i}"),
            rule,
            router: Arc::new(load.linear_f32(&router)?),
            next: None,
            experts: match self.buffered {
                true => moe::layer::Experts::Buffered(own.len()),
                false => {
                    moe::layer::Experts::Resident(own.map(|e| resident(self.experts, index, e)).collect::<Result<_>>()?)
                }
            },
            owners: Owners::blocks(moe.experts, self.ranks),
            dtype: load.dtype,
            scale: 1.0,
            epilogue: Epilogue::Gated(moe.activation),
            shared,
        })
    }

    fn pack(&self, inputs: usize, parts: &[Part<'_>]) -> Result<Linear> {
        Linear::pack_with(self.load.threads, inputs, parts, self.load.dtype)
    }
}
