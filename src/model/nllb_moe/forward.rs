//! What an NLLB-MoE computes (ARCHITECTURES: pre-norm, ReLU, biases everywhere, sinusoidal positions, tied embedding).

use super::{EncoderLayer, FeedForward, NllbMoe};
use crate::comm::crash::crash_point;
use crate::device::{Attend, Element, Epilogue, KeyRows, Linear};
use crate::metrics::meter::Phase;
use crate::model::blocks::Norm;
use crate::model::cache::{CacheRows, CacheType, Caches, DecodeRow, Planes, SourceRow};
use crate::model::{Model, Shape};
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
    /// Cache rows that are written.
    written: Vec<u32>,
    /// Key rows of each query, of its own tokens and of its source; empty between two calls.
    keys: Vec<KeyRows<'static>>,
    cross_keys: Vec<KeyRows<'static>>,
}

/// An empty list with the memory of `rows`, for rows of another lifetime (`collect` keeps the allocation).
fn emptied<'a>(mut rows: Vec<KeyRows<'_>>) -> Vec<KeyRows<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("there are none")).collect()
}

impl Model for NllbMoe {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn cache_type(&self) -> CacheType {
        self.cache_type
    }

    fn head(&self) -> &Linear {
        &self.embedding
    }

    fn bytes(&self) -> u64 {
        self.weight_bytes()
    }

    fn read(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches) {
        let tokens: usize = sources.iter().map(|s| s.ids.len()).sum();
        let mut b = std::mem::take(&mut self.buffers);
        let x = sized(&mut b.x, tokens * self.config.d_model);
        let pad = self.config.pad_token_id;
        self.embed(sources.iter().flat_map(|s| positions(s.ids, pad)), x);
        let mut keys = emptied(std::mem::take(&mut b.keys));
        for s in sources {
            let rows = KeyRows::Range(keys.len(), s.ids.len());
            keys.extend(s.ids.iter().map(|_| rows));
        }
        ctx.meter.lap(Phase::Head);
        for layer in &self.encoder {
            crash_point("encoder-layer");
            self.encoder_layer(ctx, layer, &mut b, &keys);
        }
        b.keys = emptied(keys);
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
        let mut written = std::mem::take(&mut b.written);
        let mut keys = emptied(std::mem::take(&mut b.keys));
        let mut cross_keys = emptied(std::mem::take(&mut b.cross_keys));
        written.clear();
        written.extend(rows.iter().map(|r| r.row as u32));
        keys.extend(rows.iter().map(|r| r.keys));
        cross_keys.extend(rows.iter().map(|r| KeyRows::Range(r.source.0, r.source.1)));
        ctx.meter.lap(Phase::Head);
        let heads = self.config.decoder_attention_heads;
        for (i, layer) in self.decoder.iter().enumerate() {
            crash_point("decoder-layer");
            let own = Attention {
                norm: &layer.self_norm,
                projection: &layer.qkv,
                out: &layer.self_out,
                heads,
            };
            own.apply(ctx, &mut b, &keys, Seen::Written(caches.own(i), &written));
            let cross = Attention {
                norm: &layer.cross_norm,
                projection: &layer.cross_q,
                out: &layer.cross_out,
                heads,
            };
            cross.apply(ctx, &mut b, &cross_keys, Seen::Cache(caches.cross(i)));
            layer.ffn.apply(ctx, &layer.ffn_norm, &mut b, rows.len(), d);
        }
        self.decoder_norm
            .apply(ctx.device, &b.x[..rows.len() * d], sized(&mut b.normed, rows.len() * d));
        ctx.meter.lap(Phase::Head);
        (b.written, b.keys, b.cross_keys) = (written, emptied(keys), emptied(cross_keys));
        self.buffers = b;
        &self.buffers.normed[..rows.len() * d]
    }
}

/// A sentence's tokens with their positions: a padding token typed in the text takes none, as in the reference.
fn positions(ids: &[u32], pad: u32) -> impl Iterator<Item = (u32, usize)> + '_ {
    ids.iter().scan(0, move |next, &id| {
        Some((id, std::mem::replace(next, *next + (id != pad) as usize)))
    })
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

    fn encoder_layer(&self, ctx: &mut Context, layer: &EncoderLayer, b: &mut Buffers, keys: &[KeyRows]) {
        let attention = Attention {
            norm: &layer.attention_norm,
            projection: &layer.qkv,
            out: &layer.out,
            heads: self.config.encoder_attention_heads,
        };
        attention.apply(ctx, b, keys, Seen::Fresh);
        layer
            .ffn
            .apply(ctx, &layer.ffn_norm, b, keys.len(), self.config.d_model);
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
        b.written.clear();
        for s in sources {
            b.written.extend((s.first..s.first + s.ids.len()).map(|r| r as u32));
        }
        for (i, layer) in self.decoder.iter().enumerate() {
            let kv = sized(&mut b.projected, tokens * 2 * d);
            ctx.device.linear(normed, &layer.cross_kv, Epilogue::Store, kv);
            caches.cross(i).store(ctx.device, kv, 2 * d, &b.written);
        }
        ctx.meter.lap(Phase::Attention);
    }
}

/// A sublayer of attention: `x + out(attention(projection(norm(x))))`.
struct Attention<'a> {
    norm: &'a Norm,
    /// Queries, `[d_model, d_model]`; or queries, keys and values, `[3 * d_model, d_model]`.
    projection: &'a Linear,
    out: &'a Linear,
    heads: usize,
}

/// The keys and values that an attention looks at.
enum Seen<'a> {
    /// Those that it projects itself.
    Fresh,
    /// Those that it projects itself, once they are written into these rows of a cache, and others there.
    Written(&'a mut CacheRows, &'a [u32]),
    /// Those in a cache.
    Cache(&'a CacheRows),
}

impl Attention<'_> {
    /// Adds the sublayer's output for `keys.len()` rows to the residual stream.
    fn apply(&self, ctx: &mut Context, b: &mut Buffers, keys: &[KeyRows], seen: Seen) {
        let (n, d, width) = (keys.len(), self.out.outputs(), self.projection.outputs());
        let x = &mut b.x[..n * d];
        let (normed, projected) = (sized(&mut b.normed, n * d), sized(&mut b.projected, n * width));
        let gathered = sized(&mut b.gathered, n * d);
        self.norm.apply(ctx.device, x, normed);
        ctx.device.linear(normed, self.projection, Epilogue::Store, projected);
        let own = &projected[d.min(n * width)..];
        let cache = match seen {
            Seen::Fresh => None,
            Seen::Written(cache, rows) => {
                cache.store(ctx.device, own, width, rows);
                Some(&*cache)
            }
            Seen::Cache(cache) => Some(cache),
        };
        match cache {
            None => self.attend(ctx, projected, KeysAndValues::beside(own, d, width), keys, gathered),
            Some(CacheRows::F32(kv)) => self.attend(ctx, projected, KeysAndValues::apart(kv, d), keys, gathered),
            Some(CacheRows::Bf16(kv)) => self.attend(ctx, projected, KeysAndValues::apart(kv, d), keys, gathered),
        }
        ctx.device.linear(gathered, self.out, Epilogue::Add, x);
        ctx.meter.lap(Phase::Attention);
    }

    fn attend<T: Element>(&self, ctx: &Context, q: &[f32], seen: KeysAndValues<T>, rows: &[KeyRows], out: &mut [f32]) {
        let (d, heads) = (self.out.inputs(), self.heads);
        ctx.device.attend(Attend {
            q,
            q_stride: self.projection.outputs(),
            k: seen.keys,
            v: seen.values,
            kv_stride: seen.stride,
            heads,
            head_dim: d / heads,
            scale: ((d / heads) as f32).powf(-0.5),
            rows,
            out,
        });
    }
}

/// Where keys and values lie.
struct KeysAndValues<'a, T> {
    keys: &'a [T],
    values: &'a [T],
    /// Elements from one row to the next.
    stride: usize,
}

impl<'a, T> KeysAndValues<'a, T> {
    /// `d` elements of keys and behind them as many of values in each row of `rows`.
    fn beside(rows: &'a [T], d: usize, stride: usize) -> Self {
        KeysAndValues {
            keys: rows,
            values: &rows[d.min(rows.len())..],
            stride,
        }
    }

    /// As a cache has them.
    fn apart(cache: &'a Planes<T>, d: usize) -> Self {
        KeysAndValues {
            keys: &cache.keys,
            values: &cache.values,
            stride: d,
        }
    }
}

impl FeedForward {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_rows_keep_their_room() {
        let mut rows = Vec::with_capacity(100);
        let (table, at) = ([1, 2], rows.as_ptr() as usize);
        rows.push(KeyRows::Table(&table));
        let mut again: Vec<KeyRows<'static>> = emptied(rows);
        again.push(KeyRows::Range(0, 1));
        assert_eq!((again.len(), again.as_ptr() as usize), (1, at));
    }
}
