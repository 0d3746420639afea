//! `config.json` of a Switch Transformers checkpoint.

use std::path::Path;

use anyhow::{bail, ensure, Result};
use serde_json::Value;

use super::{FAMILY, NAMES};
use crate::checkpoint::Fields;
use crate::model::encoder_decoder::spec::{Positions, StackSpec};
use crate::model::encoder_decoder::{Spec, Stack};
use crate::model::SpecialTokens;
use crate::moe::gate::Rule;

/// The keys that shape what a Switch Transformers model computes, under their names in `config.json`.
///
/// Defaults of absent keys are those of `SwitchTransformersConfig` in transformers 5.23; sizes have none and must be there.
#[derive(Clone, Debug, PartialEq)]
pub struct SwitchTransformersConfig {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of an attention head; all heads together may be wider or narrower than the residual stream.
    pub d_kv: usize,
    /// Inner width of the feed-forward layers, dense and expert alike.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub num_layers: usize,
    /// Layers of the decoder; as many as the encoder's where the key is missing.
    pub num_decoder_layers: usize,
    /// Attention heads of each layer.
    pub num_heads: usize,
    /// Experts of each sparse layer.
    pub num_experts: usize,
    /// Every how many encoder layers one is sparse; `num_layers / num_sparse_encoder_layers` where the key is missing.
    pub encoder_sparse_step: usize,
    /// Every how many decoder layers one is sparse; `num_decoder_layers / num_sparse_decoder_layers` where the key is
    /// missing.
    pub decoder_sparse_step: usize,
    /// Tokens of one sentence that an expert takes in the reference.
    pub expert_capacity: usize,
    /// Whether routers have a bias.
    pub router_bias: bool,
    /// Buckets of relative positions.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Added to the mean square in norms.
    pub layer_norm_epsilon: f32,
    /// Rows of the embedding; may exceed the tokenizer's size.
    pub vocab_size: usize,
    /// The decoder's first token.
    pub decoder_start_token_id: Option<u32>,
    /// Padding.
    pub pad_token_id: u32,
    /// Ends of an output.
    pub eos_token_id: Vec<u32>,
}

impl SwitchTransformersConfig {
    /// Reads and checks a configuration; `path` is named in errors.
    ///
    /// # Errors
    /// Names the key: another model type, a missing or absurd size, an id outside the vocabulary, or a setting under
    /// which this program would compute something else than the reference.
    pub fn from_json(value: &Value, path: &Path) -> Result<SwitchTransformersConfig> {
        let fields = Fields::new(value, path)?;
        check_kind(&fields)?;
        let (width, layers) = (1..=1 << 20, 1..=1 << 12);
        let num_layers = fields.need_whole("num_layers", layers.clone())?;
        let num_decoder_layers = fields.whole("num_decoder_layers", layers)?.unwrap_or(num_layers);
        let config = SwitchTransformersConfig {
            d_model: fields.need_whole("d_model", width.clone())?,
            d_kv: fields.need_whole("d_kv", width.clone())?,
            d_ff: fields.need_whole("d_ff", width.clone())?,
            num_layers,
            num_decoder_layers,
            num_heads: fields.need_whole("num_heads", width)?,
            num_experts: fields.need_whole("num_experts", 0..=1 << 16)?,
            encoder_sparse_step: sparse_step(&fields, Stack::Encoder, num_layers)?,
            decoder_sparse_step: sparse_step(&fields, Stack::Decoder, num_decoder_layers)?,
            expert_capacity: fields.whole("expert_capacity", 0..=1 << 40)?.unwrap_or(64),
            router_bias: fields.switch("router_bias")?.unwrap_or(false),
            relative_attention_num_buckets: fields
                .whole("relative_attention_num_buckets", 4..=1 << 16)?
                .unwrap_or(32),
            relative_attention_max_distance: fields
                .whole("relative_attention_max_distance", 1..=1 << 20)?
                .unwrap_or(128),
            layer_norm_epsilon: fields.number("layer_norm_epsilon")?.unwrap_or(1e-6) as f32,
            vocab_size: fields.need_whole("vocab_size", 2..=1 << 28)?,
            decoder_start_token_id: fields.token("decoder_start_token_id")?,
            pad_token_id: fields.token("pad_token_id")?.unwrap_or(0),
            eos_token_id: fields.tokens("eos_token_id")?.unwrap_or(vec![1]),
        };
        config.check_sizes(&fields)?;
        Ok(config)
    }

    /// The model that this configures.
    pub fn spec(&self) -> Spec {
        let stack = |layers, layers_key, sparse_step| StackSpec {
            sparse: (0..layers).map(|i| is_sparse(i, sparse_step)).collect(),
            d_ff: self.d_ff,
            heads: self.num_heads,
            head_dim: self.d_kv,
            attention_scale: 1.0,
            layers_key,
            sparse_step,
        };
        Spec {
            family: FAMILY,
            names: &NAMES,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            embedding_scale: 1.0,
            positions: Positions::Relative {
                module: "relative_attention_bias",
                buckets: self.relative_attention_num_buckets,
                max_distance: self.relative_attention_max_distance,
            },
            biases: false,
            eps: self.layer_norm_epsilon,
            encoder: stack(self.num_layers, "num_layers", self.encoder_sparse_step),
            decoder: stack(self.num_decoder_layers, "num_decoder_layers", self.decoder_sparse_step),
            experts: self.num_experts,
            rule: Rule::Softmax {
                top_k: 1,
                groups: None,
                renormalise: false,
                factor: 1.0,
            },
            router_bias: self.router_bias,
            moe_scale: 1.0,
            head_scale: (self.d_model as f32).powf(-0.5),
        }
    }

    /// Special tokens.
    pub fn special_tokens(&self) -> SpecialTokens {
        SpecialTokens {
            eos: self.eos_token_id.clone(),
            bos: None,
            pad: Some(self.pad_token_id),
            decoder_start: self.decoder_start_token_id,
        }
    }

    /// A warning that the reference implementation may drop tokens; `None` where there are no experts.
    ///
    /// Nothing is dropped here: results are those of the reference with an `expert_capacity` that no sentence reaches.
    pub fn drops_tokens(&self) -> Option<String> {
        let sparse = !self.spec().moe_layers().is_empty();
        sparse.then(|| {
            format!(
                "config.json: `expert_capacity` is {0}: in a sentence of more than {0} tokens the reference may drop those \
                 that overflow an expert; none are dropped here, as with a capacity that no sentence reaches",
                self.expert_capacity
            )
        })
    }

    /// What no single key shows to be wrong.
    fn check_sizes(&self, fields: &Fields<'_>) -> Result<()> {
        ensure!(
            self.num_experts > 0 || self.spec().moe_layers().is_empty(),
            fields.refuse("num_experts", "at least 1: there are sparse layers")
        );
        // Otherwise the last bucket begins before those of a single distance end.
        let near = self.relative_attention_num_buckets / 2;
        ensure!(
            self.relative_attention_max_distance > near,
            fields.refuse(
                "relative_attention_max_distance",
                &format!("more than half of relative_attention_num_buckets ({near})")
            )
        );
        ensure!(
            self.layer_norm_epsilon > 0.0,
            fields.refuse("layer_norm_epsilon", "a number above 0")
        );
        let ends = self.eos_token_id.iter().map(|&id| ("eos_token_id", id));
        let start = self.decoder_start_token_id.map(|id| ("decoder_start_token_id", id));
        for (key, id) in ends.chain(start).chain([("pad_token_id", self.pad_token_id)]) {
            ensure!(
                (id as usize) < self.vocab_size,
                fields.refuse(key, &format!("below vocab_size ({})", self.vocab_size))
            );
        }
        Ok(())
    }
}

/// Whether layer `i` is sparse: has a router and experts in place of one feed-forward layer.
fn is_sparse(i: usize, step: usize) -> bool {
    step == 1 || (step > 1 && i % step == 1)
}

/// Every how many of a stack's `layers` one is sparse. With no sparse layers at all the reference's step is `layers`,
/// which makes the second one sparse nevertheless.
fn sparse_step(fields: &Fields<'_>, stack: Stack, layers: usize) -> Result<usize> {
    let sparse = fields.whole(&format!("num_sparse_{}_layers", stack.name()), 0..=1 << 12)?;
    let step = layers.checked_div(sparse.unwrap_or(3)).unwrap_or(layers);
    let stored = fields.whole(&format!("{}_sparse_step", stack.name()), 0..=1 << 12)?;
    Ok(stored.unwrap_or(step))
}

/// Settings of which only one value is computed here.
fn check_kind(fields: &Fields<'_>) -> Result<()> {
    match fields.text("model_type")? {
        Some(FAMILY) => {}
        _ => bail!(fields.refuse("model_type", &format!("\"{FAMILY}\""))),
    }
    for (key, only) in [("dense_act_fn", "relu"), ("router_dtype", "float32")] {
        if fields.text(key)?.is_some_and(|found| found != only) {
            bail!(fields.refuse(key, &format!("\"{only}\", the only one that is supported")));
        }
    }
    // The reference has encoder, decoder and output embed apart then.
    if fields.switch("tie_word_embeddings")? == Some(false) {
        bail!(fields.refuse("tie_word_embeddings", "true: separate embeddings are not supported"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::inventory::Owner;
    use serde_json::json;

    fn small() -> Value {
        json!({
            "model_type": "switch_transformers", "d_model": 6, "d_kv": 4, "d_ff": 10, "num_layers": 4,
            "num_decoder_layers": 3, "num_heads": 2, "num_experts": 5, "num_sparse_encoder_layers": 2,
            "num_sparse_decoder_layers": 1, "vocab_size": 40, "decoder_start_token_id": 0, "pad_token_id": 0,
            "eos_token_id": 1,
        })
    }

    fn with(key: &str, value: Value) -> Result<SwitchTransformersConfig> {
        let mut config = small();
        config[key] = value;
        SwitchTransformersConfig::from_json(&config, Path::new("m/config.json"))
    }

    fn sparse(config: &SwitchTransformersConfig) -> Vec<(Stack, usize)> {
        config.spec().moe_layers()
    }

    #[test]
    fn sizes_are_read_and_the_rest_has_the_references_defaults() {
        let config = with("expert_capacity", Value::Null).unwrap();
        assert_eq!(
            (config.relative_attention_num_buckets, config.expert_capacity),
            (32, 64)
        );
        assert_eq!((config.layer_norm_epsilon, config.router_bias), (1e-6, false));
        let shape = config.spec().shape();
        assert_eq!((shape.cache_row, shape.layers, shape.top_k), ([8, 8], 3, 1));
        assert_eq!((shape.d_dense, shape.d_ff), (config.d_ff, config.d_ff));
        assert_eq!(shape.encoder_moe, ["encoder.block.1", "encoder.block.3"]);
        assert_eq!(shape.decoder_moe, ["decoder.block.1"]);
        let special = config.special_tokens();
        assert_eq!((special.eos, special.decoder_start), (vec![1], Some(0)));
        assert_eq!(with("eos_token_id", json!([1, 7])).unwrap().eos_token_id, [1, 7]);
    }

    /// As transformers 5.23 places them, layer counts that don't divide and zeros included.
    #[test]
    fn sparse_layers_lie_where_the_reference_has_them() {
        for (key, value, encoder) in [
            ("num_sparse_encoder_layers", 4, vec![0, 1, 2, 3]),
            ("num_sparse_encoder_layers", 3, vec![0, 1, 2, 3]),
            ("num_sparse_encoder_layers", 2, vec![1, 3]),
            ("num_sparse_encoder_layers", 1, vec![1]),
            ("num_sparse_encoder_layers", 0, vec![1]),
            ("num_sparse_encoder_layers", 5, vec![]),
            ("encoder_sparse_step", 3, vec![1]),
            ("encoder_sparse_step", 1, vec![0, 1, 2, 3]),
        ] {
            let config = with(key, json!(value)).unwrap();
            let found: Vec<usize> = sparse(&config)
                .into_iter()
                .filter(|l| l.0 == Stack::Encoder)
                .map(|l| l.1)
                .collect();
            assert_eq!(found, encoder, "{key} = {value}");
        }
        let symmetric = with("num_decoder_layers", Value::Null).unwrap();
        assert_eq!(symmetric.num_decoder_layers, 4);
    }

    #[test]
    fn the_inventory_has_heads_of_their_own_width_and_one_bias_a_stack() {
        let inventory = with("router_bias", json!(true)).unwrap().spec().inventory();
        let of = |name: &str| {
            inventory
                .iter()
                .find(|t| t.name == name)
                .map(|t| (t.shape.clone(), t.owner))
        };
        let dense = |shape: &[usize]| Some((shape.to_vec(), Owner::Dense));
        assert_eq!(of("shared.weight"), dense(&[40, 6]));
        assert_eq!(of("lm_head.weight"), None);
        assert_eq!(of("encoder.block.2.layer.0.SelfAttention.q.weight"), dense(&[8, 6]));
        assert_eq!(of("decoder.block.2.layer.1.EncDecAttention.o.weight"), dense(&[6, 8]));
        assert_eq!(of("encoder.block.0.layer.1.mlp.wi.weight"), dense(&[10, 6]));
        assert_eq!(of("decoder.block.1.layer.2.mlp.router.classifier.bias"), dense(&[5]));
        let expert = Owner::Expert { layer: 2, expert: 4 };
        assert_eq!(
            of("decoder.block.1.layer.2.mlp.experts.expert_4.wo.weight"),
            Some((vec![6, 10], expert))
        );
        let biases: Vec<&str> = inventory
            .iter()
            .map(|t| &*t.name)
            .filter(|n| n.contains("relative"))
            .collect();
        let module = "block.0.layer.0.SelfAttention.relative_attention_bias.weight";
        assert_eq!(biases, [format!("encoder.{module}"), format!("decoder.{module}")]);
        assert_eq!(of(biases[1]), dense(&[32, 2]));
    }

    #[test]
    fn tensors_without_a_place_are_told_from_those_that_the_reference_passes_over() {
        let spec = with("d_ff", json!(10)).unwrap().spec();
        for (tensor, why) in [
            ("encoder.block.4.layer.0.layer_norm.weight", "`num_layers` is 4"),
            ("decoder.block.3.layer.0.layer_norm.weight", "`num_decoder_layers` is 3"),
            (
                "encoder.block.1.layer.1.mlp.experts.expert_5.wi.weight",
                "`num_experts` is 5",
            ),
            (
                "encoder.block.2.layer.1.mlp.experts.expert_0.wi.weight",
                "`encoder_sparse_step` 2, layer 2",
            ),
            (
                "decoder.block.1.layer.2.mlp.router.classifier.bias",
                "`router_bias` is false",
            ),
            ("encoder.block.0.layer.1.mlp.wi_0.weight", "no such part"),
            (
                "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
                "no such part",
            ),
        ] {
            let found = spec.surplus(tensor).expect(tensor);
            assert!(found.contains(why), "{tensor}: {found}");
        }
        for tensor in [
            "lm_head.weight",
            "encoder.embed_tokens.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ] {
            assert_eq!(spec.surplus(tensor), None, "{tensor}");
        }
    }

    #[test]
    fn each_bad_value_is_named_by_its_key() {
        for (key, value) in [
            ("model_type", json!("t5")),
            ("d_model", json!(0)),
            ("d_kv", json!(null)),
            ("d_ff", json!(-1)),
            ("num_layers", json!("four")),
            ("num_decoder_layers", json!(0)),
            ("num_heads", json!(0)),
            ("num_experts", json!(0)),
            ("vocab_size", json!(1)),
            ("pad_token_id", json!(40)),
            ("eos_token_id", json!([1, 40])),
            ("eos_token_id", json!([])),
            ("decoder_start_token_id", json!(-1)),
            ("relative_attention_num_buckets", json!(3)),
            ("relative_attention_max_distance", json!(16)),
            ("layer_norm_epsilon", json!(0.0)),
            ("dense_act_fn", json!("gated-gelu")),
            ("router_dtype", json!("bfloat16")),
            ("tie_word_embeddings", json!(false)),
            ("tie_word_embeddings", json!("yes")),
        ] {
            let error = format!("{:#}", with(key, value.clone()).expect_err(&format!("{key} = {value}")));
            assert!(
                error.contains("m/config.json") && error.contains(&format!("`{key}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn that_none_are_dropped_is_told_wherever_the_reference_may() {
        let warning = with("expert_capacity", json!(4)).unwrap().drops_tokens().unwrap();
        assert!(warning.contains("`expert_capacity` is 4") && warning.contains("more than 4 tokens"));
        let mut dense = small();
        for key in ["encoder_sparse_step", "decoder_sparse_step", "num_experts"] {
            dense[key] = json!(0);
        }
        let dense = SwitchTransformersConfig::from_json(&dense, Path::new("c")).unwrap();
        assert_eq!(dense.drops_tokens(), None);
    }
}
