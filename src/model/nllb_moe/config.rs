//! `config.json` of an NLLB-MoE checkpoint.

use std::path::Path;

use anyhow::{bail, ensure, Result};
use serde_json::Value;

use super::names::{self, Stack};
use crate::checkpoint::{Fields, StoredDtype};
use crate::model::{Shape, SpecialTokens};

/// Experts that a token goes to.
pub const TOP_K: usize = 2;

/// The keys that shape what an NLLB-MoE model computes, under their names in `config.json`.
///
/// Defaults of absent keys are those of `NllbMoeConfig` in transformers 4.57; sizes have none and must be there.
#[derive(Clone, Debug, PartialEq)]
pub struct NllbMoeConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Attention heads in each encoder layer.
    pub encoder_attention_heads: usize,
    /// Attention heads in each decoder layer, self and cross.
    pub decoder_attention_heads: usize,
    /// Inner width of the encoder's FFNs, dense and expert alike.
    pub encoder_ffn_dim: usize,
    /// Inner width of the decoder's FFNs, dense and expert alike.
    pub decoder_ffn_dim: usize,
    /// Every how many encoder layers one is sparse; 0 for none.
    pub encoder_sparse_step: usize,
    /// Every how many decoder layers one is sparse; 0 for none.
    pub decoder_sparse_step: usize,
    /// Experts of each sparse layer.
    pub num_experts: usize,
    /// Rows of the embedding; may exceed the tokenizer's size.
    pub vocab_size: usize,
    /// Positions that the model was trained for; the sinusoid itself has no end.
    pub max_position_embeddings: usize,
    /// Whether embeddings are multiplied by sqrt(d_model).
    pub scale_embedding: bool,
    /// The outputs of sparse layers are multiplied by 1 minus this, at inference too.
    pub moe_token_dropout: f32,
    /// Whether routers have a bias.
    pub router_bias: bool,
    /// Whether the two gates are normalised before tokens are dropped; no difference where none are.
    pub normalize_router_prob_before_dropping: bool,
    /// The reference's expert capacity at inference, as a share of a batch's tokens.
    pub moe_eval_capacity_token_fraction: f64,
    /// The reference's expert capacity in tokens, used where the fraction is 0 or less.
    pub expert_capacity: usize,
    /// The decoder's first token.
    pub decoder_start_token_id: u32,
    /// Padding.
    pub pad_token_id: u32,
    /// End of sentence.
    pub eos_token_id: u32,
    /// Beginning of sentence.
    pub bos_token_id: u32,
    /// The type that `dtype` (or `torch_dtype`) names; what is stored is the checkpoint's to say.
    pub dtype: Option<StoredDtype>,
}

impl NllbMoeConfig {
    /// Reads and checks a configuration; `path` is named in errors.
    ///
    /// # Errors
    /// Names the key: another model type, a missing or absurd size, an id outside the vocabulary, or a setting under
    /// which this program would compute something else than the reference.
    pub fn from_json(value: &Value, path: &Path) -> Result<NllbMoeConfig> {
        let fields = Fields::new(value, path)?;
        check_kind(&fields)?;
        let width = 1..=1 << 20;
        let layers = 1..=1 << 12;
        let id = |key, default| -> Result<u32> { Ok(fields.token(key)?.unwrap_or(default)) };
        let dtype_key = if fields.value("dtype").is_some() {
            "dtype"
        } else {
            "torch_dtype"
        };
        let config = NllbMoeConfig {
            d_model: fields.need_whole("d_model", 4..=1 << 20)?,
            encoder_layers: fields.need_whole("encoder_layers", layers.clone())?,
            decoder_layers: fields.need_whole("decoder_layers", layers.clone())?,
            encoder_attention_heads: fields.need_whole("encoder_attention_heads", width.clone())?,
            decoder_attention_heads: fields.need_whole("decoder_attention_heads", width.clone())?,
            encoder_ffn_dim: fields.need_whole("encoder_ffn_dim", width.clone())?,
            decoder_ffn_dim: fields.need_whole("decoder_ffn_dim", width)?,
            encoder_sparse_step: fields.need_whole("encoder_sparse_step", 0..=*layers.end())?,
            decoder_sparse_step: fields.need_whole("decoder_sparse_step", 0..=*layers.end())?,
            num_experts: fields.need_whole("num_experts", 0..=1 << 16)?,
            vocab_size: fields.need_whole("vocab_size", 4..=1 << 28)?,
            max_position_embeddings: fields.whole("max_position_embeddings", 1..=1 << 28)?.unwrap_or(1024),
            scale_embedding: fields.switch("scale_embedding")?.unwrap_or(true),
            moe_token_dropout: fields.number("moe_token_dropout")?.unwrap_or(0.2) as f32,
            router_bias: fields.switch("router_bias")?.unwrap_or(false),
            normalize_router_prob_before_dropping: fields
                .switch("normalize_router_prob_before_dropping")?
                .unwrap_or(false),
            moe_eval_capacity_token_fraction: fields.number("moe_eval_capacity_token_fraction")?.unwrap_or(1.0),
            expert_capacity: fields.whole("expert_capacity", 0..=1 << 40)?.unwrap_or(64),
            decoder_start_token_id: id("decoder_start_token_id", 2)?,
            pad_token_id: id("pad_token_id", 1)?,
            eos_token_id: id("eos_token_id", 2)?,
            bos_token_id: id("bos_token_id", 0)?,
            dtype: fields.text(dtype_key)?.and_then(StoredDtype::from_name),
        };
        config.check_sizes(&fields)?;
        Ok(config)
    }

    /// Whether layer `i` of a stack is sparse: has a router and experts in place of one FFN.
    pub fn is_sparse(&self, stack: Stack, i: usize) -> bool {
        let step = match stack {
            Stack::Encoder => self.encoder_sparse_step,
            Stack::Decoder => self.decoder_sparse_step,
        };
        step > 0 && (i + 1).is_multiple_of(step)
    }

    /// Layers of a stack.
    pub fn layers(&self, stack: Stack) -> usize {
        match stack {
            Stack::Encoder => self.encoder_layers,
            Stack::Decoder => self.decoder_layers,
        }
    }

    /// Inner width of a stack's FFNs and experts.
    pub fn ffn_dim(&self, stack: Stack) -> usize {
        match stack {
            Stack::Encoder => self.encoder_ffn_dim,
            Stack::Decoder => self.decoder_ffn_dim,
        }
    }

    /// Attention heads of a stack.
    pub fn attention_heads(&self, stack: Stack) -> usize {
        match stack {
            Stack::Encoder => self.encoder_attention_heads,
            Stack::Decoder => self.decoder_attention_heads,
        }
    }

    /// The sparse layers in the order in which MoE layers are counted: encoder first.
    pub fn moe_layers(&self) -> Vec<(Stack, usize)> {
        let of = |stack| (0..self.layers(stack)).map(move |i| (stack, i));
        Stack::BOTH
            .into_iter()
            .flat_map(of)
            .filter(|&(stack, i)| self.is_sparse(stack, i))
            .collect()
    }

    /// The sizes that jobs need.
    pub fn shape(&self) -> Shape {
        let names = |stack: Stack| {
            let sparse = (0..self.layers(stack)).filter(|&i| self.is_sparse(stack, i));
            sparse.map(|i| names::moe_layer(stack, i)).collect()
        };
        Shape {
            encoder: true,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            layers: self.decoder_layers,
            cache_row: [self.d_model; 2],
            encoder_moe: names(Stack::Encoder),
            decoder_moe: names(Stack::Decoder),
            experts: self.num_experts,
            top_k: TOP_K,
            positions: None,
        }
    }

    /// Special tokens.
    pub fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens {
            eos: vec![self.eos_token_id],
            bos: Some(self.bos_token_id),
            pad: Some(self.pad_token_id),
            decoder_start: Some(self.decoder_start_token_id),
        }
    }

    /// A warning if the reference implementation would drop tokens with this configuration; `None` if it never would.
    ///
    /// Nothing is dropped here: results are those of the reference with
    /// `moe_eval_capacity_token_fraction: 1.0`, under which an expert has room for every token.
    pub fn drops_tokens(&self) -> Option<String> {
        let fraction = self.moe_eval_capacity_token_fraction;
        let capacity = if fraction >= 1.0 {
            return None;
        } else if fraction > 0.0 {
            format!("`moe_eval_capacity_token_fraction` is {fraction}")
        } else {
            format!(
                "`moe_eval_capacity_token_fraction` is {fraction} and `expert_capacity` {}",
                self.expert_capacity
            )
        };
        Some(format!(
            "config.json: {capacity}: the reference would drop tokens that overflow an expert, depending on the batch; \
             none are dropped here, as with a fraction of 1.0"
        ))
    }

    /// What no single key shows to be wrong.
    fn check_sizes(&self, fields: &Fields<'_>) -> Result<()> {
        // The sinusoid has d_model / 2 frequencies for sine and cosine each.
        ensure!(
            self.d_model.is_multiple_of(2),
            fields.refuse("d_model", "an even number")
        );
        for stack in Stack::BOTH {
            let key = format!("{}_attention_heads", stack.name());
            let divides = self.d_model.is_multiple_of(self.attention_heads(stack));
            ensure!(
                divides,
                fields.refuse(&key, &format!("a number that divides d_model ({})", self.d_model))
            );
        }
        if !self.moe_layers().is_empty() {
            let enough = self.num_experts >= TOP_K;
            ensure!(
                enough,
                fields.refuse(
                    "num_experts",
                    &format!("at least {TOP_K}: every token goes to {TOP_K} experts")
                )
            );
        }
        ensure!(
            (0.0..1.0).contains(&self.moe_token_dropout),
            fields.refuse("moe_token_dropout", "a number from 0 to below 1")
        );
        for (key, id) in [
            ("decoder_start_token_id", self.decoder_start_token_id),
            ("pad_token_id", self.pad_token_id),
            ("eos_token_id", self.eos_token_id),
            ("bos_token_id", self.bos_token_id),
        ] {
            let known = (id as usize) < self.vocab_size;
            ensure!(
                known,
                fields.refuse(key, &format!("an id below vocab_size ({})", self.vocab_size))
            );
        }
        Ok(())
    }
}

/// Settings of which only one value is computed here.
fn check_kind(fields: &Fields<'_>) -> Result<()> {
    match fields.text("model_type")? {
        Some("nllb-moe") => {}
        _ => bail!(fields.refuse("model_type", "\"nllb-moe\"")),
    }
    for (key, only) in [
        ("activation_function", "relu"),
        ("second_expert_policy", "all"),
        ("router_dtype", "float32"),
    ] {
        if fields.text(key)?.is_some_and(|found| found != only) {
            bail!(fields.refuse(key, &format!("\"{only}\", the only one that is supported")));
        }
    }
    if fields.switch("tie_word_embeddings")? == Some(false) {
        bail!(fields.refuse(
            "tie_word_embeddings",
            "true: separate output embeddings are not supported"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn small() -> Value {
        json!({
            "model_type": "nllb-moe", "d_model": 16, "encoder_layers": 4, "decoder_layers": 3,
            "encoder_attention_heads": 4, "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 20,
            "encoder_sparse_step": 2, "decoder_sparse_step": 3, "num_experts": 5, "vocab_size": 40,
            "decoder_start_token_id": 2, "pad_token_id": 1, "eos_token_id": 2, "bos_token_id": 0,
            "dtype": "bfloat16",
        })
    }

    fn with(key: &str, value: Value) -> Result<NllbMoeConfig> {
        let mut config = small();
        config[key] = value;
        NllbMoeConfig::from_json(&config, Path::new("m/config.json"))
    }

    #[test]
    fn sizes_are_read_and_the_rest_has_the_references_defaults() {
        let config = NllbMoeConfig::from_json(&small(), Path::new("m/config.json")).unwrap();
        assert_eq!((config.d_model, config.num_experts, config.vocab_size), (16, 5, 40));
        assert_eq!(
            (config.moe_token_dropout, config.scale_embedding, config.router_bias),
            (0.2, true, false)
        );
        assert_eq!(config.dtype, Some(StoredDtype::Bf16));
        assert_eq!(
            config.moe_layers(),
            [(Stack::Encoder, 1), (Stack::Encoder, 3), (Stack::Decoder, 2)]
        );
        assert_eq!(config.drops_tokens(), None);
    }

    #[test]
    fn a_step_of_zero_means_no_sparse_layer() {
        let config = with("encoder_sparse_step", json!(0)).unwrap();
        assert_eq!(config.moe_layers(), [(Stack::Decoder, 2)]);
        let mut dense = small();
        for key in ["encoder_sparse_step", "decoder_sparse_step", "num_experts"] {
            dense[key] = json!(0);
        }
        assert_eq!(
            NllbMoeConfig::from_json(&dense, Path::new("c")).unwrap().moe_layers(),
            []
        );
    }

    #[test]
    fn each_bad_value_is_named_by_its_key() {
        for (key, value) in [
            ("model_type", json!("mixtral")),
            ("model_type", json!(null)),
            ("d_model", json!(0)),
            ("d_model", json!(-16)),
            ("d_model", json!(null)),
            ("d_model", json!(15)),
            ("encoder_layers", json!(0)),
            ("decoder_layers", json!("three")),
            ("decoder_layers", json!(1u64 << 50)),
            ("encoder_attention_heads", json!(3)),
            ("decoder_attention_heads", json!(0)),
            ("num_experts", json!(0)),
            ("num_experts", json!(1)),
            ("vocab_size", json!(-1)),
            ("pad_token_id", json!(40)),
            ("eos_token_id", json!(-1)),
            ("moe_token_dropout", json!(1.0)),
            ("activation_function", json!("gelu")),
            ("second_expert_policy", json!("sampling")),
            ("router_dtype", json!("bfloat16")),
            ("tie_word_embeddings", json!(false)),
            ("scale_embedding", json!("yes")),
        ] {
            let error = format!("{:#}", with(key, value.clone()).expect_err(&format!("{key} = {value}")));
            assert!(
                error.contains("m/config.json") && error.contains(&format!("`{key}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_capacity_that_may_overflow_is_warned_of() {
        for (fraction, warns) in [(1.0, false), (2.0, false), (0.4, true), (0.0, true), (-1.0, true)] {
            let config = with("moe_eval_capacity_token_fraction", json!(fraction)).unwrap();
            assert_eq!(config.drops_tokens().is_some(), warns, "{fraction}");
        }
    }
}
