//! Pieces by a sentencepiece `.model` (Kudo and Richardson 2018), as its own library cuts them: unigram and BPE models.
//!
//! Figures are to be sacreBLEU's to the last digit, and `tokenizers`, which reads no `.model`, cuts some texts otherwise once one is
//! converted. The bindings of the C++ library would want CMake wherever Sluice is built.

mod bpe;
mod file;
mod normalizer;
mod unigram;

use file::{Algorithm, Kind, Piece};
use normalizer::Normalizer;
use std::collections::HashMap;

/// A sentencepiece model.
pub struct SentencePiece {
    pieces: Vec<Piece>,
    /// Numbers of the pieces that texts may hold, by how they are written.
    written: HashMap<String, usize>,
    /// Characters of the longest of them.
    longest: usize,
    /// The least and the highest score.
    scores: [f32; 2],
    normalizer: Normalizer,
    algorithm: Algorithm,
    /// Whether what is unknown is cut into bytes.
    bytes: bool,
}

impl SentencePiece {
    /// Reads a `.model`.
    ///
    /// # Errors
    /// Says what the file lacks, or has that isn't supported.
    pub fn read(bytes: &[u8]) -> Result<SentencePiece, String> {
        let file = file::read(bytes)?;
        let texts = file.pieces.iter().enumerate();
        let texts = texts.filter(|(_, piece)| piece.kind.is_in_texts());
        let written: HashMap<String, usize> = texts.map(|(i, piece)| (piece.text.clone(), i)).collect();
        let normal = file.pieces.iter().filter(|piece| piece.kind == Kind::Normal);
        let scores = normal.map(|piece| piece.score);
        // The library begins with the largest and the smallest float.
        let least = scores.clone().fold(f32::MAX, f32::min);
        let scores = [least, scores.fold(f32::MIN_POSITIVE, f32::max)];
        let own = file.pieces.iter().filter(|piece| piece.kind == Kind::UserDefined);
        Ok(SentencePiece {
            longest: written.keys().map(|text| text.chars().count()).max().unwrap_or(0),
            normalizer: Normalizer::new(file.normalizer, own.map(|piece| piece.text.clone()).collect())?,
            scores,
            pieces: file.pieces,
            written,
            algorithm: file.algorithm,
            bytes: file.byte_fallback,
        })
    }

    /// The pieces of a text; unknown characters side by side are one piece, as they are written.
    pub fn pieces(&self, text: &str) -> Vec<String> {
        let text = self.normalizer.normalize(text);
        let cut = match self.algorithm {
            Algorithm::Unigram => self.unigram(&text),
            Algorithm::Bpe => self.bpe(&text),
        };
        let mut pieces: Vec<String> = Vec::with_capacity(cut.len());
        let mut after_unknown = false;
        for written in cut {
            let unknown = match self.find(written) {
                Some(piece) => piece.kind == Kind::Unused && self.algorithm == Algorithm::Unigram,
                None => true,
            };
            match pieces.last_mut().filter(|_| unknown && after_unknown && !self.bytes) {
                Some(before) => before.push_str(written),
                None if unknown && self.bytes => {
                    pieces.extend(written.bytes().map(|byte| format!("<0x{byte:02X}>")));
                }
                None => pieces.push(written.to_owned()),
            }
            after_unknown = unknown;
        }
        pieces
    }

    /// The piece that is written so, where a text may hold it.
    fn find(&self, written: &str) -> Option<&Piece> {
        self.written.get(written).map(|&i| &self.pieces[i])
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Pieces, Tokenizer};
    use super::SentencePiece;
    use serde_json::Value;

    /// The library's pieces: `tests/fixtures/pieces.py`.
    #[test]
    fn pieces_are_those_of_the_library() {
        let fixture = include_str!("../../../../tests/fixtures/pieces.json");
        let fixture: Value = serde_json::from_str(fixture).unwrap();
        let dir = tempfile::tempdir().unwrap();
        for model in fixture["models"].as_array().unwrap() {
            let hex = model["file"].as_str().unwrap();
            let byte = |i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
            let file: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            let read = SentencePiece::read(&file).unwrap();
            let path = dir.path().join("m.model");
            std::fs::write(&path, &file).unwrap();
            let tokenizer = Tokenizer::Pieces(Pieces::load(&path).unwrap());
            let texts = fixture["texts"].as_array().unwrap();
            for (text, pieces) in texts.iter().zip(model["pieces"].as_array().unwrap()) {
                let found = Value::from(read.pieces(text.as_str().unwrap()));
                assert_eq!(found, *pieces, "{}: {text}", model["name"]);
            }
            let line = tokenizer.tokenize("The house is red.");
            assert_eq!(line.split(' ').collect::<Vec<_>>(), read.pieces("The house is red."));
            for length in 0..file.len().min(300) {
                let _ = SentencePiece::read(&file[..length]);
            }
        }
    }

    #[test]
    fn what_is_no_model_is_refused() {
        for bytes in [
            &b""[..],
            b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"text",
            &[0x0a; 40],
        ] {
            assert!(SentencePiece::read(bytes).is_err(), "{bytes:?}");
        }
    }
}
