//! What kind of input a file name announces.

use std::path::Path;
use std::str::FromStr;

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};

/// How rows are written in an input, once it is unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// One text a line: `.txt`, and every name that announces nothing else.
    #[default]
    Lines,
    /// Tab-separated columns, under a header line unless columns are given by number: `.tsv`.
    Tsv,
    /// One JSON object a line: `.jsonl`, `.ndjson`.
    Jsonl,
}

/// How an input is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Packing {
    /// Not at all.
    #[default]
    Plain,
    /// gzip (`.gz`), of one member or several.
    Gzip,
    /// Zstandard (`.zst`), of one frame or several.
    Zstd,
}

impl Format {
    /// The format that the name of `path` announces: its extension, without `.gz` or `.zst`, in either case.
    ///
    /// # Errors
    /// The name announces what is not read (`.csv`, `.json`), which as plain lines would make rows of its markup.
    pub fn of(path: &Path) -> Result<Format> {
        let name = match Packing::of(path) {
            Packing::Plain => path.to_path_buf(),
            Packing::Gzip | Packing::Zstd => path.with_extension(""),
        };
        let cure = match extension(&name).as_str() {
            "tsv" => return Ok(Format::Tsv),
            "jsonl" | "ndjson" => return Ok(Format::Jsonl),
            "csv" => "commas and quotes are not read: convert it to .tsv (a tab between columns, no quoting)",
            "json" => {
                "one JSON text over many lines is not read: give .jsonl, an object a line (`jq -c '.[]'` makes one)"
            }
            _ => return Ok(Format::Lines),
        };
        bail!(
            "{}: {cure}; if only the name is wrong, say --format lines, tsv or jsonl",
            path.display()
        )
    }
}

impl FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Format> {
        match name {
            "lines" => Ok(Format::Lines),
            "tsv" => Ok(Format::Tsv),
            "jsonl" => Ok(Format::Jsonl),
            _ => bail!("`{name}` is no input format: lines, tsv or jsonl"),
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
            ("a.ndjson", Format::Jsonl, Packing::Plain),
            ("a.gz", Format::Lines, Packing::Gzip),
            ("a.jsonl.txt", Format::Lines, Packing::Plain),
            ("dir.tsv/a", Format::Lines, Packing::Plain),
        ] {
            assert_eq!(
                (Format::of(Path::new(name)).unwrap(), Packing::of(Path::new(name))),
                (format, packing),
                "{name}"
            );
        }
    }

    #[test]
    fn names_of_what_is_not_read_are_refused() {
        for (name, cure) in [
            ("a.csv", ".tsv"),
            ("a.CSV.gz", ".tsv"),
            ("a.json", ".jsonl"),
            ("a.json.zst", ".jsonl"),
        ] {
            let message = Format::of(Path::new(name)).unwrap_err().to_string();
            assert!(message.starts_with(name) && message.contains(cure), "{message}");
            assert!(message.contains("--format"), "{message}");
        }
    }

    #[test]
    fn formats_have_names() {
        for (name, format) in [("lines", Format::Lines), ("tsv", Format::Tsv), ("jsonl", Format::Jsonl)] {
            assert_eq!(name.parse::<Format>().unwrap(), format);
        }
        assert!("csv".parse::<Format>().unwrap_err().to_string().contains("jsonl"));
    }
}
