//! Grouped-query attention over rows of a cache.

use super::forward::Buffers;
use super::spec::{Grouped, QkNorm};
use crate::device::{Attend, Element, Epilogue, KeyRows, Linear, Rotary};
use crate::model::cache::{CacheRows, Planes};
use crate::moe::layer::sized;
use crate::moe::Context;

/// The tokens in hand, of which every one is written into the cache before any looks back.
pub(super) struct Rows<'a> {
    /// Cache row of each.
    pub written: &'a [u32],
    /// Position of each.
    pub positions: &'a [u32],
    /// What each sees, itself last.
    pub keys: &'a [KeyRows<'a>],
    /// What positions do to queries and keys.
    pub rotary: &'a Rotary,
    /// How many of its keys each sees, the last ones.
    pub window: Option<usize>,
}

/// Weights of grouped-query attention.
pub(super) struct GroupedAttention {
    /// Sizes and switches.
    pub spec: Grouped,
    /// Queries, keys and values, `[(heads + 2 kv_heads) * head_dim, d_model]`.
    pub qkv: Linear,
    /// `[d_model, heads * head_dim]`
    pub out: Linear,
    /// Norms of queries and keys, over all or over each head; empty if there are none.
    pub norms: [Vec<f32>; 2],
    /// `[heads]`
    pub sinks: Option<Vec<f32>>,
    /// Added to variances.
    pub eps: f32,
}

impl GroupedAttention {
    /// Adds attention's output for the normalised rows to the residual stream.
    pub fn apply(&self, ctx: &mut Context, b: &mut Buffers, rows: &Rows, cache: &mut CacheRows) {
        let (n, d, width) = (rows.keys.len(), self.out.outputs(), self.qkv.outputs());
        let qkv = sized(&mut b.projected, n * width);
        ctx.device.linear(&b.normed[..n * d], &self.qkv, Epilogue::Store, qkv);
        self.normalise(ctx, qkv);
        let Grouped {
            heads,
            kv_heads,
            head_dim,
            ..
        } = self.spec;
        // Keys stand behind queries and are rotated as further heads.
        let (rotated, all) = (heads + kv_heads, rows.positions);
        ctx.device.rotate(qkv, width, 0, rotated, head_dim, rows.rotary, all);
        let own = &qkv[(heads * head_dim).min(n * width)..];
        cache.store(ctx.device, own, width, rows.written);
        let gathered = sized(&mut b.gathered, n * heads * head_dim);
        match cache {
            CacheRows::F32(kv) => self.attend(ctx, qkv, kv, rows, gathered),
            CacheRows::Bf16(kv) => self.attend(ctx, qkv, kv, rows, gathered),
        }
        ctx.device.linear(gathered, &self.out, Epilogue::Add, &mut b.x[..n * d]);
    }

    fn normalise(&self, ctx: &Context, qkv: &mut [f32]) {
        let Grouped {
            heads,
            kv_heads,
            head_dim,
            qk_norm,
            clip,
            ..
        } = self.spec;
        let (width, q) = (self.qkv.outputs(), heads * head_dim);
        let runs = match qk_norm {
            QkNorm::None => None,
            QkNorm::Whole => Some([1, 1]),
            QkNorm::Heads => Some([heads, kv_heads]),
        };
        if let Some(runs) = runs {
            for ((offset, runs), weight) in [0, q].into_iter().zip(runs).zip(&self.norms) {
                ctx.device.rms_norm_within(qkv, width, offset, runs, weight, self.eps);
            }
        }
        if let Some(limit) = clip {
            ctx.device.clamp(qkv, width, 0, width, limit);
        }
    }

    fn attend<T: Element>(&self, ctx: &Context, qkv: &[f32], seen: &Planes<T>, rows: &Rows, out: &mut [f32]) {
        let kv = self.spec.kv_heads * self.spec.head_dim;
        ctx.device.attend(Attend {
            q: qkv,
            q_stride: self.qkv.outputs(),
            k: &seen.keys,
            k_stride: kv,
            v: &seen.values,
            v_stride: kv,
            heads: self.spec.heads,
            kv_heads: self.spec.kv_heads,
            head_dim: self.spec.head_dim,
            v_dim: self.spec.head_dim,
            scale: self.spec.scale,
            rows: rows.keys,
            window: rows.window,
            sinks: self.sinks.as_deref(),
            bias: None,
            out,
        });
    }
}
