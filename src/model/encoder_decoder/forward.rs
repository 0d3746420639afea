//! What an encoder-decoder computes, layer by layer.

use super::attention::{Looks, Seen};
use super::embedding::positions;
use super::{Buffers, EncoderDecoder, FeedForward};
use crate::comm::crash::crash_point;
use crate::device::{Epilogue, KeyRows, Linear};
use crate::metrics::meter::Phase;
use crate::model::blocks::Norm;
use crate::model::cache::{emptied, CacheType, Caches, DecodeRow, SourceRow};
use crate::model::{Model, Shape};
use crate::moe::buffer::residency::Pass;
use crate::moe::layer::sized;
use crate::moe::Context;

impl Model for EncoderDecoder {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn cache_type(&self) -> CacheType {
        self.cache_type
    }

    fn head(&self) -> &Linear {
        &self.embedding.table
    }

    fn bytes(&self) -> u64 {
        self.weight_bytes()
    }

    fn read(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches) {
        ctx.pass = Pass::Encode;
        let tokens: usize = sources.iter().map(|s| s.ids.len()).sum();
        let d = self.shape.d_model;
        let mut b = std::mem::take(&mut self.buffers);
        let pad = self.embedding.pad();
        let numbered = sources.iter().flat_map(|s| positions(s.ids, pad));
        self.embedding.write(numbered, sized(&mut b.x, tokens * d));
        let mut keys = emptied(std::mem::take(&mut b.keys));
        let mut places = std::mem::take(&mut b.places);
        places.clear();
        for s in sources {
            let rows = KeyRows::Range(keys.len(), s.ids.len());
            keys.extend(s.ids.iter().map(|_| rows));
            places.extend(0..s.ids.len() as u32);
        }
        ctx.meter.lap(Phase::Head);
        let looks = Looks {
            rows: &keys,
            bias: self.encoder.bias.as_ref().map(|bias| bias.at(&places)),
        };
        for layer in &self.encoder.layers {
            crash_point("encoder-layer");
            layer.own.apply(ctx, &mut b, looks, Seen::Fresh);
            layer.ffn.apply(ctx, &layer.ffn_norm, &mut b, tokens, d);
        }
        (b.keys, b.places) = (emptied(keys), places);
        self.store_cross(ctx, &mut b, tokens, sources, caches);
        self.buffers = b;
    }

    fn decode(&mut self, ctx: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32] {
        ctx.pass = Pass::Decode;
        let d = self.shape.d_model;
        let mut b = std::mem::take(&mut self.buffers);
        let tokens = rows.iter().map(|r| (r.token, r.position));
        self.embedding.write(tokens, sized(&mut b.x, rows.len() * d));
        let (mut written, mut places) = (std::mem::take(&mut b.written), std::mem::take(&mut b.places));
        let mut keys = emptied(std::mem::take(&mut b.keys));
        let mut cross_keys = emptied(std::mem::take(&mut b.cross_keys));
        written.clear();
        written.extend(rows.iter().map(|r| r.row as u32));
        places.clear();
        // A query is the last of its keys.
        places.extend(rows.iter().map(|r| r.keys.len().saturating_sub(1) as u32));
        keys.extend(rows.iter().map(|r| r.keys));
        cross_keys.extend(rows.iter().map(|r| KeyRows::Range(r.source.0, r.source.1)));
        ctx.meter.lap(Phase::Head);
        let own = Looks {
            rows: &keys,
            bias: self.decoder.bias.as_ref().map(|bias| bias.at(&places)),
        };
        let source = Looks {
            rows: &cross_keys,
            bias: None,
        };
        for (i, (layer, cross)) in self.decoder.layers.iter().zip(&self.cross).enumerate() {
            crash_point("decoder-layer");
            layer
                .own
                .apply(ctx, &mut b, own, Seen::Written(caches.own(i), &written));
            cross.attention.apply(ctx, &mut b, source, Seen::Cache(caches.cross(i)));
            layer.ffn.apply(ctx, &layer.ffn_norm, &mut b, rows.len(), d);
        }
        let normed = sized(&mut b.normed, rows.len() * d);
        self.decoder.norm.apply(ctx.device, &b.x[..rows.len() * d], normed);
        ctx.meter.lap(Phase::Head);
        (b.written, b.places) = (written, places);
        (b.keys, b.cross_keys) = (emptied(keys), emptied(cross_keys));
        self.buffers = b;
        &self.buffers.normed[..rows.len() * d]
    }
}

impl EncoderDecoder {
    /// The encoder's output, once for each sentence, as every decoder layer's cross keys and values.
    fn store_cross(
        &self,
        ctx: &mut Context,
        b: &mut Buffers,
        tokens: usize,
        sources: &[SourceRow],
        caches: &mut Caches,
    ) {
        let d = self.shape.d_model;
        let normed = sized(&mut b.normed, tokens * d);
        self.encoder.norm.apply(ctx.device, &b.x[..tokens * d], normed);
        b.written.clear();
        for s in sources {
            b.written.extend((s.first..s.first + s.ids.len()).map(|r| r as u32));
        }
        for (i, cross) in self.cross.iter().enumerate() {
            let width = cross.kv.outputs();
            let kv = sized(&mut b.projected, tokens * width);
            ctx.device.linear(normed, &cross.kv, Epilogue::Store, kv);
            caches.cross(i).store(ctx.device, kv, width, &b.written);
        }
        ctx.meter.lap(Phase::Attention);
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
