//! What an NLLB-MoE computes (ARCHITECTURES: pre-norm, ReLU, biases everywhere, sinusoidal positions, tied embedding).

use super::{DecoderLayer, EncoderLayer, FeedForward, NllbMoe};
use crate::comm::crash::crash_point;
use crate::device::{Attend, Epilogue, KeyRows, Linear};
use crate::metrics::meter::Phase;
use crate::model::blocks::Norm;
use crate::model::cache::{Caches, DecodeRow, SourceRow};
use crate::model::EncoderDecoder;
use crate::moe::layer::{sized, MoeBuffers};
use crate::moe::Context;

/// The position of a sentence's first token in fairseq's numbering: padding index + 1.
const FIRST_POSITION: usize = 2;

/// Scratch rows of a step; they only grow.
#[derive(Default)]
pub(super) struct Buffers {
    /// The residual stream, `[rows, d]`.
    x: Vec<f32>,
    /// Normalised rows; MoE layers append rows of other ranks.
    normed: Vec<f32>,
    /// Queries, or queries, keys and values side by side.
    projected: Vec<f32>,
    /// What attention gathered, `[rows, d]`.
    gathered: Vec<f32>,
    hidden: Vec<f32>,
    moe: MoeBuffers,
}

impl EncoderDecoder for NllbMoe {
    fn d_model(&self) -> usize {
        self.config.d_model
    }

    fn decoder_layers(&self) -> usize {
        self.decoder.len()
    }

    fn moe_layers(&self) -> (Vec<String>, Vec<String>) {
        let names = |ffns: &mut dyn Iterator<Item = &FeedForward>| ffns.filter_map(FeedForward::moe_name).collect();
        (
            names(&mut self.encoder.iter().map(|l| &l.ffn)),
            names(&mut self.decoder.iter().map(|l| &l.ffn)),
        )
    }

    fn experts(&self) -> (usize, usize) {
        (self.config.num_experts, super::config::TOP_K)
    }

    fn head(&self) -> &Linear {
        &self.embedding
    }

    fn encode(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches) {
        let tokens: usize = sources.iter().map(|s| s.ids.len()).sum();
        let mut b = std::mem::take(&mut self.buffers);
        let x = sized(&mut b.x, tokens * self.config.d_model);
        let pad = self.config.pad_token_id;
        let numbered = |s: &SourceRow<'_>| positions(s.ids, pad);
        let flat: Vec<(u32, usize)> = sources.iter().flat_map(numbered).collect();
        self.embed(flat.into_iter(), x);
        let starts = sources
            .iter()
            .scan(0, |at, s| Some((std::mem::replace(at, *at + s.ids.len()), s.ids.len())));
        let rows: Vec<KeyRows> = starts
            .flat_map(|(at, n)| (0..n).map(move |_| KeyRows::Range(at, n)))
            .collect();
        ctx.meter.lap(Phase::Head);
        for layer in &self.encoder {
            crash_point("encoder-layer");
            self.encoder_layer(ctx, layer, &mut b, tokens, &rows);
        }
        self.store_cross(ctx, &mut b, tokens, sources, caches);
        self.buffers = b;
    }

    fn decode(&mut self, ctx: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32] {
        let d = self.config.d_model;
        let mut b = std::mem::take(&mut self.buffers);
        self.embed(
            rows.iter().map(|r| (r.token, r.position)),
            sized(&mut b.x, rows.len() * d),
        );
        let own: Vec<KeyRows> = rows.iter().map(|r| r.keys).collect();
        let cross: Vec<KeyRows> = rows.iter().map(|r| KeyRows::Range(r.source.0, r.source.1)).collect();
        ctx.meter.lap(Phase::Head);
        for (i, layer) in self.decoder.iter().enumerate() {
            crash_point("decoder-layer");
            self.self_attention(ctx, layer, &mut b, rows, &own, &mut caches.own[i]);
            self.cross_attention(ctx, layer, &mut b, &cross, &caches.cross[i]);
            layer.ffn.apply(ctx, &layer.ffn_norm, &mut b, rows.len(), d);
        }
        self.decoder_norm
            .apply(ctx.device, &b.x[..rows.len() * d], sized(&mut b.normed, rows.len() * d));
        ctx.meter.lap(Phase::Head);
        self.buffers = b;
        &self.buffers.normed[..rows.len() * d]
    }
}

/// A sentence's tokens with their positions: a padding token typed in the text takes none, as in the reference.
fn positions(ids: &[u32], pad: u32) -> Vec<(u32, usize)> {
    ids.iter()
        .scan(0, |next, &id| {
            Some((id, std::mem::replace(next, *next + (id != pad) as usize)))
        })
        .collect()
}

impl NllbMoe {
    /// Embedding times sqrt(d_model) plus position, for each (token, position in its sentence). The padding token has
    /// no position.
    fn embed(&mut self, tokens: impl Iterator<Item = (u32, usize)>, x: &mut [f32]) {
        let d = self.config.d_model;
        let scale = if self.config.scale_embedding {
            (d as f32).sqrt()
        } else {
            1.0
        };
        for ((id, position), row) in tokens.zip(x.chunks_exact_mut(d)) {
            self.embedding.embedding(id as usize, row);
            row.iter_mut().for_each(|x| *x *= scale);
            if id != self.config.pad_token_id {
                let sinusoid = self.positions.row(position + FIRST_POSITION);
                row.iter_mut().zip(sinusoid).for_each(|(x, p)| *x += p);
            }
        }
    }

    fn encoder_layer(&self, ctx: &mut Context, layer: &EncoderLayer, b: &mut Buffers, tokens: usize, rows: &[KeyRows]) {
        let (d, heads) = (self.config.d_model, self.config.encoder_attention_heads);
        let x = &mut b.x[..tokens * d];
        let normed = &mut sized(&mut b.normed, tokens * d)[..tokens * d];
        let (qkv, gathered) = (
            sized(&mut b.projected, tokens * 3 * d),
            sized(&mut b.gathered, tokens * d),
        );
        layer.attention_norm.apply(ctx.device, x, normed);
        ctx.device.linear(normed, &layer.qkv, Epilogue::Store, qkv);
        if tokens > 0 {
            let (k, v) = (&qkv[d..], &qkv[2 * d..]);
            let scale = ((d / heads) as f32).powf(-0.5);
            let (head_dim, q_stride, kv_stride) = (d / heads, 3 * d, 3 * d);
            ctx.device.attend(Attend {
                q: qkv,
                q_stride,
                k,
                v,
                kv_stride,
                heads,
                head_dim,
                scale,
                rows,
                out: gathered,
            });
        }
        ctx.device.linear(gathered, &layer.out, Epilogue::Add, x);
        ctx.meter.lap(Phase::Attention);
        layer.ffn.apply(ctx, &layer.ffn_norm, b, tokens, d);
    }

    /// The encoder's output, once for each sentence, as every decoder layer's cross keys and values.
    fn store_cross(
        &self,
        ctx: &mut Context,
        b: &mut Buffers,
        tokens: usize,
        sources: &[SourceRow],
        caches: &mut Caches,
    ) {
        let d = self.config.d_model;
        let normed = sized(&mut b.normed, tokens * d);
        self.encoder_norm.apply(ctx.device, &b.x[..tokens * d], normed);
        for (layer, cache) in self.decoder.iter().zip(&mut caches.cross) {
            let kv = sized(&mut b.projected, tokens * 2 * d);
            ctx.device.linear(normed, &layer.cross_kv, Epilogue::Store, kv);
            let mut at = 0;
            for s in sources {
                let bytes = s.ids.len() * 2 * d;
                cache[s.first * 2 * d..][..bytes].copy_from_slice(&kv[at..at + bytes]);
                at += bytes;
            }
        }
        ctx.meter.lap(Phase::Attention);
    }

    fn self_attention(
        &self,
        ctx: &mut Context,
        layer: &DecoderLayer,
        b: &mut Buffers,
        rows: &[DecodeRow],
        keys: &[KeyRows],
        cache: &mut [f32],
    ) {
        let (d, heads) = (self.config.d_model, self.config.decoder_attention_heads);
        let x = &mut b.x[..rows.len() * d];
        let normed = sized(&mut b.normed, rows.len() * d);
        let (qkv, gathered) = (
            sized(&mut b.projected, rows.len() * 3 * d),
            sized(&mut b.gathered, rows.len() * d),
        );
        layer.self_norm.apply(ctx.device, x, normed);
        ctx.device.linear(normed, &layer.qkv, Epilogue::Store, qkv);
        for (row, qkv) in rows.iter().zip(qkv.chunks_exact(3 * d)) {
            cache[row.row * 2 * d..][..2 * d].copy_from_slice(&qkv[d..]);
        }
        let (k, v) = (&*cache, &cache[d.min(cache.len())..]);
        let (scale, head_dim) = (((d / heads) as f32).powf(-0.5), d / heads);
        let (q_stride, kv_stride) = (3 * d, 2 * d);
        ctx.device.attend(Attend {
            q: qkv,
            q_stride,
            k,
            v,
            kv_stride,
            heads,
            head_dim,
            scale,
            rows: keys,
            out: gathered,
        });
        ctx.device.linear(gathered, &layer.self_out, Epilogue::Add, x);
        ctx.meter.lap(Phase::Attention);
    }

    fn cross_attention(
        &self,
        ctx: &mut Context,
        layer: &DecoderLayer,
        b: &mut Buffers,
        keys: &[KeyRows],
        cache: &[f32],
    ) {
        let (d, heads) = (self.config.d_model, self.config.decoder_attention_heads);
        let n = keys.len() * d;
        let x = &mut b.x[..n];
        let normed = sized(&mut b.normed, n);
        let (q, gathered) = (sized(&mut b.projected, n), sized(&mut b.gathered, n));
        layer.cross_norm.apply(ctx.device, x, normed);
        ctx.device.linear(normed, &layer.cross_q, Epilogue::Store, q);
        let (k, v) = (cache, &cache[d.min(cache.len())..]);
        let (scale, head_dim) = (((d / heads) as f32).powf(-0.5), d / heads);
        let (q_stride, kv_stride) = (d, 2 * d);
        ctx.device.attend(Attend {
            q,
            q_stride,
            k,
            v,
            kv_stride,
            heads,
            head_dim,
            scale,
            rows: keys,
            out: gathered,
        });
        ctx.device.linear(gathered, &layer.cross_out, Epilogue::Add, x);
        ctx.meter.lap(Phase::Attention);
    }
}

impl FeedForward {
    fn moe_name(&self) -> Option<String> {
        match self {
            FeedForward::Dense(_) => None,
            FeedForward::Sparse(moe) => Some(moe.name.clone()),
        }
    }

    fn apply(&self, ctx: &mut Context, norm: &Norm, b: &mut Buffers, rows: usize, d: usize) {
        let x = &mut b.x[..rows * d];
        norm.apply(ctx.device, x, sized(&mut b.normed, rows * d));
        match self {
            FeedForward::Dense(dense) => {
                dense.apply(ctx.device, &b.normed[..rows * d], &mut b.hidden, x);
                ctx.meter.lap(Phase::Dense);
            }
            FeedForward::Sparse(moe) => moe.forward(ctx, &mut b.moe, &mut b.normed, x),
        }
    }
}
