//! What kind of input a file name announces.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// How rows are written in an input, once it is unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// One sentence a line: `.txt`, and every name that announces nothing else.
    Lines,
    /// Tab-separated columns under a header line: `.tsv`.
    Tsv,
    /// One JSON object a line: `.jsonl`.
    Jsonl,
}

/// How an input is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// gzip (`.gz`), of one member or several.
    Gzip,
    /// Zstandard (`.zst`), of one frame or several.
    Zstd,
}

impl Format {
    /// The format that the name of `path` announces: its extension, without `.gz` or `.zst`, in either case.
    pub fn of(path: &Path) -> Format {
        let name = match Packing::of(path) {
            Packing::Plain => path.to_path_buf(),
            Packing::Gzip | Packing::Zstd => path.with_extension(""),
        };
        match extension(&name).as_str() {
            "tsv" => Format::Tsv,
            "jsonl" => Format::Jsonl,
            _ => Format::Lines,
        }
    }

    /// The number of the line (counted from 1) that holds row `index` (counted from 0).
    pub(crate) fn line_of(self, index: u64) -> u64 {
        match self {
            Format::Lines | Format::Jsonl => index + 1,
            Format::Tsv => index + 2, // the header is line 1
        }
    }
}

impl Packing {
    /// The packing that the name of `path` announces.
    pub fn of(path: &Path) -> Packing {
        match extension(path).as_str() {
            "gz" => Packing::Gzip,
            "zst" => Packing::Zstd,
            _ => Packing::Plain,
        }
    }
}

fn extension(path: &Path) -> String {
    path.extension()
        .map(|e| e.to_string_lossy().to_ascii_lowercase())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_announce_format_and_packing() {
        for (name, format, packing) in [
            ("a.txt", Format::Lines, Packing::Plain),
            ("a", Format::Lines, Packing::Plain),
            ("demo.eng", Format::Lines, Packing::Plain),
            ("a.tsv", Format::Tsv, Packing::Plain),
            ("a.TSV.GZ", Format::Tsv, Packing::Gzip),
            ("a.b.jsonl.zst", Format::Jsonl, Packing::Zstd),
            ("a.gz", Format::Lines, Packing::Gzip),
            ("a.jsonl.txt", Format::Lines, Packing::Plain),
            ("dir.tsv/a", Format::Lines, Packing::Plain),
        ] {
            assert_eq!(
                (Format::of(Path::new(name)), Packing::of(Path::new(name))),
                (format, packing),
                "{name}"
            );
        }
    }
}
