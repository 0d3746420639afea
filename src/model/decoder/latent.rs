//! Multi-head latent attention over a cache of latent keys and values (DeepSeek-V2, section 2.1).
//!
//! Projections from the latent rows to each head's keys and values are applied to queries and outputs instead ("absorbed"),
//! so that all heads look at one row a token: `q . (K c) = (K^T q) . c` and `sum w (V c) = V (sum w c)`.

use super::attention::Rows;
use super::forward;
use super::spec::Latent;
use crate::device::{Attend, Element, Epilogue, Group, Linear};
use crate::model::cache::{CacheRows, Planes};
use crate::moe::layer::sized;
use crate::moe::Context;

/// Rows whose queries and outputs are in hand at a time: they are as wide as all heads' latent rows together.
const ROWS: usize = 256;

/// Elements of [`Buffers`] and of what is gathered, for as many rows as are in hand at a time.
pub(super) fn scratch(spec: &Latent) -> usize {
    let of_head = spec.nope + 2 * spec.rope + 3 * spec.kv_lora + 2 * spec.value;
    ROWS * (2 * spec.q_lora.unwrap_or(0) + spec.heads * of_head)
}

/// Scratch of latent attention; it only grows.
#[derive(Default)]
pub(super) struct Buffers {
    /// Latent queries, `[rows, q_lora]`, and the same normalised.
    q_latent: Vec<f32>,
    q_normed: Vec<f32>,
    /// What is not rotated of queries, `[rows, heads * nope]`, and what is, `[rows, heads * rope]`.
    nope: Vec<f32>,
    rope: Vec<f32>,
    /// The former as the latent rows take them, `[heads, rows, kv_lora]`.
    absorbed: Vec<f32>,
    /// Both, `[rows, heads, kv_lora + rope]`.
    queries: Vec<f32>,
    /// Values, `[heads, rows, value]`, and `[rows, heads, value]`.
    values: Vec<f32>,
    turned: Vec<f32>,
    /// Number of each row and head, by head and then by row.
    by_head: Vec<u32>,
}

/// Weights of latent attention.
pub(super) struct LatentAttention {
    /// Sizes.
    pub spec: Latent,
    /// `[q_lora, d_model]` and the norm behind it, where queries are latent.
    pub q_latent: Option<(Linear, Vec<f32>)>,
    /// `[heads * nope, q_lora or d_model]`
    pub q_nope: Linear,
    /// `[heads * rope, q_lora or d_model]`
    pub q_rope: Linear,
    /// Latent keys and values and the rotated part of keys, `[kv_lora + rope, d_model]`.
    pub kv: Linear,
    /// The latent rows' norm, `[kv_lora]`.
    pub kv_norm: Vec<f32>,
    /// Of each head, from what is not rotated of its queries to latent ones: `[kv_lora, nope]`.
    pub keys: Vec<Linear>,
    /// Of each head, from latent rows to values: `[value, kv_lora]`.
    pub values: Vec<Linear>,
    /// `[d_model, heads * value]`
    pub out: Linear,
}

/// Added to variances of latent rows, whatever the configuration says of other norms.
const EPS: f32 = 1e-6;

impl LatentAttention {
    /// Adds attention's output for the normalised rows to the residual stream.
    pub fn apply(&self, ctx: &mut Context, b: &mut forward::Buffers, rows: &Rows, cache: &mut CacheRows) {
        let (n, d, width) = (rows.keys.len(), self.kv.inputs(), self.kv.outputs());
        let kv = sized(&mut b.projected, n * width);
        ctx.device.linear(&b.normed[..n * d], &self.kv, Epilogue::Store, kv);
        ctx.device.rms_norm_within(kv, width, 0, 1, &self.kv_norm, EPS);
        let (lora, rope) = (self.spec.kv_lora, self.spec.rope);
        ctx.device.rotate(kv, width, lora, 1, rope, rows.rotary, rows.positions);
        cache.store(ctx.device, kv, width, rows.written);
        let (x, normed, gathered) = (&mut b.x[..n * d], &b.normed[..n * d], &mut b.gathered);
        let blocks = x.chunks_mut(ROWS * d).zip(normed.chunks(ROWS * d));
        let seen = rows.keys.chunks(ROWS).zip(rows.positions.chunks(ROWS));
        for ((x, normed), (keys, positions)) in blocks.zip(seen) {
            let rows = Rows {
                keys,
                positions,
                ..*rows
            };
            self.queries(ctx, &mut b.latent, normed, &rows);
            let gathered = sized(gathered, keys.len() * self.spec.heads * lora);
            let queries = &b.latent.queries;
            match cache {
                CacheRows::F32(seen) => self.attend(ctx, queries, seen, &rows, gathered),
                CacheRows::Bf16(seen) => self.attend(ctx, queries, seen, &rows, gathered),
            }
            self.give(ctx, &mut b.latent, gathered, x);
        }
    }

    /// Queries for latent rows.
    fn queries(&self, ctx: &Context, b: &mut Buffers, normed: &[f32], rows: &Rows) {
        let Latent {
            heads,
            kv_lora,
            nope,
            rope,
            ..
        } = self.spec;
        let n = rows.keys.len();
        let from = match &self.q_latent {
            Some((down, norm)) => {
                let latent = sized(&mut b.q_latent, n * down.outputs());
                let normalised = sized(&mut b.q_normed, n * down.outputs());
                ctx.device.linear(normed, down, Epilogue::Store, latent);
                ctx.device.rms_norm(latent, norm, EPS, normalised);
                normalised
            }
            None => normed,
        };
        let (plain, rotated) = (
            sized(&mut b.nope, n * heads * nope),
            sized(&mut b.rope, n * heads * rope),
        );
        ctx.device.linear(from, &self.q_nope, Epilogue::Store, plain);
        ctx.device.linear(from, &self.q_rope, Epilogue::Store, rotated);
        ctx.device
            .rotate(rotated, heads * rope, 0, heads, rope, rows.rotary, rows.positions);
        b.by_head.clear();
        for head in 0..heads {
            b.by_head.extend((0..n).map(|row| (row * heads + head) as u32));
        }
        let absorbed = sized(&mut b.absorbed, heads * n * kv_lora);
        ctx.device.grouped_linear(
            plain,
            Some(&b.by_head),
            &groups(&self.keys, n),
            Epilogue::Store,
            absorbed,
        );
        let queries = sized(&mut b.queries, n * heads * (kv_lora + rope));
        ctx.device
            .join_heads(absorbed, rotated, heads, [kv_lora, rope], queries);
    }

    fn attend<T: Element>(&self, ctx: &Context, queries: &[f32], seen: &Planes<T>, rows: &Rows, out: &mut [f32]) {
        let width = self.kv.outputs();
        ctx.device.attend(Attend {
            q: queries,
            q_stride: self.spec.heads * width,
            k: &seen.keys,
            k_stride: width,
            v: &seen.keys,
            v_stride: width,
            heads: self.spec.heads,
            kv_heads: 1,
            head_dim: width,
            v_dim: self.spec.kv_lora,
            scale: self.spec.scale,
            rows: rows.keys,
            window: rows.window,
            sinks: None,
            bias: None,
            out,
        });
    }

    /// Adds what was gathered of latent rows `[rows, heads, kv_lora]` to the residual stream.
    fn give(&self, ctx: &Context, b: &mut Buffers, gathered: &[f32], x: &mut [f32]) {
        let Latent { heads, value, .. } = self.spec;
        let n = x.len() / self.out.outputs();
        let values = sized(&mut b.values, heads * n * value);
        ctx.device.grouped_linear(
            gathered,
            Some(&b.by_head),
            &groups(&self.values, n),
            Epilogue::Store,
            values,
        );
        let turned = sized(&mut b.turned, n * heads * value);
        ctx.device.store_rows(values, value, value, &b.by_head, turned);
        ctx.device.linear(turned, &self.out, Epilogue::Add, x);
    }
}

/// Every head's weights with `n` rows.
fn groups(heads: &[Linear], n: usize) -> Vec<Group<'_>> {
    let group = |(head, weights)| Group {
        weights,
        rows: head * n..(head + 1) * n,
    };
    heads.iter().enumerate().map(group).collect()
}
