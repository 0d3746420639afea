//! Keys and values that decoding looks back on.

use crate::device::{Cpu, Dtype, Element, KeyRows};
use half::bf16;

/// The type that keys and values are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheType {
    /// 32-bit float.
    F32,
    /// bfloat16, rounded as they are stored; scores and sums over them are 32-bit.
    Bf16,
}

impl CacheType {
    /// What goes with weights of a type: float32 stays exact, all else takes half the memory and half the time to read.
    pub fn of(dtype: Dtype) -> CacheType {
        match dtype {
            Dtype::F32 => CacheType::F32,
            Dtype::Bf16 | Dtype::Int8 => CacheType::Bf16,
        }
    }

    fn bytes(self) -> usize {
        match self {
            CacheType::F32 => size_of::<f32>(),
            CacheType::Bf16 => size_of::<bf16>(),
        }
    }
}

/// Keys and values of one layer, `[2, rows, d_model]`: all keys, then all values, so that neighbouring rows of either are
/// one stretch of memory.
pub enum CacheRows {
    /// Of [`CacheType::F32`].
    F32(Vec<f32>),
    /// Of [`CacheType::Bf16`].
    Bf16(Vec<bf16>),
}

impl CacheRows {
    /// Room for `elements` elements; memory is taken as it is written to.
    fn new(kind: CacheType, elements: usize) -> CacheRows {
        match kind {
            CacheType::F32 => CacheRows::F32(bytemuck::zeroed_vec(elements)),
            CacheType::Bf16 => CacheRows::Bf16(bytemuck::zeroed_vec(elements)),
        }
    }

    /// Writes row `i` of `from`, whose keys are the `d_model` elements from `i * stride` on and its values those behind,
    /// into row `rows[i]`.
    pub fn store(&mut self, device: &Cpu, from: &[f32], stride: usize, d_model: usize, rows: &[u32]) {
        match self {
            CacheRows::F32(to) => store(device, from, stride, d_model, rows, to),
            CacheRows::Bf16(to) => store(device, from, stride, d_model, rows, to),
        }
    }
}

fn store<T: Element>(device: &Cpu, from: &[f32], stride: usize, d_model: usize, rows: &[u32], to: &mut [T]) {
    let (keys, values) = to.split_at_mut(to.len() / 2);
    device.store_rows(from, stride, d_model, rows, keys);
    device.store_rows(&from[d_model.min(from.len())..], stride, d_model, rows, values);
}

/// Keys and values of every decoder layer. Rows are handed out by the decoder of sequences (`decode::slots`); memory
/// is taken from the system only as rows are first written.
pub struct Caches {
    /// Of generated tokens, by layer.
    pub own: Vec<CacheRows>,
    /// Of source tokens, by layer.
    pub cross: Vec<CacheRows>,
    kind: CacheType,
    d_model: usize,
}

impl Caches {
    /// Caches of `layers` decoder layers with room for `own` generated and `cross` source tokens.
    pub fn new(kind: CacheType, layers: usize, d_model: usize, own: usize, cross: usize) -> Caches {
        let of = |rows: usize| {
            let layer = |_| CacheRows::new(kind, rows * 2 * d_model);
            (0..layers).map(layer).collect()
        };
        Caches {
            own: of(own),
            cross: of(cross),
            kind,
            d_model,
        }
    }

    /// Room for `cross` source tokens in place of what there was, which is lost.
    pub fn replace_cross(&mut self, cross: usize) {
        for layer in &mut self.cross {
            *layer = CacheRows::new(self.kind, cross * 2 * self.d_model);
        }
    }

    /// Bytes of a row over all layers, generated or source alike.
    pub fn row_bytes(kind: CacheType, layers: usize, d_model: usize) -> u64 {
        (layers * 2 * d_model * kind.bytes()) as u64
    }
}

/// A source sentence to encode.
pub struct SourceRow<'a> {
    /// Its tokens, specials included.
    pub ids: &'a [u32],
    /// First of its rows in the cross cache.
    pub first: usize,
}

/// A token to decode one step further.
pub struct DecodeRow<'a> {
    /// The token.
    pub token: u32,
    /// Its position: tokens before it, the start token included.
    pub position: usize,
    /// Its own row in the cache.
    pub row: usize,
    /// Cache rows of all tokens up to this one, itself last.
    pub keys: KeyRows<'a>,
    /// First cross row and number of source tokens.
    pub source: (usize, usize),
}
