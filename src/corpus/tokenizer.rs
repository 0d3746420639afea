//! Text to token ids and back, as a Hugging Face folder's `tokenizer.json` and `tokenizer_config.json` say.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::read_json;
use anyhow::{anyhow, bail, Context, Result};
use serde_json::Value;
use tokenizers::Tokenizer as Library;

use super::chat::ChatTemplate;
use super::prefix;
use super::record::Chat;

/// A `model_max_length` from here on means that there is none (transformers writes 1e30 for "unlimited").
const UNLIMITED: f64 = 1e9;

/// Texts up to this many bytes are tokenized whole; of longer ones, where that is enough, the beginning.
const LONG_TEXT: usize = 64 << 10;

/// The tokenizer of a checkpoint of any family.
///
/// `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are not followed, as the reference does not follow
/// them where there is a `tokenizer.json`: its post-processor says what is put around a text.
pub struct Tokenizer {
    path: PathBuf,
    library: Library,
    /// Special tokens as the config names them: `bos_token` to `<s>`.
    named: BTreeMap<String, String>,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    limit: Option<usize>,
    /// Whether the beginning of a text has the same tokens alone.
    prefix_is_sure: bool,
    clean_up: bool,
    chat: Option<ChatTemplate>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of a checkpoint folder, and its chat template if it has one.
    ///
    /// Truncation and padding of `tokenizer.json` are left out: the length comes from `model_max_length`.
    ///
    /// # Errors
    /// A file is missing or cannot be understood, or the vocabulary lacks the beginning- or end-of-sentence token that
    /// the config names.
    pub fn load(dir: &Path) -> Result<Tokenizer> {
        let path = dir.join("tokenizer.json");
        let file = read_json(dir, "tokenizer.json")?;
        let mut library: Library = serde_json::from_value(file.clone()).map_err(|e| {
            anyhow!(
                "{}: no tokenizer that can be understood ({e}); fetch the file again",
                path.display()
            )
        })?;
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|e| anyhow!("{}: {e}", path.display()))?;

        let config_path = dir.join("tokenizer_config.json");
        let config = read_json(dir, "tokenizer_config.json")?;
        if !config.is_object() {
            bail!("{}: holds no JSON object; fetch the file again", config_path.display());
        }
        let named = named_tokens(dir, &config)?;
        let id = |name: &str| -> Result<Option<u32>> {
            let Some(token) = named.get(name) else {
                return Ok(None);
            };
            let id = library.token_to_id(token);
            id.map(Some).with_context(|| {
                format!(
                    "{}: has no token `{token}`, which {} calls {name}",
                    path.display(),
                    config_path.display()
                )
            })
        };
        let flag = |name: &str| config.get(name).and_then(Value::as_bool).unwrap_or(false);
        Ok(Tokenizer {
            bos: id("bos_token")?,
            eos: id("eos_token")?,
            // Nothing is ever padded with it: one that is missing does no harm.
            pad: id("pad_token").unwrap_or(None),
            limit: max_length(&config_path, &config)?,
            prefix_is_sure: prefix::is_sure(&file),
            clean_up: flag("clean_up_tokenization_spaces"),
            chat: ChatTemplate::load(dir, &config)?,
            named,
            path,
            library,
        })
    }

    /// The ids of a text, `[tokens]`. With `add_special` what the post-processor of `tokenizer.json` puts around it (such
    /// as a beginning- or end-of-sentence token) is added.
    ///
    /// Special tokens typed in the text become special ids, as in the reference.
    ///
    /// # Errors
    /// The text cannot be tokenized.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = self.library.encode_fast(text, add_special).map_err(|e| {
            anyhow!(
                "{}: cannot tokenize a text of {} bytes: {e}",
                self.path.display(),
                text.len()
            )
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of a text without specials: all of them, or, of a very long text, more than `room` of the first ones.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_start(&self, text: &str, room: usize) -> Result<Vec<u32>> {
        let mut length = LONG_TEXT;
        while self.prefix_is_sure && room < text.len() && length < text.len() / 2 {
            if let Some(end) = prefix::boundary(text, length) {
                let ids = self.encode(&text[..end], false)?;
                if ids.len() > room {
                    return Ok(ids);
                }
            }
            length *= 4;
        }
        self.encode(text, false)
    }

    /// The ids of a chat (see [`super::Prompt::Messages`]), up to where the answer begins: its text by the checkpoint's
    /// chat template, to which no special tokens are added.
    ///
    /// # Errors
    /// There is no template, it refuses these messages, or the text cannot be tokenized.
    pub fn encode_chat(&self, chat: &Chat) -> Result<Vec<u32>> {
        self.encode(&self.chat_text(chat)?, false)
    }

    /// The text of a chat by the checkpoint's template.
    ///
    /// # Errors
    /// There is no template, or it refuses these messages.
    pub fn chat_text(&self, chat: &Chat) -> Result<String> {
        self.chat_template()?.render(chat, &self.named)
    }

    /// The checkpoint's chat template.
    ///
    /// # Errors
    /// It has none.
    pub fn chat_template(&self) -> Result<&ChatTemplate> {
        self.chat.as_ref().with_context(|| {
            format!(
                "{}: has no chat_template, and no chat_template.jinja lies beside it: this checkpoint was not made for \
                 `messages`; give `prompt`, the text to go on from",
                self.path.with_file_name("tokenizer_config.json").display()
            )
        })
    }

    /// Sets the time that a chat template tells, as seconds since 1970 (UTC): without it, that of loading. Some templates
    /// write the date into the prompt, and all ranks must write the same.
    pub fn set_time(&self, seconds: i64) {
        if let Some(chat) = &self.chat {
            chat.set_time(seconds);
        }
    }

    /// The text of ids. Special tokens (and ids beyond the vocabulary) leave nothing.
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

    /// `tokenizer.json`, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The id of a token, such as `</s>`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.library.token_to_id(token)
    }

    /// Added tokens that are special, and their ids.
    pub(crate) fn special_tokens(&self) -> impl Iterator<Item = (String, u32)> {
        let added = self.library.get_added_tokens_decoder().into_iter();
        added
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
    }

    /// The beginning-of-sentence token's id, if the checkpoint names one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sentence token's id, if the checkpoint names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The padding token's id, if the checkpoint names one that it has.
    pub fn pad(&self) -> Option<u32> {
        self.pad
    }

    /// The most tokens that a text may have, specials included, if the checkpoint says.
    pub fn max_length(&self) -> Option<usize> {
        self.limit
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

/// The special tokens that `tokenizer_config.json` names (`bos_token`, ...), or an older folder's
/// `special_tokens_map.json`. A token is written as a string or as an object with `content`.
fn named_tokens(dir: &Path, config: &Value) -> Result<BTreeMap<String, String>> {
    let mut named = BTreeMap::new();
    let mut add = |from: &Value| {
        for (name, token) in from.as_object().into_iter().flatten() {
            let content = token.as_str().or_else(|| token.get("content")?.as_str());
            if let (true, Some(content)) = (name.ends_with("_token"), content) {
                named.entry(name.clone()).or_insert_with(|| content.to_owned());
            }
        }
    };
    add(config);
    if config.get("added_tokens_decoder").is_none() && dir.join("special_tokens_map.json").exists() {
        add(&read_json(dir, "special_tokens_map.json")?);
    }
    Ok(named)
}

fn max_length(path: &Path, config: &Value) -> Result<Option<usize>> {
    let limit = match config.get("model_max_length") {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value
            .as_f64()
            .with_context(|| format!("{}: model_max_length is {value}, not a number", path.display()))?,
    };
    Ok((limit < UNLIMITED).then_some(limit as usize))
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
