//! Transformers, one family a folder, over shared [`blocks`]. What stands behind [`EncoderDecoder`] knows tokens and
//! experts; sentences, beams and files are others' business.

pub mod blocks;
pub mod cache;
pub mod nllb_moe;

use crate::device::Linear;
use crate::moe::Context;
use cache::{CacheType, Caches, DecodeRow, SourceRow};

/// A model that reads a source and writes a target token by token. All calls are collective over the ranks of the
/// context's group: a rank without rows calls with none.
pub trait EncoderDecoder {
    /// Width of hidden states.
    fn d_model(&self) -> usize;
    /// Decoder layers, each with a cache.
    fn decoder_layers(&self) -> usize;
    /// What its caches hold keys and values in.
    fn cache_type(&self) -> CacheType;
    /// Names of the MoE layers: the encoder's, then the decoder's.
    fn moe_layers(&self) -> (Vec<String>, Vec<String>);
    /// Experts of each MoE layer, and experts a token.
    fn experts(&self) -> (usize, usize);
    /// Output projection, `[vocabulary, d_model]`.
    fn head(&self) -> &Linear;
    /// Encodes sentences and writes the decoder's cross keys and values into `caches`.
    fn encode(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches);
    /// Decodes one token further for each row; hidden states `[rows, d_model]` that the head takes.
    fn decode(&mut self, ctx: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32];
}
