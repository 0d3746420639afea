//! Reading a scanned input window by window.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;

use anyhow::{anyhow, bail, Result};
use sha2::{Digest, Sha256};

use super::format::Packing;
use super::pass::hex;
use super::record::{parse, Place, Record};
use super::scan::{InputFile, Scan, WindowStart};
use super::source;

/// Reads the windows of a scanned input, in any order.
///
/// A plain file is read in place; a packed one forwards, and from its start again when asked to go back. Nothing
/// beyond what the scan saw is ever read, and every window is compared with the scan.
pub struct WindowReader {
    scan: Scan,
    /// The file read last, which is kept open, and its number.
    open: Option<(usize, Bytes)>,
}

enum Bytes {
    Plain(File),
    /// The stream and the decoded byte it stands at.
    Packed(Box<dyn BufRead + Send>, u64),
}

/// The part of a window that lies in one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    file: usize,
    offset: u64,
    bytes: u64,
}

impl WindowReader {
    /// Opens the input that `scan` saw.
    ///
    /// # Errors
    /// A file is gone, or shorter than it was.
    pub fn open(scan: &Scan) -> Result<WindowReader> {
        for file in &scan.files {
            let found = source::check(&file.path, file.packing)?;
            if found < file.file_bytes {
                bail!(
                    "{}: has {found} bytes, but {} when it was scanned: the input shrank; put it back, or start anew \
                     with another output",
                    file.path.display(),
                    file.file_bytes
                );
            }
        }
        Ok(WindowReader {
            scan: scan.clone(),
            open: None,
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
                self.scan.name(),
                self.scan.windows.len()
            );
        };
        let pieces = pieces(&self.scan.files, &start);
        let mut digest = Sha256::new();
        let mut bytes = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let read = self.fetch(*piece, &start)?;
            digest.update(&read);
            bytes.push(read);
        }
        if hex(digest) != start.digest {
            return Err(self.changed(&start, "other bytes"));
        }
        let mut records = Vec::with_capacity(start.rows as usize);
        for (piece, bytes) in pieces.iter().zip(&bytes) {
            let (file, mut offset) = (&self.scan.files[piece.file], piece.offset);
            for raw in bytes.split_inclusive(|b| *b == b'\n') {
                let index = start.first_row + records.len() as u64;
                let place = Place { index, offset };
                records.push(parse(
                    raw,
                    place,
                    file.format,
                    &self.scan.reading,
                    file.columns.as_ref(),
                ));
                offset += raw.len() as u64;
            }
        }
        if records.len() as u64 != start.rows {
            return Err(self.changed(&start, &format!("{} rows", records.len())));
        }
        Ok(records)
    }

    fn fetch(&mut self, piece: Piece, window: &WindowStart) -> Result<Vec<u8>> {
        let file = &self.scan.files[piece.file];
        let mut bytes = vec![0; piece.bytes as usize];
        // What fails half-way is not kept open: nobody knows where the stream stands.
        let mut open = match (self.open.take(), file.packing) {
            (Some((number, Bytes::Packed(stream, at))), _) if number == piece.file && at <= piece.offset => {
                Bytes::Packed(stream, at)
            }
            (Some((number, Bytes::Plain(file))), _) if number == piece.file => Bytes::Plain(file),
            (_, Packing::Plain) => Bytes::Plain(source::open_file(&file.path)?),
            (_, Packing::Gzip | Packing::Zstd) => {
                Bytes::Packed(source::open(&file.path, file.packing, file.file_bytes)?, 0)
            }
        };
        let read = match &mut open {
            Bytes::Plain(file) => file.read_exact_at(&mut bytes, piece.offset),
            Bytes::Packed(stream, at) => {
                let read = skip(&mut **stream, piece.offset - *at).and_then(|()| stream.read_exact(&mut bytes));
                *at = piece.offset + piece.bytes;
                read
            }
        };
        match read {
            Ok(()) => {
                self.open = Some((piece.file, open));
                Ok(bytes)
            }
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Err(self.changed(window, "an end before that")),
            Err(e) => Err(source::read_error(&file.path, file.packing, piece.offset, e)),
        }
    }

    fn changed(&self, start: &WindowStart, found: &str) -> anyhow::Error {
        let last = start.first_row + start.rows - 1;
        anyhow!(
            "{}: changed since it was scanned: {found} where rows {} to {last} were ({} to {}); put the input back, or \
             start anew with another output",
            self.scan.name(),
            start.first_row,
            self.scan.place(start.first_row),
            self.scan.place(last)
        )
    }
}

/// The parts of a window, file by file: each file's rows reach to its end.
fn pieces(files: &[InputFile], window: &WindowStart) -> Vec<Piece> {
    let (mut offset, mut left) = (window.offset, window.bytes);
    let mut pieces = Vec::new();
    for (number, file) in files.iter().enumerate().skip(window.file) {
        if number > window.file {
            offset = file.body;
        }
        let bytes = left.min(file.bytes - offset);
        if bytes > 0 {
            pieces.push(Piece {
                file: number,
                offset,
                bytes,
            });
        }
        left -= bytes;
        if left == 0 {
            break;
        }
    }
    pieces
}

/// Passes over `bytes` bytes of a stream.
fn skip(stream: &mut dyn BufRead, bytes: u64) -> io::Result<()> {
    let passed = io::copy(&mut stream.take(bytes), &mut io::sink())?;
    if passed < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}
