//! The tokenizer `spm` of BLEU: the pieces of a subword tokenizer, as spBLEU has them.

use std::path::Path;
use std::sync::Arc;

use super::sentencepiece::SentencePiece;
use anyhow::{anyhow, Context, Result};
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessorWrapper, Tokenizer as Library};

/// Subword pieces of a tokenizer. Two are equal if their files are.
#[derive(Clone)]
pub struct Pieces {
    library: Arc<Cutter>,
    /// The file's name in signatures: the beginning of its SHA-256.
    signature: String,
}

/// What cuts texts into pieces.
enum Cutter {
    /// A `tokenizer.json`, and what it has for unknown characters.
    Json(Box<Library>, Option<u32>),
    /// A sentencepiece `.model`.
    Model(SentencePiece),
}

impl Pieces {
    /// Reads a `tokenizer.json` of Hugging Face, such as a checkpoint has, or a sentencepiece `.model`.
    ///
    /// # Errors
    /// The file can't be read or understood.
    pub fn load(path: &Path) -> Result<Pieces> {
        let file = std::fs::read(path).with_context(|| format!("--tokenize spm:{}: cannot read it", path.display()))?;
        let digest = Sha256::digest(&file);
        let digest: String = digest.iter().take(4).map(|b| format!("{b:02x}")).collect();
        let cutter = if file.trim_ascii_start().starts_with(b"{") {
            json(&file).map_err(|e| anyhow!("no tokenizer that can be understood ({e})"))
        } else {
            SentencePiece::read(&file)
                .map(Cutter::Model)
                .map_err(anyhow::Error::msg)
        };
        let cutter = cutter.with_context(|| {
            format!(
                "--tokenize spm:{}: give a tokenizer.json, or a sentencepiece .model",
                path.display()
            )
        })?;
        Ok(Pieces {
            library: Arc::new(cutter),
            signature: format!("spm-{digest}"),
        })
    }

    /// What a signature says after `tok:`.
    pub(super) fn signature(&self) -> &str {
        &self.signature
    }

    /// The pieces of a segment, those that are unknown as they are written.
    pub(super) fn tokenize(&self, segment: &str) -> String {
        let (library, unknown) = match &*self.library {
            Cutter::Json(library, unknown) => (library, unknown),
            Cutter::Model(model) => return model.pieces(segment).join(" "),
        };
        let Ok(encoding) = library.encode(segment, false) else {
            // A tokenizer that has no piece for a character and none for what is unknown.
            return segment.to_owned();
        };
        let mut line = String::with_capacity(segment.len() * 2);
        let ids = encoding.get_ids().iter().zip(encoding.get_offsets());
        for (piece, (id, (start, end))) in encoding.get_tokens().iter().zip(ids) {
            let written = segment.get(*start..*end).filter(|_| Some(*id) == *unknown);
            line.push_str(written.unwrap_or(piece));
            line.push(' ');
        }
        line
    }
}

/// A `tokenizer.json` that adds nothing to a text and leaves nothing out.
fn json(file: &[u8]) -> tokenizers::Result<Cutter> {
    let mut library = Library::from_bytes(file)?;
    library.with_post_processor(None::<PostProcessorWrapper>);
    library.with_padding(None);
    library.with_truncation(None)?;
    let unknown = library.token_to_id("<unk>");
    Ok(Cutter::Json(Box::new(library), unknown))
}

impl PartialEq for Pieces {
    fn eq(&self, other: &Pieces) -> bool {
        self.signature == other.signature
    }
}

impl std::fmt::Debug for Pieces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.signature)
    }
}
