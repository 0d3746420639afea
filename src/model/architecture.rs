//! What is known of a checkpoint before its weights are read: its family, sizes and tensors.

use super::decoder::{self, spec::Family};
use super::inventory::Expected;
use super::{
    deepseek, deepseek_v2, deepseek_v3, gpt_oss, granitemoe, mixtral, nllb_moe, olmoe, phimoe, qwen2_moe, qwen3_moe,
    switch_transformers, Model,
};
use crate::checkpoint::{read_json, Checkpoint, Fields};
use crate::device::Dtype;
use crate::moe::buffer::source::ExpertSource;
use anyhow::{bail, Result};
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Reads and checks a family's `config.json`; the path is named in errors.
type Read = fn(&Value, &Path) -> Result<Box<dyn Architecture>>;

/// The families with an encoder that are known, by `model_type` in `config.json`.
const ENCODER_DECODERS: &[(&str, Read)] = &[
    (nllb_moe::FAMILY, nllb_moe::architecture),
    (switch_transformers::FAMILY, switch_transformers::architecture),
];

/// The decoder-only families that are known.
const DECODERS: &[&Family] = &[
    &mixtral::FAMILY,
    &olmoe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &deepseek::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &gpt_oss::FAMILY,
    &granitemoe::FAMILY,
    &phimoe::FAMILY,
];

/// Sizes that a job needs, whatever the family.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Shape {
    /// Whether it has an encoder: what a source is turned into then lies in cross caches. A decoder-only model reads
    /// prompts into the cache of its own tokens.
    pub encoder: bool,
    /// Width of hidden states.
    pub d_model: usize,
    /// Rows of the output projection; may exceed the tokenizer's size.
    pub vocab_size: usize,
    /// Decoder layers, each with a cache.
    pub layers: usize,
    /// Elements of keys and of values in a cache row.
    pub cache_row: [usize; 2],
    /// Elements of a token's queries and of what they gather, where all tokens that are read at once have them in hand.
    pub attention: usize,
    /// Elements that attention takes besides, however many tokens are read at once.
    pub attention_scratch: usize,
    /// Names of the encoder's MoE layers.
    pub encoder_moe: Vec<String>,
    /// Names of the decoder's MoE layers, which are numbered after the encoder's.
    pub decoder_moe: Vec<String>,
    /// Experts of each MoE layer.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
    /// Inner width of the experts.
    pub d_ff: usize,
    /// Inner width of the widest dense feed-forward layer; 0 where all layers are sparse.
    pub d_dense: usize,
    /// A token that takes no position among tokens that are read at once (NLLB's padding, typed in a text).
    pub unnumbered: Option<u32>,
    /// Positions that the model was trained for, where it has an end; further ones are computed all the same.
    pub positions: Option<usize>,
    /// Positions that can be computed, where not all can.
    pub computed: Option<usize>,
}

impl Shape {
    /// Bytes that a token is turned into on its way through a layer, about: the residual stream, queries, keys, values, what
    /// attention gathers, rows and inner rows of its experts, and the inner row of a dense layer, which has a buffer of its own.
    pub fn activation_bytes(&self) -> u64 {
        let attention = self.d_model + self.attention + 2 * self.cache_row.iter().sum::<usize>();
        let experts = (self.top_k.max(1)) * (self.d_model + self.d_ff);
        (size_of::<f32>() * (2 * self.d_model + attention + experts + self.d_dense)) as u64
    }

    /// Bytes that a layer takes besides, however many tokens are read at once.
    pub fn scratch_bytes(&self) -> u64 {
        (size_of::<f32>() * self.attention_scratch) as u64
    }

    /// MoE layers, encoder and decoder.
    pub fn moe_layers(&self) -> usize {
        self.encoder_moe.len() + self.decoder_moe.len()
    }
}

/// Special tokens as `config.json` has them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecialTokens {
    /// Ends of an output.
    pub eos: Vec<u32>,
    /// Beginning of a text.
    pub bos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// The first token that a decoder beside an encoder reads.
    pub decoder_start: Option<u32>,
}

/// How weights are to be read, and by whom.
pub struct Loading<'a> {
    /// The folder.
    pub checkpoint: &'a Arc<Checkpoint>,
    /// What weights are held in.
    pub dtype: Dtype,
    /// Threads that pack them.
    pub threads: usize,
    /// This rank among those that hold the model together, which take a block of the experts each.
    pub rank: usize,
    /// Those ranks.
    pub ranks: usize,
    /// Whether experts are left to a buffer, not read.
    pub buffered: bool,
    /// Called with the layers that are read and those that there are.
    pub progress: &'a mut dyn FnMut(usize, usize),
}

/// A family's `config.json`, read and checked.
pub trait Architecture: Send + Sync {
    /// `model_type`, as users know the family.
    fn family(&self) -> &'static str;
    /// Its sizes.
    fn shape(&self) -> &Shape;
    /// Its special tokens.
    fn special_tokens(&self) -> &SpecialTokens;
    /// All tensors that the checkpoint must hold, each once. `stored` says whether it has a tensor of a name, where a
    /// family's checkpoints come with different ones.
    fn inventory(&self, stored: &dyn Fn(&str) -> bool) -> Vec<Expected>;
    /// Why a tensor that is not in the inventory contradicts the configuration; `None` for one that may be passed over.
    fn surplus(&self, tensor: &str) -> Option<String>;
    /// What the user should know before a run.
    fn warnings(&self) -> Vec<String>;
    /// Reads the dense weights and this rank's experts from a checkpoint that [`open`] has passed.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds a NaN: names file, tensor and place.
    fn load(&self, loading: Loading<'_>) -> Result<Box<dyn Model>>;
    /// The experts of a checkpoint that [`open`] has passed, to be packed by `threads` threads.
    fn experts(&self, checkpoint: &Arc<Checkpoint>, dtype: Dtype, threads: usize) -> Arc<dyn ExpertSource>;
}

/// Opens a folder's `config.json` and compares its checkpoint with it, by headers alone.
///
/// # Errors
/// When a file is missing or torn, the family is unknown (the known ones are named), the configuration is none that is
/// computed here, or a tensor is missing, of another shape, or has no place.
pub fn open(dir: &Path) -> Result<(Arc<Checkpoint>, Box<dyn Architecture>)> {
    let checkpoint = Arc::new(Checkpoint::open(dir)?);
    let architecture = read_config(dir)?;
    let expected = architecture.inventory(&|name| checkpoint.info(name).is_some());
    super::inventory::check(&checkpoint, &expected, |name| architecture.surplus(name))?;
    Ok((checkpoint, architecture))
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// As [`open`], the tensors aside.
pub fn read_config(dir: &Path) -> Result<Box<dyn Architecture>> {
    let (config, path) = (read_json(dir, "config.json")?, dir.join("config.json"));
    let fields = Fields::new(&config, &path)?;
    let name = fields.text("model_type")?;
    if let Some((_, read)) = ENCODER_DECODERS.iter().find(|(known, _)| Some(*known) == name) {
        return read(&config, &path);
    }
    match DECODERS.iter().find(|family| Some(family.name) == name) {
        Some(family) => decoder::architecture(&config, &path, family),
        None => bail!(fields.refuse(
            "model_type",
            &format!("one of the families that are known: {}", known())
        )),
    }
}

fn known() -> String {
    let names = ENCODER_DECODERS.iter().map(|(name, _)| *name);
    let names: Vec<&str> = names.chain(DECODERS.iter().map(|family| family.name)).collect();
    names.join(", ")
}
