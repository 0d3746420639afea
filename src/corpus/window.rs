//! Reading a scanned input window by window.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use anyhow::{anyhow, bail, Result};
use sha2::{Digest, Sha256};

use super::format::Packing;
use super::record::{parse, Place, Record};
use super::scan::{hex, Scan, WindowStart};
use super::source;

/// Reads the windows of a scanned input, in any order.
///
/// A plain file is read in place; a packed one forwards, and from its start again when asked to go back. Nothing
/// beyond what the scan saw is ever read, and every window is compared with the scan.
pub struct WindowReader {
    scan: Scan,
    bytes: Bytes,
}

enum Bytes {
    Plain(File),
    /// The stream and the decoded byte it stands at; none before the first read and after an error.
    Packed(Option<(Box<dyn BufRead + Send>, u64)>),
}

impl WindowReader {
    /// Opens the input that `scan` saw.
    ///
    /// # Errors
    /// The file is gone, or shorter than it was.
    pub fn open(scan: &Scan) -> Result<WindowReader> {
        let found = source::check(&scan.path, scan.packing)?;
        if found < scan.file_bytes {
            bail!(
                "{}: has {found} bytes, but {} when it was scanned: the input shrank; put it back, or start anew \
                 with another output",
                scan.path.display(),
                scan.file_bytes
            );
        }
        let bytes = match scan.packing {
            Packing::Plain => Bytes::Plain(source::open_file(&scan.path)?),
            Packing::Gzip | Packing::Zstd => Bytes::Packed(None),
        };
        Ok(WindowReader {
            scan: scan.clone(),
            bytes,
        })
    }

    /// The rows of window number `window`.
    ///
    /// # Errors
    /// There is no such window; reading fails; the bytes are not those of the scan.
    pub fn read(&mut self, window: usize) -> Result<Vec<Record>> {
        let Some(start) = self.scan.windows.get(window).cloned() else {
            bail!(
                "{}: window {window} of {} was asked for",
                self.scan.path.display(),
                self.scan.windows.len()
            );
        };
        let bytes = self.fetch(&start)?;
        if hex(Sha256::new_with_prefix(&bytes)) != start.digest {
            return Err(self.changed(&start, "other bytes"));
        }
        let mut offset = start.offset;
        let mut records = Vec::with_capacity(start.rows as usize);
        for (index, raw) in (start.first_row..).zip(bytes.split_inclusive(|b| *b == b'\n')) {
            records.push(parse(
                raw,
                Place { index, offset },
                self.scan.format,
                self.scan.columns.as_ref(),
            ));
            offset += raw.len() as u64;
        }
        if records.len() as u64 != start.rows {
            return Err(self.changed(&start, &format!("{} rows", records.len())));
        }
        Ok(records)
    }

    fn fetch(&mut self, start: &WindowStart) -> Result<Vec<u8>> {
        let mut bytes = vec![0; start.bytes as usize];
        let read = match &mut self.bytes {
            Bytes::Plain(file) => file.read_exact_at(&mut bytes, start.offset),
            Bytes::Packed(stream) => {
                let (mut stream, at) = match stream.take() {
                    Some((stream, at)) if at <= start.offset => (stream, at),
                    _ => (
                        source::open(&self.scan.path, self.scan.packing, self.scan.file_bytes)?,
                        0,
                    ),
                };
                let read = skip(&mut *stream, start.offset - at).and_then(|()| stream.read_exact(&mut bytes));
                if read.is_ok() {
                    self.bytes = Bytes::Packed(Some((stream, start.offset + start.bytes)));
                }
                read
            }
        };
        match read {
            Ok(()) => Ok(bytes),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.changed(start, "an end before that")),
            Err(e) => Err(source::read_error(&self.scan.path, self.scan.packing, start.offset, e)),
        }
    }

    fn changed(&self, start: &WindowStart, found: &str) -> anyhow::Error {
        anyhow!(
            "{}: changed since it was scanned: {found} where rows {} to {} were (decoded bytes {} to {}); put the input \
             back, or start anew with another output",
            self.scan.path.display(),
            start.first_row,
            start.first_row + start.rows - 1,
            start.offset,
            start.offset + start.bytes
        )
    }
}

/// Passes over `bytes` bytes of a stream.
fn skip(stream: &mut dyn BufRead, bytes: u64) -> io::Result<()> {
    let passed = io::copy(&mut stream.take(bytes), &mut io::sink())?;
    if passed < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
