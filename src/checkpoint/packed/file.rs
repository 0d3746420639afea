//! A file of packed experts, opened.

use super::direct::{Access, Direct};
use super::header::{self, Header, Layout, PREFIX};
use super::padded;
use anyhow::{anyhow, ensure, Context, Result};
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// What to do about a file that can't be opened.
const CURE: &str = "delete it: it will be made again";
/// What to do about one that turns out to be damaged in a run.
const GO_ON: &str = "delete it and it will be made again; the same command then goes on from here";
/// What to do when the system can't read it.
const MEND: &str = "once its disk or file system is mended, the same command goes on from here";

/// A file of packed experts. Only its header is in memory; reads may come from several threads.
#[derive(Debug)]
pub struct PackedFile {
    path: PathBuf,
    file: Direct,
    layout: Layout,
    /// CRC-32 of each record with its padding.
    checksums: Vec<u32>,
}

impl PackedFile {
    /// Opens the file at `path`, if it has this identity and records of these `lengths` in bytes. None if there is no file,
    /// or a sound one of another version, identity or other lengths: a [`Maker`](super::Maker) then replaces it. Records
    /// are checked when they are read.
    ///
    /// # Errors
    /// Names the file, what was found, what was expected and the cure, if it can't be read, is torn or damaged, or is no
    /// file of packed experts at all.
    pub fn open(path: &Path, identity: &str, lengths: &[usize]) -> Result<Option<PackedFile>> {
        PackedFile::open_by(path, identity, lengths, Access::Direct)
    }

    pub(super) fn open_by(
        path: &Path,
        identity: &str,
        lengths: &[usize],
        access: Access,
    ) -> Result<Option<PackedFile>> {
        let layout = Layout::new(identity, lengths)?;
        let file = match Direct::open(path, OpenOptions::new().read(true), access) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("{}: cannot open the packed experts", path.display()))
            }
        };
        let metadata = file.cached().metadata();
        let metadata = metadata.with_context(|| format!("{}: cannot read the packed experts", path.display()))?;
        ensure!(
            metadata.is_file(),
            "{}: a folder or device, expected the file of packed experts; remove it, or give another --cache-dir",
            path.display()
        );
        let found = read_header(&file, metadata.len(), identity, &layout);
        match found.map_err(|error| anyhow!("{}: {error:#}; {CURE}", path.display()))? {
            Header::Right(checksums) => Ok(Some(PackedFile {
                path: path.to_owned(),
                file,
                layout,
                checksums,
            })),
            Header::Other(how) => {
                log::debug!("{}: {how}: it will be replaced", path.display());
                Ok(None)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn swap(&mut self, file: Direct) {
        self.file = file;
    }

    /// Whether reads go past the page cache, as far as is known before the first one.
    pub fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    /// Reads a record and its padding into the [`padded`] length; one read past the page cache if `into` starts at a
    /// multiple of [`ALIGN`](super::ALIGN).
    ///
    /// # Errors
    /// Names the file, the offset and what happened: it can't be read, was cut, or its bytes are not those once written. What
    /// `into` then holds is of no use.
    pub fn read(&self, record: usize, into: &mut [u8]) -> Result<()> {
        self.read_parts(record, &mut [into])
    }

    /// As [`read`](Self::read), into buffers that take a part of it each, one after another; all but the last should be of
    /// multiples of [`ALIGN`](super::ALIGN).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_parts(&self, record: usize, into: &mut [&mut [u8]]) -> Result<()> {
        let (length, at) = self.layout.record(record)?;
        let (bytes, room) = (padded(length), into.iter().map(|part| part.len()).sum::<usize>());
        ensure!(
            room == bytes,
            "record {record} takes a buffer of {bytes} bytes, not {room}"
        );
        let failed = |what: String, cure: &str| {
            let path = self.path.display();
            anyhow!("{path}: reading {bytes} bytes from byte {at} on (packed expert {record}): {what}; {cure}")
        };
        let (mut from, mut checksum) = (at, crc32fast::Hasher::new());
        for part in into {
            match self.file.read(part, from) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    let len = self.file.cached().metadata().map_or(0, |metadata| metadata.len());
                    let expected = self.layout.file();
                    let what = format!("the file has been cut to {len} of its {expected} bytes since it was opened");
                    return Err(failed(what, GO_ON));
                }
                Err(error) => return Err(failed(error.to_string(), MEND)),
            }
            from += part.len() as u64;
            checksum.update(part);
        }
        let (found, expected) = (checksum.finalize(), self.checksums[record]);
        if found != expected {
            let what = format!("the bytes are not those once written: checksum {found:08x}, expected {expected:08x}");
            return Err(failed(what, GO_ON));
        }
        Ok(())
    }
}

fn read_header(file: &Direct, len: u64, identity: &str, layout: &Layout) -> Result<Header> {
    let mut prefix = [0; PREFIX];
    let got = PREFIX.min(len as usize);
    let mut whole = vec![0; got];
    file.cached()
        .read_exact_at(&mut whole, 0)
        .context("its header cannot be read")?;
    prefix[..got].copy_from_slice(&whole);
    ensure!(
        got == PREFIX,
        "it is torn: {len} bytes, expected {} (it begins with {:?})",
        layout.file(),
        String::from_utf8_lossy(&whole)
    );
    let mut bytes = vec![0; header::length(&prefix, len)?];
    file.cached()
        .read_exact_at(&mut bytes, 0)
        .context("its header cannot be read")?;
    header::decode(&bytes, len, identity, layout)
}
