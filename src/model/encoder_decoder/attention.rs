//! The sublayer of attention, over fresh keys and values or cached ones.

use super::Buffers;
use crate::device::{Attend, Bias, Element, Epilogue, KeyRows, Linear};
use crate::metrics::meter::Phase;
use crate::model::blocks::Norm;
use crate::model::cache::{CacheRows, Planes};
use crate::moe::layer::sized;
use crate::moe::Context;

/// A sublayer of attention: `x + out(attention(projection(norm(x))))`.
pub(super) struct Attention {
    pub norm: Norm,
    /// Queries, `[heads * head_dim, d_model]`; or queries, keys and values, three times as many.
    pub projection: Linear,
    /// `[d_model, heads * head_dim]`
    pub out: Linear,
    pub heads: usize,
    /// Factor on `q . k`.
    pub scale: f32,
}

/// The keys and values that an attention looks at.
pub(super) enum Seen<'a> {
    /// Those that it projects itself.
    Fresh,
    /// Those that it projects itself, once they are written into these rows of a cache, and others there.
    Written(&'a mut CacheRows, &'a [u32]),
    /// Those in a cache.
    Cache(&'a CacheRows),
}

/// Which keys the queries of a step look at.
#[derive(Clone, Copy)]
pub(super) struct Looks<'a> {
    /// The key rows of each query.
    pub rows: &'a [KeyRows<'a>],
    /// What is added to scores by distance.
    pub bias: Option<Bias<'a>>,
}

impl Attention {
    /// Adds the sublayer's output for `looks.rows.len()` rows to the residual stream.
    pub fn apply(&self, ctx: &mut Context, b: &mut Buffers, looks: Looks, seen: Seen) {
        let (n, d, width) = (looks.rows.len(), self.out.outputs(), self.projection.outputs());
        let inner = self.out.inputs();
        let x = &mut b.x[..n * d];
        let (normed, projected) = (sized(&mut b.normed, n * d), sized(&mut b.projected, n * width));
        let gathered = sized(&mut b.gathered, n * inner);
        self.norm.apply(ctx.device, x, normed);
        ctx.device.linear(normed, &self.projection, Epilogue::Store, projected);
        let own = &projected[inner.min(n * width)..];
        let cache = match seen {
            Seen::Fresh => None,
            Seen::Written(cache, rows) => {
                cache.store(ctx.device, own, width, rows);
                Some(&*cache)
            }
            Seen::Cache(cache) => Some(cache),
        };
        match cache {
            None => self.attend(
                ctx,
                projected,
                KeysAndValues::beside(own, inner, width),
                looks,
                gathered,
            ),
            Some(CacheRows::F32(kv)) => self.attend(ctx, projected, KeysAndValues::apart(kv, inner), looks, gathered),
            Some(CacheRows::Bf16(kv)) => self.attend(ctx, projected, KeysAndValues::apart(kv, inner), looks, gathered),
        }
        ctx.device.linear(gathered, &self.out, Epilogue::Add, x);
        ctx.meter.lap(Phase::Attention);
    }

    fn attend<T: Element>(&self, ctx: &Context, q: &[f32], seen: KeysAndValues<T>, looks: Looks, out: &mut [f32]) {
        let head_dim = self.out.inputs() / self.heads;
        ctx.device.attend(Attend {
            q,
            q_stride: self.projection.outputs(),
            k: seen.keys,
            k_stride: seen.stride,
            v: seen.values,
            v_stride: seen.stride,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim,
            v_dim: head_dim,
            scale: self.scale,
            rows: looks.rows,
            window: None,
            sinks: None,
            bias: looks.bias,
            out,
        });
    }

    /// Bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.projection.bytes() + self.out.bytes()
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
    /// `width` elements of keys and behind them as many of values in each row of `rows`.
    fn beside(rows: &'a [T], width: usize, stride: usize) -> Self {
        KeysAndValues {
            keys: rows,
            values: &rows[width.min(rows.len())..],
            stride,
        }
    }

    /// As a cache has them.
    fn apart(cache: &'a Planes<T>, width: usize) -> Self {
        KeysAndValues {
            keys: &cache.keys,
            values: &cache.values,
            stride: width,
        }
    }
}
