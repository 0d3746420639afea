//! A decoder-only model at work: tokens in, layer by layer, hidden states out.

use super::attention::Rows;
use super::{Decoder, FeedForward, Layer, SelfAttention};
use crate::comm::crash::crash_point;
use crate::device::{KeyRows, Linear};
use crate::metrics::meter::Phase;
use crate::model::cache::{emptied, CacheType, Caches, DecodeRow, SourceRow};
use crate::model::{Model, Shape};
use crate::moe::buffer::residency::Pass;
use crate::moe::layer::{sized, MoeBuffers};
use crate::moe::Context;
use anyhow::anyhow;

/// Scratch rows of a step; they only grow.
#[derive(Default)]
pub(super) struct Buffers {
    /// The residual stream, `[rows, d]`.
    pub x: Vec<f32>,
    /// Normalised rows; MoE layers append rows of other ranks.
    pub normed: Vec<f32>,
    /// Queries, keys and values side by side; or latent keys and values.
    pub projected: Vec<f32>,
    /// What attention gathered.
    pub gathered: Vec<f32>,
    pub hidden: Vec<f32>,
    pub moe: MoeBuffers,
    /// What latent attention takes besides.
    pub latent: super::latent::Buffers,
    /// Cache rows that are written.
    written: Vec<u32>,
    positions: Vec<u32>,
    /// Key rows of each query; empty between two calls.
    keys: Vec<KeyRows<'static>>,
}

/// A token, its position, its cache row and the rows it sees.
type Token<'a> = (u32, usize, usize, KeyRows<'a>);

impl Model for Decoder {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn cache_type(&self) -> CacheType {
        self.cache_type
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn bytes(&self) -> u64 {
        self.weight_bytes()
    }

    fn read(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches) {
        ctx.pass = Pass::Encode;
        let tokens = sources.iter().flat_map(|source| {
            let seen = |i| KeyRows::Range(source.first, i + 1);
            let ids = (source.before..).zip(source.ids);
            ids.map(move |(i, &id)| (id, i, source.first + i, seen(i)))
        });
        self.run(ctx, tokens, caches);
    }

    fn decode(&mut self, ctx: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32] {
        ctx.pass = Pass::Decode;
        self.run(ctx, rows.iter().map(|r| (r.token, r.position, r.row, r.keys)), caches);
        let (b, elements) = (&mut self.buffers, rows.len() * self.shape.d_model);
        let normed = sized(&mut b.normed, elements);
        self.norm.apply(ctx.device, &b.x[..elements], normed);
        ctx.meter.lap(Phase::Head);
        normed
    }
}

impl Decoder {
    /// Takes tokens through all layers, into the residual stream.
    fn run<'a>(&mut self, ctx: &mut Context, tokens: impl Iterator<Item = Token<'a>>, caches: &mut Caches) {
        let d = self.shape.d_model;
        let mut b = std::mem::take(&mut self.buffers);
        let (mut written, mut positions) = (std::mem::take(&mut b.written), std::mem::take(&mut b.positions));
        let mut keys = emptied(std::mem::take(&mut b.keys));
        written.clear();
        positions.clear();
        for (i, (token, position, row, seen)) in tokens.enumerate() {
            written.push(row as u32);
            positions.push(position as u32);
            keys.push(seen);
            if b.x.len() < (i + 1) * d {
                b.x.resize((i + 1) * d, 0.0);
            }
            self.embed(token, &mut b.x[i * d..(i + 1) * d]);
        }
        if let Some(end) = self
            .shape
            .computed
            .filter(|&end| positions.iter().any(|&p| p as usize >= end))
        {
            ctx.failure.get_or_insert_with(|| {
                anyhow!("a text of more than {end} tokens: config.json has `long_factor` for it, which is not computed here")
            });
        }
        ctx.meter.lap(Phase::Head);
        for (i, layer) in self.layers.iter().enumerate() {
            crash_point("decoder-layer");
            let rows = Rows {
                written: &written,
                positions: &positions,
                keys: &keys,
                rotary: &self.rotary,
                window: layer.window,
            };
            layer.apply(ctx, &mut b, &rows, caches.own(i), d);
        }
        (b.written, b.positions, b.keys) = (written, positions, emptied(keys));
        self.buffers = b;
    }

    fn embed(&self, token: u32, row: &mut [f32]) {
        match &self.embedding {
            Some(table) => table.row(token as usize, row),
            None => self.head.embedding(token as usize, row),
        }
        if self.embedding_scale != 1.0 {
            row.iter_mut().for_each(|x| *x *= self.embedding_scale);
        }
    }
}

impl Layer {
    fn apply(
        &self,
        ctx: &mut Context,
        b: &mut Buffers,
        rows: &Rows,
        cache: &mut crate::model::cache::CacheRows,
        d: usize,
    ) {
        let elements = rows.keys.len() * d;
        self.attention_norm
            .apply(ctx.device, &b.x[..elements], sized(&mut b.normed, elements));
        match &self.attention {
            SelfAttention::Grouped(attention) => attention.apply(ctx, b, rows, cache),
            SelfAttention::Latent(attention) => attention.apply(ctx, b, rows, cache),
        }
        ctx.meter.lap(Phase::Attention);
        let x = &mut b.x[..elements];
        self.ffn_norm.apply(ctx.device, x, sized(&mut b.normed, elements));
        match &self.ffn {
            FeedForward::Dense(dense) => {
                dense.apply(ctx.device, &b.normed[..elements], &mut b.hidden, x);
                ctx.meter.lap(Phase::Dense);
            }
            FeedForward::Sparse(moe) => moe.forward(ctx, &mut b.moe, &mut b.normed, x),
        }
    }
}
