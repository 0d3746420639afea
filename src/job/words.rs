//! The tokenizer of a checkpoint, with languages where the family knows any.

use super::languages;
use super::run::Opened;
use crate::checkpoint::generation::GenerationDefaults;
use crate::cli::run::OnError;
use crate::corpus::{NllbTokenizer, Scan, Tokenizer};
use crate::model::nllb_moe::FAMILY;
use crate::model::Architecture;
use anyhow::{bail, Context, Result};
use std::path::Path;

/// A tokenizer, by what it knows.
pub enum Words {
    /// Text only.
    Plain(Box<Tokenizer>),
    /// Languages too.
    Languages(Box<NllbTokenizer>),
}

/// What a checkpoint is, in lines for people (`sluice doctor --model`); all that a run would refuse is refused.
///
/// # Errors
/// Anything amiss with the folder.
pub fn describe(dir: &Path) -> Result<Vec<String>> {
    let opened = Opened::open(dir, None)?;
    let words = Words::load(dir, opened.architecture.as_ref())?;
    opened.check_vocabulary(dir, words.vocab_size())?;
    GenerationDefaults::load(dir)?;
    let mut lines = opened.describe();
    if let Words::Languages(tokenizer) = &words {
        lines.insert(1, format!("{} languages", tokenizer.languages().len()));
    }
    Ok(lines)
}

/// Ids of what an encoder without languages reads, cut at its end to the model's length but for the end of sentence; and
/// whether they were.
///
/// # Errors
/// When the text cannot be tokenized.
pub fn cut_source(tokenizer: &Tokenizer, text: &str) -> Result<(Vec<u32>, bool)> {
    let mut ids = tokenizer.encode(text, true)?;
    let Some(limit) = tokenizer.max_length().filter(|&limit| ids.len() > limit && limit > 0) else {
        return Ok((ids, false));
    };
    let end = ids.last().copied().filter(|last| Some(*last) == tokenizer.eos());
    ids.truncate(limit - end.iter().len());
    ids.extend(end);
    Ok((ids, true))
}

impl Words {
    /// Reads the tokenizer of a checkpoint.
    ///
    /// # Errors
    /// When a file is missing, or none that can be understood.
    pub fn load(dir: &Path, architecture: &dyn Architecture) -> Result<Words> {
        Ok(match architecture.family() {
            FAMILY => Words::Languages(Box::new(NllbTokenizer::load(dir)?)),
            _ => Words::Plain(Box::new(Tokenizer::load(dir)?)),
        })
    }

    /// One more than the highest id.
    pub fn vocab_size(&self) -> usize {
        match self {
            Words::Plain(tokenizer) => tokenizer.vocab_size(),
            Words::Languages(tokenizer) => tokenizer.vocab_size(),
        }
    }

    /// The plain tokenizer.
    ///
    /// # Errors
    /// When texts have languages.
    pub fn plain(&self) -> Result<&Tokenizer> {
        match self {
            Words::Plain(tokenizer) => Ok(tokenizer),
            Words::Languages(_) => bail!("this model's texts have languages: use sluice translate, or score --pairs"),
        }
    }

    /// Ids of what an encoder reads or a decoder is to write, and whether the text was cut to the model's length.
    ///
    /// # Errors
    /// When the text cannot be tokenized, or its language is unknown.
    pub fn encode(&self, text: &str, language: Option<&str>) -> Result<(Vec<u32>, bool)> {
        match self {
            Words::Plain(tokenizer) => cut_source(tokenizer, text),
            Words::Languages(tokenizer) => {
                let source = tokenizer.source(text, language.context("a text without a language")?)?;
                Ok((source.ids, source.cut))
            }
        }
    }

    /// Tokens that [`encode`](Words::encode) gives at most, where the tokenizer has an end.
    pub fn longest(&self) -> Option<usize> {
        match self {
            Words::Plain(tokenizer) => tokenizer.max_length().filter(|&limit| limit > 0),
            Words::Languages(tokenizer) => tokenizer.max_length(),
        }
    }

    /// Refuses languages that flags or rows name and the tokenizer doesn't know, or that nobody names.
    ///
    /// # Errors
    /// Names the flag, or the row.
    pub fn check_languages(&self, given: [&Option<String>; 2], on_error: OnError, scan: &Scan) -> Result<()> {
        let [source, target] = given;
        let targets: Vec<String> = target.iter().cloned().collect();
        match self {
            Words::Languages(tokenizer) => {
                languages::of_flags(source, &targets, tokenizer)?;
                languages::of_rows(source, &targets, on_error, scan, tokenizer)
            }
            Words::Plain(_) => match (source, target) {
                (None, None) => Ok(()),
                _ => bail!("--source and --target: this model knows no languages; leave them out"),
            },
        }
    }

    /// Whether these are languages enough for a text.
    pub fn knows(&self, languages: &[String; 2]) -> bool {
        matches!(self, Words::Plain(_)) || languages.iter().all(|code| !code.is_empty())
    }
}
