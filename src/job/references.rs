//! Files of references: line `i` belongs to record `i` of a corpus.

use crate::corpus::{scan, Reading, Record, Scan, WindowLimits, WindowReader};
use anyhow::{bail, Context, Result};
use std::path::Path;

/// A reference file read forwards, a window at a time.
pub struct References {
    reader: WindowReader,
    rows: u64,
    next: usize,
    first: u64,
    lines: Vec<Record>,
}

impl References {
    /// Looks through the whole file `path`, which [`References::open`] can then read any number of times.
    ///
    /// # Errors
    /// It can't be read, or a line can't be used.
    pub fn scan(path: &Path) -> Result<Scan> {
        let found = scan(&[path], &Reading::default(), WindowLimits::default(), &mut |_, _| ())
            .with_context(|| format!("--references {}", path.display()))?;
        if let Some(refusal) = found.refusal() {
            bail!("--references {refusal}");
        }
        Ok(found)
    }

    /// Opens the file that `scan` saw.
    ///
    /// # Errors
    /// It is gone or shorter than it was.
    pub fn open(scan: &Scan) -> Result<References> {
        Ok(References {
            reader: WindowReader::open(scan).context("--references")?,
            rows: scan.rows,
            next: 0,
            first: 0,
            lines: Vec::new(),
        })
    }

    /// Line `line` of `0..rows`; asked for in ascending order.
    ///
    /// # Errors
    /// There is no such line, or the file changed.
    pub fn line(&mut self, line: u64) -> Result<&str> {
        if line >= self.rows {
            bail!("--references: line {} of {} was asked for", line + 1, self.rows);
        }
        while line >= self.first + self.lines.len() as u64 {
            self.first += self.lines.len() as u64;
            self.lines = self.reader.read(self.next).context("--references")?;
            self.next += 1;
        }
        Ok(&self.lines[(line - self.first) as usize].text)
    }
}
