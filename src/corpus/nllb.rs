//! What NLLB's tokenizers have beyond others: language codes, and specials set by the language.

use std::collections::BTreeMap;
use std::path::Path;

use crate::checkpoint::read_json;
use anyhow::{bail, Context, Result};
use serde_json::Value;

use super::language;
use super::tokenizer::Tokenizer;

/// A source sentence as the encoder takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Token ids, `[tokens]`, language code and end of sentence included.
    pub ids: Vec<u32>,
    /// Whether the text was cut to the model's length.
    pub cut: bool,
}

/// The tokenizer of an NLLB checkpoint.
pub struct NllbTokenizer {
    plain: Tokenizer,
    codes: BTreeMap<String, u32>,
    eos: u32,
    legacy: bool,
}

impl NllbTokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of a checkpoint folder.
    ///
    /// The post-processor of `tokenizer.json` is never used: it is fixed to the language that was set when the file was
    /// saved.
    ///
    /// # Errors
    /// As [`Tokenizer::load`]; there is no end-of-sentence token, or `model_max_length` leaves no room for text.
    pub fn load(dir: &Path) -> Result<NllbTokenizer> {
        let plain = Tokenizer::load(dir)?;
        let config = read_json(dir, "tokenizer_config.json")?;
        let eos = plain.eos().or_else(|| plain.id_of("</s>")).with_context(|| {
            format!(
                "{}: has no token `</s>` to end a sentence, and tokenizer_config.json names no other (eos_token)",
                plain.path().display()
            )
        })?;
        // Below 3 the two specials would leave no room for text.
        if let Some(limit @ ..3) = plain.max_length() {
            bail!(
                "{}: model_max_length is {limit}, which leaves no room for text: 3 or more is needed",
                dir.join("tokenizer_config.json").display()
            );
        }
        let legacy = config.get("legacy_behaviour").and_then(Value::as_bool);
        Ok(NllbTokenizer {
            codes: plain
                .special_tokens()
                .filter(|(token, _)| language::is_code(token))
                .collect(),
            eos,
            legacy: legacy.unwrap_or(false),
            plain,
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
        let lang = self.target_lang_id(lang)?;
        let room = self.max_length().map_or(usize::MAX, |limit| limit - 2);
        let mut content = self.plain.encode_start(text, room)?;
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

    /// The id that makes the decoder write in the language `code`.
    ///
    /// # Errors
    /// `code` is not one of the tokenizer's language codes; the closest ones are named.
    pub fn target_lang_id(&self, code: &str) -> Result<u32> {
        if let Some(id) = self.codes.get(code) {
            return Ok(*id);
        }
        let (count, path) = (self.codes.len(), self.plain.path().display());
        if count == 0 {
            bail!("language `{code}`: {path} has no language codes such as fra_Latn: is this an NLLB checkpoint?");
        }
        let closest = language::closest(code, self.codes.keys().map(String::as_str), 4).join(", ");
        bail!("unknown language code `{code}`: {path} knows {count} codes; the closest are {closest}")
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
        self.plain.max_length()
    }

    /// The text of generated ids: see [`Tokenizer::decode`].
    ///
    /// # Errors
    /// The tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.plain.decode(ids)
    }

    /// One more than the highest id: see [`Tokenizer::vocab_size`].
    pub fn vocab_size(&self) -> usize {
        self.plain.vocab_size()
    }
}
