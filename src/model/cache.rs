//! Keys and values that decoding looks back on.

use super::Shape;
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

/// Keys and values of one layer in planes of their own, so that neighbouring rows of either are one stretch of memory.
pub struct Planes<T> {
    /// `[rows, elements of keys]`
    pub keys: Vec<T>,
    /// `[rows, elements of values]`
    pub values: Vec<T>,
    row: [usize; 2],
}

/// Keys and values of one layer.
pub enum CacheRows {
    /// Of [`CacheType::F32`].
    F32(Planes<f32>),
    /// Of [`CacheType::Bf16`].
    Bf16(Planes<bf16>),
}

impl<T: Element + bytemuck::Zeroable> Planes<T> {
    fn new(rows: usize, row: [usize; 2]) -> Planes<T> {
        Planes {
            keys: bytemuck::zeroed_vec(rows * row[0]),
            values: bytemuck::zeroed_vec(rows * row[1]),
            row,
        }
    }

    fn store(&mut self, device: &Cpu, from: &[f32], stride: usize, rows: &[u32]) {
        let [keys, values] = self.row;
        device.store_rows(from, stride, keys, rows, &mut self.keys);
        if values > 0 {
            device.store_rows(&from[keys.min(from.len())..], stride, values, rows, &mut self.values);
        }
    }
}

impl CacheRows {
    /// Room for `rows` rows; memory is taken as it is written to.
    fn new(kind: CacheType, rows: usize, row: [usize; 2]) -> CacheRows {
        match kind {
            CacheType::F32 => CacheRows::F32(Planes::new(rows, row)),
            CacheType::Bf16 => CacheRows::Bf16(Planes::new(rows, row)),
        }
    }

    /// Writes row `i` of `from`, whose keys begin at `i * stride` and whose values stand behind them, into row `rows[i]`.
    pub fn store(&mut self, device: &Cpu, from: &[f32], stride: usize, rows: &[u32]) {
        match self {
            CacheRows::F32(to) => to.store(device, from, stride, rows),
            CacheRows::Bf16(to) => to.store(device, from, stride, rows),
        }
    }
}

/// Keys and values of the decoder layers. Rows are handed out by the decoder of sequences (`decode::slots`); memory is
/// taken from the system only as rows are first written.
pub struct Caches {
    own: Vec<CacheRows>,
    cross: Vec<CacheRows>,
    kind: CacheType,
    row: [usize; 2],
}

impl Caches {
    /// Caches of a model's layers with room for `own` tokens of the decoder and `cross` of the encoder.
    pub fn new(kind: CacheType, shape: &Shape, own: usize, cross: usize) -> Caches {
        Caches::of_layers(shape.layers, kind, shape, own, cross)
    }

    /// As [`Caches::new`], with one layer's rows for all of them: for tokens that no later call looks back on. What the
    /// encoder gave is every layer's own.
    pub fn passing(kind: CacheType, shape: &Shape, own: usize, cross: usize) -> Caches {
        Caches::of_layers(1, kind, shape, own, cross)
    }

    fn of_layers(layers: usize, kind: CacheType, shape: &Shape, own: usize, cross: usize) -> Caches {
        let of = |layers: usize, rows| {
            (0..layers)
                .map(|_| CacheRows::new(kind, rows, shape.cache_row))
                .collect()
        };
        Caches {
            own: of(layers, own),
            cross: of(if shape.encoder { shape.layers } else { 0 }, cross),
            kind,
            row: shape.cache_row,
        }
    }

    /// The rows of a layer's own tokens.
    pub fn own(&mut self, layer: usize) -> &mut CacheRows {
        let held = self.own.len();
        &mut self.own[layer % held]
    }

    /// The rows of what the encoder gave a layer.
    pub fn cross(&mut self, layer: usize) -> &mut CacheRows {
        &mut self.cross[layer]
    }

    /// Room for `own` tokens of the decoder and `cross` of the encoder in place of what there was, which is given back
    /// first: the two are never held together.
    pub fn replace(&mut self, own: usize, cross: usize) {
        for [own, cross] in [[0, 0], [own, cross]] {
            let own = self.own.iter_mut().map(|layer| (layer, own));
            let cross = self.cross.iter_mut().map(|layer| (layer, cross));
            for (layer, rows) in own.chain(cross) {
                *layer = CacheRows::new(self.kind, rows, self.row);
            }
        }
    }

    /// Bytes that all rows take, whether they were written to or not.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        let elements = |rows: &CacheRows| match rows {
            CacheRows::F32(planes) => planes.keys.len() + planes.values.len(),
            CacheRows::Bf16(planes) => planes.keys.len() + planes.values.len(),
        };
        let all: usize = self.own.iter().chain(&self.cross).map(elements).sum();
        (all * self.kind.bytes()) as u64
    }

    /// Bytes of a row of [`Caches::passing`].
    pub fn passing_row_bytes(kind: CacheType, shape: &Shape) -> u64 {
        let layers = if shape.encoder { shape.layers } else { 1 };
        (layers * shape.cache_row.iter().sum::<usize>() * kind.bytes()) as u64
    }

    /// Bytes of a row over all layers, of the decoder's tokens or the encoder's alike.
    pub fn row_bytes(kind: CacheType, shape: &Shape) -> u64 {
        (shape.layers * shape.cache_row.iter().sum::<usize>() * kind.bytes()) as u64
    }
}

/// A source to read: a sentence to encode, or a part of a prompt, whose last token is left to decoding.
pub struct SourceRow<'a> {
    /// Its tokens, specials included.
    pub ids: &'a [u32],
    /// Tokens of it that earlier calls have read; 0 with an encoder, which reads a source whole.
    pub before: usize,
    /// First of its rows in the cross cache, or in a decoder-only model's own: that of the first token of all.
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

/// An empty list with the memory of `rows`, for rows of another lifetime (`collect` keeps the allocation).
pub fn emptied<'a>(mut rows: Vec<KeyRows<'_>>) -> Vec<KeyRows<'a>> {
    rows.clear();
    rows.into_iter().map(|_| unreachable!("there are none")).collect()
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
