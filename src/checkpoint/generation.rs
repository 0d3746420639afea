//! How a model wants to be generated from: `generation_config.json`, with Hugging Face's rules and defaults.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::fields::{read_json, Fields};

/// Hugging Face's new tokens where nothing is said.
const DEFAULT_NEW_TOKENS: usize = 20;
/// Largest length or count that is taken for meant.
const MOST: usize = 1 << 30;

/// When beam search stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// When the best running beam can hardly beat the worst finished one.
    #[default]
    False,
    /// As soon as there are as many finished beams as beams.
    True,
    /// When no running beam can beat the worst finished one at any length.
    Never,
}

/// What a model folder says about generation. Lengths count tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct GenerationDefaults {
    /// Longest output, the start token (or prompt) included.
    pub max_length: Option<usize>,
    /// Longest output, the start token (or prompt) not counted; wins over `max_length`.
    pub max_new_tokens: Option<usize>,
    /// Shortest output, the start token (or prompt) included.
    pub min_length: Option<usize>,
    /// Shortest output, the start token (or prompt) not counted; wins over `min_length`.
    pub min_new_tokens: Option<usize>,
    /// Beams; 1 is greedy search.
    pub num_beams: usize,
    /// A finished beam's score is its log-probability / length ^ this.
    pub length_penalty: f32,
    /// When beam search stops.
    pub early_stopping: EarlyStopping,
    /// No n-gram of this length comes twice; 0 allows all.
    pub no_repeat_ngram_size: usize,
    /// The decoder's first token.
    pub decoder_start_token_id: Option<u32>,
    /// Beginning of sentence.
    pub bos_token_id: Option<u32>,
    /// End of sentence; any of these ends an output.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// The token that must follow the start token.
    pub forced_bos_token_id: Option<u32>,
    /// The token that must stand last where the length limit is reached.
    pub forced_eos_token_id: Option<u32>,
    /// Settings that are there, would change the output, and aren't followed, as `key = value`.
    pub not_followed: Vec<String>,
}

impl Default for GenerationDefaults {
    fn default() -> GenerationDefaults {
        GenerationDefaults {
            max_length: None,
            max_new_tokens: None,
            min_length: None,
            min_new_tokens: None,
            num_beams: 1,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::False,
            no_repeat_ngram_size: 0,
            decoder_start_token_id: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: None,
            forced_bos_token_id: None,
            forced_eos_token_id: None,
            not_followed: Vec::new(),
        }
    }
}

impl GenerationDefaults {
    /// Reads `generation_config.json`; where that isn't there, the same keys of `config.json`.
    ///
    /// # Errors
    /// If the file can't be read, isn't JSON, or a key holds what it can't mean.
    pub fn load(dir: &Path) -> Result<GenerationDefaults> {
        // Hugging Face doesn't mix the two files either: what the first leaves out has the library's default.
        let own = "generation_config.json";
        let file = if dir.join(own).symlink_metadata().is_ok() {
            own
        } else {
            "config.json"
        };
        GenerationDefaults::from_json(&read_json(dir, file)?, &dir.join(file))
    }

    /// Reads the keys from JSON; `path` is named in errors.
    ///
    /// # Errors
    /// If a key holds what it can't mean.
    pub fn from_json(value: &Value, path: &Path) -> Result<GenerationDefaults> {
        let fields = Fields::new(value, path)?;
        let early_stopping = fields.typed("early_stopping", "true, false or \"never\"", |value| match value {
            Value::Bool(true) => Some(EarlyStopping::True),
            Value::Bool(false) => Some(EarlyStopping::False),
            Value::String(word) if word == "never" => Some(EarlyStopping::Never),
            _ => None,
        })?;
        Ok(GenerationDefaults {
            max_length: fields.whole("max_length", 1..=MOST)?,
            max_new_tokens: fields.whole("max_new_tokens", 1..=MOST)?,
            min_length: fields.whole("min_length", 0..=MOST)?,
            min_new_tokens: fields.whole("min_new_tokens", 0..=MOST)?,
            num_beams: fields.whole("num_beams", 1..=MOST)?.unwrap_or(1),
            length_penalty: fields.number("length_penalty")?.unwrap_or(1.0) as f32,
            early_stopping: early_stopping.unwrap_or_default(),
            no_repeat_ngram_size: fields.whole("no_repeat_ngram_size", 0..=MOST)?.unwrap_or(0),
            decoder_start_token_id: fields.token("decoder_start_token_id")?,
            bos_token_id: fields.token("bos_token_id")?,
            eos_token_ids: fields.tokens("eos_token_id")?.unwrap_or_default(),
            pad_token_id: fields.token("pad_token_id")?,
            forced_bos_token_id: fields.token("forced_bos_token_id")?,
            forced_eos_token_id: fields.token("forced_eos_token_id")?,
            not_followed: not_followed(&fields),
        })
    }

    /// Longest output, the `start` tokens before the first generated one included.
    ///
    /// As `_prepare_generated_length` in `generation/utils.py` of transformers 5.23 has it; before version 5 a `max_length`
    /// of 20 was taken for unset.
    pub fn length_limit(&self, start: usize) -> usize {
        match (self.max_new_tokens, self.max_length) {
            (Some(new), _) => start + new,
            (None, Some(length)) => length,
            (None, None) => start + DEFAULT_NEW_TOKENS,
        }
    }
}

/// Settings beyond their neutral value that this program has no counterpart for.
fn not_followed(fields: &Fields<'_>) -> Vec<String> {
    let off = Value::Bool(false);
    let none = Value::Array(Vec::new());
    let number = |n: f64| Value::from(n);
    let neutral = [
        ("do_sample", off.clone()),
        ("renormalize_logits", off),
        ("num_beam_groups", number(1.0)),
        ("diversity_penalty", number(0.0)),
        ("repetition_penalty", number(1.0)),
        ("encoder_repetition_penalty", number(1.0)),
        ("encoder_no_repeat_ngram_size", number(0.0)),
        ("penalty_alpha", number(0.0)),
        ("guidance_scale", number(1.0)),
        ("bad_words_ids", none.clone()),
        ("force_words_ids", none.clone()),
        ("suppress_tokens", none.clone()),
        ("begin_suppress_tokens", none.clone()),
        ("sequence_bias", none.clone()),
        ("exponential_decay_length_penalty", none.clone()),
        ("constraints", none),
    ];
    let differs = |value: &Value, neutral: &Value| match (value.as_f64(), neutral.as_f64()) {
        (Some(value), Some(neutral)) => value != neutral,
        _ => value != neutral,
    };
    let set = neutral.iter().filter_map(|(key, neutral)| {
        fields
            .value(key)
            .filter(|value| differs(value, neutral))
            .map(|value| format!("{key} = {value}"))
    });
    set.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: Value) -> Result<GenerationDefaults> {
        GenerationDefaults::from_json(&value, Path::new("m/generation_config.json"))
    }

    #[test]
    fn nothing_said_means_hugging_faces_defaults() {
        assert_eq!(read(json!({})).unwrap(), GenerationDefaults::default());
        assert_eq!(
            read(json!({"max_length": null, "eos_token_id": null})).unwrap(),
            GenerationDefaults::default()
        );
        assert_eq!(GenerationDefaults::default().length_limit(1), 21);
        assert_eq!(read(json!({"max_length": 20})).unwrap().length_limit(1), 20);
    }

    #[test]
    fn every_key_is_read() {
        let read = read(json!({
            "max_length": 200, "max_new_tokens": 50, "min_length": 2, "min_new_tokens": 0, "num_beams": 4,
            "length_penalty": 0.6, "early_stopping": "never", "no_repeat_ngram_size": 3, "decoder_start_token_id": 2,
            "bos_token_id": 0, "eos_token_id": [2, 7], "pad_token_id": 1, "forced_bos_token_id": 8109,
            "forced_eos_token_id": 2, "do_sample": true, "repetition_penalty": 1.0, "num_beam_groups": 1,
        }))
        .unwrap();
        let expected = GenerationDefaults {
            max_length: Some(200),
            max_new_tokens: Some(50),
            min_length: Some(2),
            min_new_tokens: Some(0),
            num_beams: 4,
            length_penalty: 0.6,
            early_stopping: EarlyStopping::Never,
            no_repeat_ngram_size: 3,
            decoder_start_token_id: Some(2),
            bos_token_id: Some(0),
            eos_token_ids: vec![2, 7],
            pad_token_id: Some(1),
            forced_bos_token_id: Some(8109),
            forced_eos_token_id: Some(2),
            not_followed: vec!["do_sample = true".into()],
        };
        assert_eq!(read, expected);
        assert_eq!(read.length_limit(1), 51);
        assert_eq!(
            GenerationDefaults {
                max_new_tokens: None,
                ..expected
            }
            .length_limit(1),
            200
        );
    }

    #[test]
    fn a_value_that_cannot_be_meant_is_named() {
        for (key, value) in [
            ("num_beams", json!(0)),
            ("max_length", json!(-5)),
            ("max_new_tokens", json!("many")),
            ("early_stopping", json!("sometimes")),
            ("eos_token_id", json!([2, "</s>"])),
            ("pad_token_id", json!(1u64 << 40)),
            ("length_penalty", json!("1")),
        ] {
            let error = format!("{:#}", read(json!({key: value})).unwrap_err());
            assert!(
                error.contains("m/generation_config.json") && error.contains(&format!("`{key}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn the_generation_file_goes_before_the_config() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), r#"{"num_beams": 5, "eos_token_id": 2}"#).unwrap();
        assert_eq!(GenerationDefaults::load(dir.path()).unwrap().num_beams, 5);
        std::fs::write(dir.path().join("generation_config.json"), r#"{"max_length": 9}"#).unwrap();
        let read = GenerationDefaults::load(dir.path()).unwrap();
        assert_eq!(
            (read.num_beams, read.max_length, read.eos_token_ids),
            (1, Some(9), vec![])
        );
    }
}
