//! What the one pass over an input found.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::format::{Format, Packing};
use super::reading::Reading;
use super::settings::NotFollowed;
use super::tsv::Columns;

/// The size of a window: whichever limit is reached first closes it. A window has at least one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowLimits {
    /// Rows.
    pub lines: u64,
    /// Bytes of the decoded input.
    pub bytes: u64,
}

impl Default for WindowLimits {
    fn default() -> Self {
        WindowLimits {
            lines: 65_536,
            bytes: 32 << 20,
        }
    }
}

/// One window: consecutive rows of the input, of one file or several that follow each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowStart {
    /// Number of its first row.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
    /// Number of the file in which it begins.
    pub file: usize,
    /// Byte in that decoded file at which it begins.
    pub offset: u64,
    /// How many decoded bytes its rows have.
    pub bytes: u64,
    /// SHA-256 of these bytes, hexadecimal.
    pub digest: String,
}

/// A row that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Its number.
    pub row: u64,
    /// What is wrong, where, and what to do.
    pub what: String,
}

/// Where a row stands: as `corpus.txt, line 3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowPlace<'a> {
    /// The file.
    pub path: &'a Path,
    /// The number of the line in it, from 1.
    pub line: u64,
}

impl fmt::Display for RowPlace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)
    }
}

/// One file of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InputFile {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// How rows are written.
    pub format: Format,
    /// How the file is compressed.
    pub packing: Packing,
    /// Length of the file on disk, in bytes.
    pub file_bytes: u64,
    /// Length of the decoded file, in bytes.
    pub bytes: u64,
    /// SHA-256 of the decoded bytes, hexadecimal.
    pub digest: String,
    /// Number of its first row.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
    /// Byte in the decoded file at which its first row begins.
    pub body: u64,
    /// Where the columns lie (TSV only).
    pub columns: Option<Columns>,
}

/// What one pass over an input found. It is all that another rank needs to read the input ([`super::WindowReader`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// What is read from a row.
    pub reading: Reading,
    /// The files, in the order of their rows; at least one.
    pub files: Vec<InputFile>,
    /// Length of all decoded files, in bytes.
    pub bytes: u64,
    /// SHA-256, hexadecimal: of the decoded bytes of a single file, else of the files' digests and formats.
    pub digest: String,
    /// How many rows there are, blank ones and ones with problems included.
    pub rows: u64,
    /// How many rows are blank.
    pub blank: u64,
    /// The rows in windows, in order.
    pub windows: Vec<WindowStart>,
    /// The first ten rows that cannot be used.
    pub problems: Vec<Problem>,
    /// How many rows cannot be used.
    pub problem_count: u64,
    /// The first usable row that names no source language.
    pub without_source: Option<u64>,
    /// The first usable row that names no target language.
    pub without_target: Option<u64>,
    /// Source language codes that rows name, each with the first such row.
    pub source_langs: BTreeMap<String, u64>,
    /// Target language codes, likewise.
    pub target_langs: BTreeMap<String, u64>,
    /// The first row whose prompt is a chat, which needs a chat template.
    pub chat: Option<u64>,
    /// What chat templates are to be given beside messages, by name, each with the first such row.
    pub template_arguments: BTreeMap<String, u64>,
    /// The most new tokens that a row asks for, with the first such row.
    pub most_new_tokens: Option<(u32, u64)>,
    /// What rows ask for and don't get, by name.
    pub not_followed: BTreeMap<String, NotFollowed>,
}

impl Scan {
    /// The input in few words: the file, or the first one and how many follow.
    pub fn name(&self) -> String {
        let first = self.files.first().map(|file| file.path.display().to_string());
        match (first.unwrap_or_default(), self.files.len()) {
            (first, 0 | 1) => first,
            (first, 2) => format!("{first} and another file"),
            (first, files) => format!("{first} and {} more files", files - 1),
        }
    }

    /// Where row number `row` stands.
    pub fn place(&self, row: u64) -> RowPlace<'_> {
        let after = self.files.partition_point(|file| file.first_row <= row);
        // Of files that begin with the same row all but the last are empty.
        match self.files.get(after.saturating_sub(1)) {
            Some(file) => RowPlace {
                path: &file.path,
                line: row - file.first_row + 1 + u64::from(file.format == Format::Tsv && self.reading.has_header()),
            },
            None => RowPlace {
                path: Path::new(""),
                line: row + 1,
            },
        }
    }

    /// Why the input should be refused, in one message: the first rows that cannot be used, and how many there are.
    pub fn refusal(&self) -> Option<String> {
        if self.problem_count == 0 {
            return None;
        }
        let mut message = format!(
            "{}: {} of {} rows cannot be used",
            self.name(),
            self.problem_count,
            self.rows
        );
        for problem in &self.problems {
            let place = self.place(problem.row);
            message.push_str(&match self.files.len() {
                1 => format!("\n  line {}: {}", place.line, problem.what),
                _ => format!("\n  {place}: {}", problem.what),
            });
        }
        let more = self.problem_count - self.problems.len() as u64;
        if more > 0 {
            message.push_str(&format!("\n  and {more} more"));
        }
        Some(message)
    }
}
