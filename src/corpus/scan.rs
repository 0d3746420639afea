//! The one pass over an input before any work starts.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Context, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::format::{Format, Packing};
use super::record::{line_content, parse, Columns, Place, Record};
use super::source;

/// The longest line that is taken, in bytes.
pub const MAX_LINE_BYTES: u64 = 64 << 20;

/// How many problems a [`Scan`] describes; the others are counted.
const DESCRIBED: usize = 10;

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

/// One window: consecutive rows of the input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowStart {
    /// Number of its first row.
    pub first_row: u64,
    /// How many rows it has.
    pub rows: u64,
    /// Byte in the decoded input at which it begins.
    pub offset: u64,
    /// How many decoded bytes it has.
    pub bytes: u64,
    /// SHA-256 of these bytes, hexadecimal.
    pub digest: String,
}

/// A row that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Number of its line, from 1.
    pub line: u64,
    /// What is wrong, where, and what to do.
    pub what: String,
}

/// What one pass over an input found. It is all that another rank needs to read the input ([`super::WindowReader`]).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scan {
    /// The file, as an absolute path.
    pub path: PathBuf,
    /// How rows are written.
    pub format: Format,
    /// How the file is compressed.
    pub packing: Packing,
    /// Length of the file on disk, in bytes.
    pub file_bytes: u64,
    /// Length of the decoded input, in bytes.
    pub bytes: u64,
    /// SHA-256 of the decoded bytes, hexadecimal.
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
    /// The first line, from 1, of a usable row that names no source language.
    pub without_source: Option<u64>,
    /// The first line, from 1, of a usable row that names no target language.
    pub without_target: Option<u64>,
    /// Source language codes that rows name, each with the number of the first such line (from 1).
    pub source_langs: BTreeMap<String, u64>,
    /// Target language codes, likewise.
    pub target_langs: BTreeMap<String, u64>,
    /// Where the columns lie (TSV with a header only).
    pub columns: Option<Columns>,
}

impl Scan {
    /// Why the input should be refused, in one message: the first rows that cannot be used, and how many there are.
    pub fn refusal(&self) -> Option<String> {
        if self.problem_count == 0 {
            return None;
        }
        let mut message = format!(
            "{}: {} of {} rows cannot be used",
            self.path.display(),
            self.problem_count,
            self.rows
        );
        for problem in &self.problems {
            message.push_str(&format!("\n  line {}: {}", problem.line, problem.what));
        }
        let more = self.problem_count - self.problems.len() as u64;
        if more > 0 {
            message.push_str(&format!("\n  and {more} more"));
        }
        Some(message)
    }
}

/// Reads the input `path` once, checks all of it, and cuts it into windows. Format and packing follow from the name.
///
/// `progress` is told the rows and decoded bytes seen so far, once a window.
///
/// # Errors
/// The file cannot be read from end to end as what its name says: missing, a folder, cut off, a TSV header without
/// known names, a line above [`MAX_LINE_BYTES`]. Rows that cannot be used are no error here: see [`Scan::refusal`].
pub fn scan(path: &Path, limits: WindowLimits, progress: &mut dyn FnMut(u64, u64)) -> Result<Scan> {
    scan_as(path, Format::of(path), Packing::of(path), limits, progress)
}

/// [`scan()`] for a file whose name does not tell what it holds.
///
/// # Errors
/// As [`scan()`].
pub fn scan_as(
    path: &Path,
    format: Format,
    packing: Packing,
    limits: WindowLimits,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Scan> {
    let path = std::path::absolute(path).with_context(|| format!("{}: no usable path", path.display()))?;
    if path.to_str().is_none() {
        bail!(
            "{}: the path is not UTF-8, so it cannot be kept with the results: rename it",
            path.display()
        );
    }
    let file_bytes = source::check(&path, packing)?;
    let mut stream = source::open(&path, packing, file_bytes)?;
    let mut pass = Pass::new(Scan {
        path,
        format,
        packing,
        file_bytes,
        bytes: 0,
        digest: String::new(),
        rows: 0,
        blank: 0,
        windows: Vec::new(),
        problems: Vec::new(),
        problem_count: 0,
        without_source: None,
        without_target: None,
        source_langs: BTreeMap::new(),
        target_langs: BTreeMap::new(),
        columns: None,
    });
    let mut line = Vec::new();
    while read_line(&mut *stream, &pass.scan, &mut line)? {
        if pass.window_is_full(line.len() as u64, limits) {
            pass.close_window();
            progress(pass.scan.rows, pass.scan.bytes);
        }
        pass.take(&line)?;
    }
    Ok(pass.finish())
}

/// Reads the next line, its line end included; false at the end of the input.
fn read_line(stream: &mut dyn BufRead, scan: &Scan, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    let mut bounded = stream.take(MAX_LINE_BYTES + 1);
    bounded
        .read_until(b'\n', line)
        .map_err(|e| source::read_error(&scan.path, scan.packing, scan.bytes + line.len() as u64, e))?;
    if line.len() as u64 > MAX_LINE_BYTES {
        bail!(
            "{}: the line that begins at decoded byte {} (row {}) has more than {} MiB: is this a text file with a \
             sentence a line?",
            scan.path.display(),
            scan.bytes,
            scan.rows,
            MAX_LINE_BYTES >> 20
        );
    }
    Ok(!line.is_empty())
}

/// The state of the pass: what was found so far, and the window that is open.
struct Pass {
    scan: Scan,
    all: Sha256,
    open: Option<(WindowStart, Sha256)>,
}

impl Pass {
    fn new(scan: Scan) -> Pass {
        Pass {
            scan,
            all: Sha256::new(),
            open: None,
        }
    }

    fn window_is_full(&self, more: u64, limits: WindowLimits) -> bool {
        self.open
            .as_ref()
            .is_some_and(|(w, _)| w.rows >= limits.lines || w.bytes + more > limits.bytes)
    }

    fn close_window(&mut self) {
        if let Some((mut window, digest)) = self.open.take() {
            window.digest = hex(digest);
            self.scan.windows.push(window);
        }
    }

    /// Takes one raw line: the TSV header, or a row.
    fn take(&mut self, raw: &[u8]) -> Result<()> {
        let offset = self.scan.bytes;
        self.all.update(raw);
        self.scan.bytes += raw.len() as u64;
        if offset == 0 {
            if self.scan.format == Format::Tsv {
                self.scan.columns = Some(header(&self.scan.path, raw)?);
                return Ok(());
            }
            if raw.len() == 3 && line_content(raw, 0).is_empty() {
                return Ok(()); // a byte order mark and nothing else: an empty file
            }
        }
        let place = Place {
            index: self.scan.rows,
            offset,
        };
        let record = parse(raw, place, self.scan.format, self.scan.columns.as_ref());
        let (window, digest) = self.open.get_or_insert_with(|| {
            let window = WindowStart {
                first_row: place.index,
                rows: 0,
                offset,
                bytes: 0,
                digest: String::new(),
            };
            (window, Sha256::new())
        });
        digest.update(raw);
        window.rows += 1;
        window.bytes += raw.len() as u64;
        self.count(record);
        Ok(())
    }

    fn count(&mut self, record: Record) {
        let line = self.scan.format.line_of(record.index);
        self.scan.rows += 1;
        let blank = record.problem.is_none() && record.is_blank();
        self.scan.blank += u64::from(blank);
        let needs_languages = record.problem.is_none() && !blank;
        if let Some(what) = record.problem {
            self.scan.problem_count += 1;
            if self.scan.problems.len() < DESCRIBED {
                self.scan.problems.push(Problem { line, what });
            }
        }
        let Scan {
            source_langs,
            target_langs,
            without_source,
            without_target,
            ..
        } = &mut self.scan;
        for (lang, seen, without) in [
            (record.source_lang, source_langs, without_source),
            (record.target_lang, target_langs, without_target),
        ] {
            match lang {
                Some(code) => drop(seen.entry(code).or_insert(line)),
                None if needs_languages => drop(without.get_or_insert(line)),
                None => {}
            }
        }
    }

    fn finish(mut self) -> Scan {
        self.close_window();
        self.scan.digest = hex(self.all);
        self.scan
    }
}

fn header(path: &Path, raw: &[u8]) -> Result<Columns> {
    let header = std::str::from_utf8(line_content(raw, 0)).map_err(|e| {
        anyhow!(
            "{}: the header (line 1) is not UTF-8 at byte {}: convert the file with iconv",
            path.display(),
            e.valid_up_to()
        )
    })?;
    Columns::of_header(header).with_context(|| format!("{}: not a usable .tsv file", path.display()))
}

/// A finished SHA-256 as hexadecimal digits.
pub(crate) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
