//! Text to token ids and back, as a Hugging Face folder's `tokenizer.json` and `tokenizer_config.json` say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::read_json;
use anyhow::{anyhow, bail, Context, Result};
use serde_json::Value;
use tokenizers::{PostProcessorWrapper, Tokenizer as Library};

use super::{language, prefix};

/// A `model_max_length` from here on means that there is none (transformers writes 1e30 for "unlimited").
const UNLIMITED: f64 = 1e9;

/// Texts up to this many bytes are tokenized whole; of longer ones, where that is enough, the beginning.
const LONG_TEXT: usize = 64 << 10;

/// A source sentence as the encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Token ids, `[tokens]`, language code and end of sentence included.
    pub ids: Vec<u32>,
    /// Whether the text was cut to the model's length.
    pub cut: bool,
}

/// The tokenizer of an NLLB checkpoint.
pub struct Tokenizer {
    path: PathBuf,
    library: Library,
    codes: BTreeMap<String, u32>,
    eos: u32,
    /// Tokens that a source may have, both specials included.
    limit: Option<usize>,
    legacy: bool,
    /// Whether the beginning of a text has the same tokens alone.
    prefix_is_sure: bool,
    clean_up: bool,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of a checkpoint folder.
    ///
    /// The post-processor, truncation and padding of `tokenizer.json` are left out: the first is fixed to the language
    /// that was set when the file was saved, and the length comes from `model_max_length`.
    ///
    /// # Errors
    /// A file is missing or cannot be understood, there is no end-of-sentence token, or `model_max_length` leaves no
    /// room for text.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let file = read_json(dir, "tokenizer.json")?;
        let mut library: Library = serde_json::from_value(file.clone()).map_err(|e| {
            anyhow!(
                "{}: no tokenizer that can be understood ({e}); fetch the file again",
                path.display()
            )
        })?;
        library.with_post_processor(None::<PostProcessorWrapper>);
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|e| anyhow!("{}: {e}", path.display()))?;

        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(dir, "tokenizer_config.json")?;
        if !config.is_object() {
            bail!("{}: holds no JSON object; fetch the file again", config_path.display());
        }
        let eos_token = token_content(&config, "eos_token").unwrap_or("</s>");
        let eos = library.token_to_id(eos_token).with_context(|| {
            format!(
                "{}: has no token `{eos_token}`, which {} calls eos_token",
                path.display(),
                config_path.display()
            )
        })?;
        let flag = |name: &str| config.get(name).and_then(Value::as_bool).unwrap_or(false);
        let codes = library.get_added_tokens_decoder().into_iter();
        Ok(Tokenizer {
            codes: codes
                .filter(|(_, token)| token.special && language::is_code(&token.content))
                .map(|(id, token)| (token.content, id))
                .collect(),
            eos,
            limit: max_length(&config_path, &config)?,
            prefix_is_sure: prefix::is_sure(&file),
            legacy: flag("legacy_behaviour"),
            clean_up: flag("clean_up_tokenization_spaces"),
            path,
            library,
        })
    }

    /// A text as NLLB's encoder takes it: `[lang] X </s>`, or with `legacy_behaviour` `X </s> [lang]`. With the target
    /// language these are the labels of forced scoring.
    ///
    /// Special tokens typed in the text become special ids, as in the reference. A text above `model_max_length` tokens
    /// is cut at its end; both specials stay.
    ///
    /// # Errors
    /// `lang` is no language of this tokenizer, or the text cannot be tokenized.
    pub fn source(&self, text: &str, lang: &str) -> Result<Source> {
        let lang = self.lang_id(lang)?;
        let room = self.limit.map_or(usize::MAX, |limit| limit - 2);
        let mut content = self.content(text, room)?;
        let cut = content.len() > room;
        content.truncate(room);
        let mut ids = Vec::with_capacity(content.len() + 2);
        if !self.legacy {
            ids.push(lang);
        }
        ids.append(&mut content);
        ids.push(self.eos);
        if self.legacy {
            ids.push(lang);
        }
        Ok(Source { ids, cut })
    }

    /// The ids of a text without specials: all of them, or more than `room` of the first ones.
    fn content(&self, text: &str, room: usize) -> Result<Vec<u32>> {
        let mut length = LONG_TEXT;
        while self.prefix_is_sure && room < text.len() && length < text.len() / 2 {
            if let Some(end) = prefix::boundary(text, length) {
                let ids = self.encode(&text[..end])?;
                if ids.len() > room {
                    return Ok(ids);
                }
            }
            length *= 4;
        }
        self.encode(text)
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.library.encode_fast(text, false).map_err(|e| {
            anyhow!(
                "{}: cannot tokenize a text of {} bytes: {e}",
                self.path.display(),
                text.len()
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The id that makes the decoder write in the language `code`.
    ///
    /// # Errors
    /// `code` is not one of the tokenizer's language codes; the closest ones are named.
    pub fn target_lang_id(&self, code: &str) -> Result<u32> {
        self.lang_id(code)
    }

    fn lang_id(&self, code: &str) -> Result<u32> {
        if let Some(id) = self.codes.get(code) {
            return Ok(*id);
        }
        let count = self.codes.len();
        if count == 0 {
            bail!(
                "language `{code}`: {} has no language codes such as fra_Latn: is this an NLLB checkpoint?",
                self.path.display()
            );
        }
        let closest = language::closest(code, self.codes.keys().map(String::as_str), 4).join(", ");
        bail!(
            "unknown language code `{code}`: {} knows {count} codes; the closest are {closest}",
            self.path.display()
        )
    }

    /// The language codes and their ids.
    pub fn languages(&self) -> &BTreeMap<String, u32> {
        &self.codes
    }

    /// The end-of-sentence token's id.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The most tokens that a source may have, specials included, if the checkpoint says.
    pub fn max_length(&self) -> Option<usize> {
        self.limit
    }

    /// The text of generated ids. Special tokens (and ids beyond the vocabulary) leave nothing.
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let text = self
            .library
            .decode(ids, true)
            .map_err(|e| anyhow!("{}: cannot turn {} ids into text: {e}", self.path.display(), ids.len()))?;
        Ok(if self.clean_up { clean_up_spaces(text) } else { text })
    }

    /// One more than the highest id, added tokens included. A model's own vocabulary may be padded beyond it.
    pub fn vocab_size(&self) -> usize {
        self.library
            .get_vocab(true)
            .into_values()
            .max()
            .map_or(0, |id| id as usize + 1)
    }
}

/// A token of the config, which is written as a string or as an object with `content`.
fn token_content<'a>(config: &'a Value, name: &str) -> Option<&'a str> {
    let token = config.get(name)?;
    token.as_str().or_else(|| token.get("content")?.as_str())
}

fn max_length(path: &Path, config: &Value) -> Result<Option<usize>> {
    let limit = match config.get("model_max_length") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value
            .as_f64()
            .with_context(|| format!("{}: model_max_length is {value}, not a number", path.display()))?,
    };
    if limit >= UNLIMITED {
        return Ok(None);
    }
    // Below 3 the two specials would leave no room for text.
    if limit < 3.0 {
        bail!(
            "{}: model_max_length is {limit}, which leaves no room for text: 3 or more is needed",
            path.display()
        );
    }
    Ok(Some(limit as usize))
}

/// The reference's `clean_up_tokenization_spaces`: no blank before English punctuation and contractions.
fn clean_up_spaces(mut text: String) -> String {
    let pairs = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    for (from, to) in pairs {
        text = text.replace(from, to);
    }
    text
}
