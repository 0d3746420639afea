//! Keys and values that decoding looks back on.

use crate::device::KeyRows;

/// Keys and values of every decoder layer. Rows are handed out by the decoder of sequences (`decode::slots`); memory
/// is taken from the system only as rows are first written.
pub struct Caches {
    /// Of generated tokens, by layer: `[rows, 2 * d_model]`, keys then values.
    pub own: Vec<Vec<f32>>,
    /// Of source tokens, by layer: `[rows, 2 * d_model]`, keys then values.
    pub cross: Vec<Vec<f32>>,
}

impl Caches {
    /// Caches of `layers` decoder layers with room for `own` generated and `cross` source tokens.
    pub fn new(layers: usize, d_model: usize, own: usize, cross: usize) -> Caches {
        let of = |rows: usize| (0..layers).map(|_| vec![0.0; rows * 2 * d_model]).collect();
        Caches {
            own: of(own),
            cross: of(cross),
        }
    }

    /// Bytes of a row over all layers, generated or source alike.
    pub fn row_bytes(layers: usize, d_model: usize) -> usize {
        layers * 2 * d_model * std::mem::size_of::<f32>()
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
