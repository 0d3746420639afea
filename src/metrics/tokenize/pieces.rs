//! The tokenizer `spm` of BLEU: the pieces of a subword tokenizer, as spBLEU has them.

use std::path::Path;
use std::sync::Arc;

use anyhow::{anyhow, ensure, Context, Result};
use sha2::{Digest, Sha256};
use tokenizers::{PostProcessorWrapper, Tokenizer as Library};

/// Subword pieces of a `tokenizer.json`. Two are equal if their files are.
#[derive(Clone)]
pub struct Pieces {
    library: Arc<Library>,
    unknown: Option<u32>,
    /// The file's name in signatures: the beginning of its SHA-256.
    signature: String,
}

impl Pieces {
    /// Reads a `tokenizer.json` of Hugging Face, such as a checkpoint has.
    ///
    /// # Errors
    /// The file can't be read or understood.
    pub fn load(path: &Path) -> Result<Pieces> {
        let file = std::fs::read(path).with_context(|| format!("--tokenize spm:{}: cannot read it", path.display()))?;
        ensure!(
            file.trim_ascii_start().starts_with(b"{"),
            "--tokenize spm:{}: is no JSON; give a tokenizer.json (a sentencepiece .model must be converted to one)",
            path.display()
        );
        let mut library = Library::from_bytes(&file).map_err(|e| {
            anyhow!(
                "--tokenize spm:{}: no tokenizer that can be understood ({e}); give a tokenizer.json",
                path.display()
            )
        })?;
        library.with_post_processor(None::<PostProcessorWrapper>);
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|e| anyhow!("--tokenize spm:{}: {e}", path.display()))?;
        let digest: String = Sha256::digest(&file)
            .iter()
            .take(4)
            .map(|b| format!("{b:02x}"))
            .collect();
        Ok(Pieces {
            unknown: library.token_to_id("<unk>"),
            library: Arc::new(library),
            signature: format!("spm-{digest}"),
        })
    }

    /// What a signature says after `tok:`.
    pub(super) fn signature(&self) -> &str {
        &self.signature
    }

    /// The pieces of a segment, those that are unknown as they are written.
    pub(super) fn tokenize(&self, segment: &str) -> String {
        let Ok(encoding) = self.library.encode(segment, false) else {
            // A tokenizer that has no piece for a character and none for what is unknown.
            return segment.to_owned();
        };
        let mut line = String::with_capacity(segment.len() * 2);
        let ids = encoding.get_ids().iter().zip(encoding.get_offsets());
        for (piece, (id, (start, end))) in encoding.get_tokens().iter().zip(ids) {
            let written = segment.get(*start..*end).filter(|_| Some(*id) == self.unknown);
            line.push_str(written.unwrap_or(piece));
            line.push(' ');
        }
        line
    }
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
