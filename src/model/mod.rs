//! Transformers, one family a file or folder, over shared [`blocks`]. What stands behind [`Model`] knows tokens and
//! experts; sentences, beams and files are others' business.

mod architecture;
pub mod blocks;
pub mod cache;
pub mod decoder;
pub mod deepseek;
pub mod deepseek_v2;
pub mod deepseek_v3;
pub mod encoder_decoder;
pub mod gpt_oss;
pub mod granitemoe;
pub mod inventory;
pub mod mixtral;
pub mod nllb_moe;
pub mod olmoe;
pub mod packed;
pub mod phimoe;
pub mod qwen2_moe;
pub mod qwen3_moe;
pub mod switch_transformers;

pub use architecture::{open, read_config, Architecture, Loading, Shape, SpecialTokens};

use crate::device::Linear;
use crate::moe::Context;
use cache::{CacheType, Caches, DecodeRow, SourceRow};

/// A model that reads and writes token by token. All calls are collective over the ranks of the context's group: a rank
/// without rows calls with none.
pub trait Model {
    /// Its sizes.
    fn shape(&self) -> &Shape;
    /// What its caches hold keys and values in.
    fn cache_type(&self) -> CacheType;
    /// Output projection, `[vocabulary, d_model]`.
    fn head(&self) -> &Linear;
    /// Bytes of the packed weights that this rank holds.
    fn bytes(&self) -> u64;
    /// Reads sources ahead of decoding: with an encoder, encodes them and writes the decoder's cross keys and values; a
    /// decoder-only model writes keys and values of the prompts into the cache of its own tokens.
    fn read(&mut self, ctx: &mut Context, sources: &[SourceRow], caches: &mut Caches);
    /// Decodes one token further for each row; hidden states `[rows, d_model]` that the head takes. Rows may belong
    /// together: keys and values of all are written before any attends, layer by layer.
    fn decode(&mut self, ctx: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32];
}
