//! Keys of `config.json` that decoder-only families share, as the hub's files and transformers 5 have them.

use super::rope::{Rope, Scaling, Yarn};
use super::spec::{Grouped, QkNorm};
use crate::checkpoint::Fields;
use crate::model::SpecialTokens;
use crate::moe::gate::Rule;
use anyhow::{bail, ensure, Result};
use serde_json::Value;
use std::path::Path;

/// Widths.
const WIDTH: std::ops::RangeInclusive<usize> = 1..=1 << 20;

/// A `config.json`.
pub struct Config<'a> {
    /// Its keys.
    pub fields: Fields<'a>,
    path: &'a Path,
}

impl<'a> Config<'a> {
    /// The keys of `value`; `path` is named in errors.
    ///
    /// # Errors
    /// If it is no object, or has settings under which no family here is computed: another activation than silu.
    pub fn new(value: &'a Value, path: &'a Path) -> Result<Config<'a>> {
        let config = Config {
            fields: Fields::new(value, path)?,
            path,
        };
        config.only("hidden_act", "silu")?;
        Ok(config)
    }

    /// A width or count that must be there.
    ///
    /// # Errors
    /// If it is not, or is none from 1 to 2^20.
    pub fn width(&self, key: &str) -> Result<usize> {
        self.fields.need_whole(key, WIDTH)
    }

    /// A width or count that may be absent.
    ///
    /// # Errors
    /// If it is none from 1 to 2^20.
    pub fn width_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.fields.whole(key, WIDTH)?.unwrap_or(default))
    }

    /// The number of layers.
    ///
    /// # Errors
    /// If it is missing, or none from 1 to 4096.
    pub fn layers(&self) -> Result<usize> {
        self.fields.need_whole("num_hidden_layers", 1..=1 << 12)
    }

    /// Rows of the embedding.
    ///
    /// # Errors
    /// If it is missing or absurd.
    pub fn vocab_size(&self) -> Result<usize> {
        self.fields.need_whole("vocab_size", 1..=1 << 28)
    }

    /// Positions that the model was trained for.
    ///
    /// # Errors
    /// If it is none from 1 to 2^24.
    pub fn positions(&self) -> Result<Option<usize>> {
        self.fields.whole("max_position_embeddings", 1..=1 << 24)
    }

    /// A number with a default.
    ///
    /// # Errors
    /// If it is none, or not finite.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.fields.number(key)?.unwrap_or(default))
    }

    /// A switch with a default, for where the key is missing: `null` is off.
    ///
    /// # Errors
    /// If it is none.
    pub fn switch_or(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.fields.switch(key)?.unwrap_or(default))
    }

    /// What is added to variances.
    ///
    /// # Errors
    /// If it is negative.
    pub fn eps(&self, default: f64) -> Result<f32> {
        let eps = self.number_or("rms_norm_eps", default)?;
        ensure!(eps >= 0.0, self.fields.refuse("rms_norm_eps", "a number from 0"));
        Ok(eps as f32)
    }

    /// Experts of a layer and how many a token goes to; the first is under the family's own `key`, or under one of
    /// transformers' for all families.
    ///
    /// # Errors
    /// If a number is missing, or there are fewer experts than a token goes to.
    pub fn experts(&self, key: &str) -> Result<(usize, usize)> {
        let keys = [key, "num_experts", "num_local_experts"];
        let there = keys.into_iter().find(|key| self.fields.value(key).is_some());
        let experts = self.fields.need_whole(there.unwrap_or(key), 1..=1 << 16)?;
        let top_k = self.width("num_experts_per_tok")?;
        ensure!(
            top_k <= experts,
            self.fields.refuse(
                "num_experts_per_tok",
                &format!("at most the {experts} experts of a layer")
            )
        );
        Ok((experts, top_k))
    }

    /// Grouped-query attention without anything besides.
    ///
    /// # Errors
    /// If a number is missing, or they don't divide each other.
    pub fn grouped(&self) -> Result<Grouped> {
        let (d_model, heads) = (self.width("hidden_size")?, self.width("num_attention_heads")?);
        let kv_heads = self.width_or("num_key_value_heads", heads)?;
        ensure!(
            heads.is_multiple_of(kv_heads),
            self.fields.refuse(
                "num_key_value_heads",
                &format!("a number that divides num_attention_heads ({heads})")
            )
        );
        ensure!(
            self.fields.value("head_dim").is_some() || d_model.is_multiple_of(heads),
            self.fields.refuse(
                "num_attention_heads",
                &format!("a number that divides hidden_size ({d_model}), or `head_dim` beside it")
            )
        );
        let head_dim = self.width_or("head_dim", d_model / heads)?;
        ensure!(
            head_dim > 0 && head_dim.is_multiple_of(2),
            self.fields
                .refuse("head_dim", "an even number: elements are rotated in pairs")
        );
        Ok(Grouped {
            heads,
            kv_heads,
            head_dim,
            qkv_bias: false,
            out_bias: false,
            qk_norm: QkNorm::None,
            clip: None,
            sinks: false,
            scale: (head_dim as f32).powf(-0.5),
        })
    }

    /// Grouped-query attention whose projections all have biases if `attention_bias` says so.
    ///
    /// # Errors
    /// As [`Config::grouped`].
    pub fn biased(&self, default: bool) -> Result<Grouped> {
        let bias = self.switch_or("attention_bias", default)?;
        Ok(Grouped {
            qkv_bias: bias,
            out_bias: bias,
            ..self.grouped()?
        })
    }

    /// A softmax over all experts, the chosen ones' shares adding up to 1 if `norm_topk_prob` says so.
    ///
    /// # Errors
    /// If that is no switch.
    pub fn softmax(&self, top_k: usize) -> Result<Rule> {
        Ok(Rule::Softmax {
            top_k,
            groups: None,
            renormalise: self.switch_or("norm_topk_prob", false)?,
            factor: 1.0,
        })
    }

    /// Refuses a text other than the one that is computed.
    ///
    /// # Errors
    /// If it is another.
    pub fn only(&self, key: &str, computed: &str) -> Result<()> {
        match self.fields.text(key)? {
            Some(found) if found != computed => {
                bail!(self
                    .fields
                    .refuse(key, &format!("\"{computed}\", the only one that is supported")))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a switch that is on.
    ///
    /// # Errors
    /// If it is.
    pub fn off(&self, key: &str) -> Result<()> {
        ensure!(
            !self.switch_or(key, false)?,
            self.fields.refuse(key, "false: nothing else is supported")
        );
        Ok(())
    }

    /// How many tokens a layer looks back on; 0 counts as no bound.
    ///
    /// # Errors
    /// If it is no whole number.
    pub fn sliding_window(&self) -> Result<Option<usize>> {
        let window = self.fields.whole("sliding_window", 0..=1 << 30)?;
        Ok(window.filter(|&window| window > 0))
    }

    /// Which layers look back on a window only (`layer_types`), if that is said.
    ///
    /// # Errors
    /// If it is no list with one kind a layer, of which two are known.
    pub fn sliding_layers(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let expected = format!("a list of {layers} times \"sliding_attention\" or \"full_attention\"");
        self.fields.typed("layer_types", &expected, |value| {
            let kinds = value.as_array().filter(|kinds| kinds.len() == layers)?;
            let sliding = |kind: &Value| match kind.as_str() {
                Some("sliding_attention") => Some(true),
                Some("full_attention") => Some(false),
                _ => None,
            };
            kinds.iter().map(sliding).collect()
        })
    }

    /// Layers without experts (Qwen's `mlp_only_layers` and `decoder_sparse_step`).
    ///
    /// # Errors
    /// If a value is absurd.
    pub fn qwen_dense(&self, layers: usize) -> Result<Vec<bool>> {
        let step = self.width_or("decoder_sparse_step", 1)?;
        let listed = self.fields.typed("mlp_only_layers", "a list of layers", |value| {
            let numbers = value.as_array()?.iter().map(Value::as_u64);
            numbers.collect::<Option<Vec<u64>>>()
        })?;
        let listed = listed.unwrap_or_default();
        let dense = |i: usize| listed.contains(&(i as u64)) || !(i + 1).is_multiple_of(step);
        Ok((0..layers).map(dense).collect())
    }

    /// Special tokens.
    ///
    /// # Errors
    /// If an end or beginning is no id below `vocab_size`.
    pub fn special_tokens(&self, vocab_size: usize) -> Result<SpecialTokens> {
        let id = |value: &Value| {
            let id = value.as_u64().filter(|&id| id < vocab_size as u64)?;
            u32::try_from(id).ok()
        };
        let expected = format!("an id below vocab_size ({vocab_size})");
        let eos = self.fields.typed(
            "eos_token_id",
            &format!("{expected}, or a list of such"),
            |value| match value.as_array() {
                Some(several) => several.iter().map(id).collect(),
                None => id(value).map(|one| vec![one]),
            },
        )?;
        Ok(SpecialTokens {
            eos: eos.unwrap_or_default(),
            bos: self.fields.typed("bos_token_id", &expected, id)?,
            // Nothing is padded here, and some configurations name a token that is not there.
            pad: self.fields.value("pad_token_id").and_then(id),
            decoder_start: None,
        })
    }

    /// Rotary positions over `dim` elements: `rope_parameters`, or `rope_theta` and `rope_scaling`.
    ///
    /// # Errors
    /// If a number is missing or absurd, or the kind is none that is computed.
    pub fn rope(&self, dim: usize, default_theta: f64) -> Result<Rope> {
        let key = ["rope_parameters", "rope_scaling"]
            .into_iter()
            .find(|key| self.fields.value(key).is_some());
        let scaling = match key.and_then(|key| self.fields.value(key)) {
            Some(value) => Some(Fields::new(value, &self.path.join(key.unwrap_or_default()))?),
            None => None,
        };
        let theta = match scaling.as_ref().map(|s| s.number("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => self.number_or("rope_theta", default_theta)?,
        };
        ensure!(theta > 1.0, self.fields.refuse("rope_theta", "a number above 1"));
        Ok(Rope {
            dim,
            theta,
            scaling: scaling.map_or(Ok(Scaling::None), |s| self.scaling(&s, dim))?,
            interleaved: false,
        })
    }

    fn scaling(&self, fields: &Fields<'_>, dim: usize) -> Result<Scaling> {
        ensure!(
            fields.number("partial_rotary_factor")?.is_none_or(|part| part == 1.0),
            fields.refuse("partial_rotary_factor", "1: nothing else is supported")
        );
        let key = if fields.value("rope_type").is_some() {
            "rope_type"
        } else {
            "type"
        };
        match fields.text(key)? {
            None | Some("default") => Ok(Scaling::None),
            Some("linear") => Ok(Scaling::Linear {
                factor: positive(fields, "factor")?.unwrap_or(1.0),
            }),
            Some("yarn") => Ok(Scaling::Yarn(self.yarn(fields)?)),
            Some("longrope") => self.longrope(fields, dim),
            _ => bail!(fields.refuse(key, "one of those that are supported: default, linear, yarn, longrope")),
        }
    }

    fn yarn(&self, fields: &Fields<'_>) -> Result<Yarn> {
        let original = self.original_positions(fields)?;
        let ratio = self.positions()?.map(|positions| positions as f64 / original as f64);
        let Some(factor) = positive(fields, "factor")?.or(ratio) else {
            bail!(fields.refuse("factor", "a number above 0"));
        };
        Ok(Yarn {
            factor,
            original,
            beta_fast: positive(fields, "beta_fast")?.unwrap_or(32.0),
            beta_slow: positive(fields, "beta_slow")?.unwrap_or(1.0),
            truncate: fields.switch("truncate")?.unwrap_or(true),
            attention_factor: fields.number("attention_factor")?,
            mscale: [
                fields.number("mscale")?.unwrap_or(0.0),
                fields.number("mscale_all_dim")?.unwrap_or(0.0),
            ],
        })
    }

    /// LongRoPE for texts up to the original number of positions; longer ones would need other frequencies.
    fn longrope(&self, fields: &Fields<'_>, dim: usize) -> Result<Scaling> {
        let expected = format!("a list of {} numbers above 0", dim / 2);
        let factors = fields.typed("short_factor", &expected, |value| {
            let numbers = value.as_array().filter(|numbers| numbers.len() == dim / 2)?;
            let above = |number: &Value| number.as_f64().filter(|&number| number > 0.0);
            numbers.iter().map(above).collect::<Option<Vec<f64>>>()
        })?;
        let Some(factors) = factors else {
            bail!(fields.refuse("short_factor", &expected));
        };
        // Other families derive it otherwise.
        let Some(magnitude) = positive(fields, "short_mscale")? else {
            bail!(fields.refuse("short_mscale", "a number above 0"));
        };
        Ok(Scaling::Each {
            factors,
            magnitude,
            positions: self.original_positions(fields)?,
        })
    }

    /// Positions before a model was made to read longer texts.
    ///
    /// # Errors
    /// If they are said nowhere, or absurdly.
    pub fn original_positions(&self, fields: &Fields<'_>) -> Result<usize> {
        let key = "original_max_position_embeddings";
        for fields in [fields, &self.fields] {
            if let Some(original) = fields.whole(key, 1..=1 << 24)? {
                return Ok(original);
            }
        }
        self.positions()?
            .ok_or_else(|| fields.refuse(key, "a whole number from 1"))
    }
}

fn positive(fields: &Fields<'_>, key: &str) -> Result<Option<f64>> {
    fields.typed(key, "a number above 0", |value| {
        value.as_f64().filter(|&number| number > 0.0)
    })
}
