//! The one pass over an input before any work starts.

use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

use anyhow::{anyhow, bail, Context, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::format::{Format, Packing};
use super::prompt::not_followed;
use super::reading::{Kind, Reading};
use super::record::{is_blank_line, line_content, with_object, Place, Prompt, Record};
use super::scan::{InputFile, Problem, Scan, WindowLimits, WindowStart};
use super::settings::count_not_followed;
use super::source;
use super::tsv::Columns;

/// The longest line that is taken, in bytes.
pub const MAX_LINE_BYTES: u64 = 64 << 20;

/// How many problems a [`Scan`] describes; the others are counted.
const DESCRIBED: usize = 10;

/// Reads the files of an input once, checks all of them, and cuts their rows into windows. Packing, and format unless
/// `reading` gives it, follow from the names. Rows are numbered through all files.
///
/// `paths` are files, as [`super::paths`] gives them. `progress` is told the rows and decoded bytes seen so far, once a
/// window.
///
/// # Errors
/// No file; a file that cannot be read from end to end as what its name says: missing, a folder, cut off, a TSV header
/// without known names, a line above [`MAX_LINE_BYTES`]; a reading that no file can follow. Rows that cannot be used
/// are no error here: see [`Scan::refusal`].
pub fn scan(
    paths: &[impl AsRef<Path>],
    reading: &Reading,
    limits: WindowLimits,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Scan> {
    scan_for_job(paths, reading, &BTreeMap::new(), limits, progress)
}

/// As [`scan`]. `job_settings` are the job's by the names that rows of prompts have for them: a row that asks for the same
/// gets it, one that asks for another value is counted in [`Scan::not_followed`].
///
/// # Errors
/// As of [`scan`].
pub(crate) fn scan_for_job(
    paths: &[impl AsRef<Path>],
    reading: &Reading,
    job_settings: &BTreeMap<String, Value>,
    limits: WindowLimits,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Scan> {
    let files = paths.iter().map(|path| begin(path.as_ref(), reading));
    let files: Vec<InputFile> = files.collect::<Result<_>>()?;
    if files.is_empty() {
        bail!("no input: give at least one file");
    }
    let formats: Vec<Format> = files.iter().map(|file| file.format).collect();
    reading.check(&formats)?;
    let mut pass = Pass::new(reading, job_settings);
    let mut line = Vec::new();
    for file in files {
        let mut stream = source::open(&file.path, file.packing, file.file_bytes)?;
        pass.begin(file);
        while read_line(&mut *stream, &pass, &mut line)? {
            if pass.window_is_full(line.len() as u64, limits) {
                pass.close_window();
                progress(pass.scan.rows, pass.scan.bytes + pass.file.bytes);
            }
            pass.take(&line)?;
        }
        pass.end();
    }
    Ok(pass.finish())
}

/// A file before it is read.
fn begin(path: &Path, reading: &Reading) -> Result<InputFile> {
    let path = std::path::absolute(path).with_context(|| format!("{}: no usable path", path.display()))?;
    if path.to_str().is_none() {
        bail!(
            "{}: the path is not UTF-8, so it cannot be kept with the results: rename it",
            path.display()
        );
    }
    let packing = Packing::of(&path);
    let file_bytes = source::check(&path, packing)?;
    let format = match reading.format {
        Some(format) => format,
        None => Format::of(&path)?,
    };
    Ok(InputFile {
        path,
        format,
        packing,
        file_bytes,
        bytes: 0,
        digest: String::new(),
        first_row: 0,
        rows: 0,
        body: 0,
        columns: None,
    })
}

/// Reads the next line, its line end included; false at the end of the file.
fn read_line(stream: &mut dyn BufRead, pass: &Pass, line: &mut Vec<u8>) -> Result<bool> {
    let InputFile {
        path, packing, bytes, ..
    } = &pass.file;
    line.clear();
    let mut bounded = stream.take(MAX_LINE_BYTES + 1);
    bounded
        .read_until(b'\n', line)
        .map_err(|e| source::read_error(path, *packing, bytes + line.len() as u64, e))?;
    if line.len() as u64 > MAX_LINE_BYTES {
        bail!(
            "{}: the line that begins at decoded byte {bytes} (row {}) has more than {} MiB: is this a text file with a \
             text a line?",
            path.display(),
            pass.scan.rows,
            MAX_LINE_BYTES >> 20
        );
    }
    Ok(!line.is_empty())
}

/// The state of the pass: what was found so far, the file that is read, and the window that is open.
struct Pass<'a> {
    scan: Scan,
    job_settings: &'a BTreeMap<String, Value>,
    file: InputFile,
    all: Sha256,
    open: Option<(WindowStart, Sha256)>,
}

impl<'a> Pass<'a> {
    fn new(reading: &Reading, job_settings: &'a BTreeMap<String, Value>) -> Pass<'a> {
        Pass {
            job_settings,
            scan: Scan {
                reading: reading.clone(),
                files: Vec::new(),
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
                chat: None,
                template_arguments: BTreeMap::new(),
                most_new_tokens: None,
                not_followed: BTreeMap::new(),
            },
            file: InputFile::default(),
            all: Sha256::new(),
            open: None,
        }
    }

    fn begin(&mut self, file: InputFile) {
        self.file = InputFile {
            first_row: self.scan.rows,
            ..file
        };
    }

    fn end(&mut self) {
        let mut file = std::mem::take(&mut self.file);
        file.rows = self.scan.rows - file.first_row;
        file.digest = hex(std::mem::take(&mut self.all));
        self.scan.bytes += file.bytes;
        self.scan.files.push(file);
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
        let offset = self.file.bytes;
        self.all.update(raw);
        self.file.bytes += raw.len() as u64;
        let content = line_content(raw, offset);
        if offset == 0 && raw.len() == 3 && content.is_empty() {
            self.file.body = self.file.bytes;
            return Ok(()); // a byte order mark and nothing else: an empty file
        }
        if self.file.format == Format::Tsv && self.file.columns.is_none() {
            self.file.columns = columns(&self.file.path, content, &self.scan.reading)?;
            if self.scan.reading.has_header() {
                self.file.body = self.file.bytes;
                return Ok(());
            }
        }
        let place = Place {
            index: self.scan.rows,
            offset,
        };
        let columns = self.file.columns.as_ref();
        let (record, object) = with_object(raw, place, self.file.format, &self.scan.reading, columns);
        let (window, digest) = self.open.get_or_insert_with(|| {
            let window = WindowStart {
                first_row: place.index,
                rows: 0,
                file: self.scan.files.len(),
                offset,
                bytes: 0,
                digest: String::new(),
            };
            (window, Sha256::new())
        });
        digest.update(raw);
        window.rows += 1;
        window.bytes += raw.len() as u64;
        if self.scan.reading.kind == Kind::Prompts {
            let asked = not_followed(&object, &record.prompt, self.job_settings);
            count_not_followed(&mut self.scan.not_followed, asked, record.index);
        }
        self.count(record);
        Ok(())
    }

    fn count(&mut self, record: Record) {
        let row = record.index;
        self.scan.rows += 1;
        let blank = record.problem.is_none() && record.is_blank();
        self.scan.blank += u64::from(blank);
        let needs_languages = record.problem.is_none() && !blank;
        if let Some(what) = record.problem {
            self.scan.problem_count += 1;
            if self.scan.problems.len() < DESCRIBED {
                self.scan.problems.push(Problem { row, what });
            }
        }
        if let Prompt::Messages(chat) = record.prompt {
            self.scan.chat.get_or_insert(row);
            for (name, _) in chat.template_arguments {
                self.scan.template_arguments.entry(name).or_insert(row);
            }
        }
        if let Some(tokens) = record.settings.max_new_tokens {
            let most = &mut self.scan.most_new_tokens;
            *most = most.filter(|(most, _)| *most >= tokens).or(Some((tokens, row)));
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
                Some(code) => drop(seen.entry(code).or_insert(row)),
                None if needs_languages => drop(without.get_or_insert(row)),
                None => {}
            }
        }
    }

    fn finish(mut self) -> Scan {
        self.close_window();
        self.scan.digest = match &self.scan.files[..] {
            [file] => file.digest.clone(),
            files => {
                let mut all = Sha256::new();
                for file in files {
                    all.update(format!("{} {:?}\n", file.digest, file.format));
                }
                hex(all)
            }
        };
        self.scan
    }
}

/// The columns of a TSV file, from its header or its first row; none yet where a file without a header begins with a
/// blank line.
fn columns(path: &Path, content: &[u8], reading: &Reading) -> Result<Option<Columns>> {
    let unusable = || format!("{}: not a usable .tsv file", path.display());
    if !reading.has_header() {
        return match std::str::from_utf8(content) {
            Ok(line) if is_blank_line(line) => Ok(None),
            _ => Columns::of_numbers(content, reading).map(Some).with_context(unusable),
        };
    }
    let header = std::str::from_utf8(content).map_err(|e| {
        anyhow!(
            "{}: the header (line 1) is not UTF-8 at byte {}: convert the file with iconv",
            path.display(),
            e.valid_up_to()
        )
    })?;
    Columns::of_header(header, reading).map(Some).with_context(unusable)
}

/// A finished SHA-256 as hexadecimal digits.
pub(crate) fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|b| format!("{b:02x}")).collect()
}
