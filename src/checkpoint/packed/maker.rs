//! Making a file of packed experts, alone or by several processes.

use super::direct::{Access, Direct};
use super::header::{self, Layout};
use super::pages::aligned;
use super::temporary::{sweep, Temporary};
use super::{padded, Pages};
use crate::metrics::disk;
use crate::metrics::memory::size;
use anyhow::{bail, ensure, Context, Result};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A file in the making. Dropped before it is finished it leaves nothing.
#[derive(Debug)]
pub struct Maker {
    file: Direct,
    /// Where it is now.
    path: PathBuf,
    identity: String,
    layout: Layout,
    /// Who created it also gives it its name.
    end: Option<(Temporary, PathBuf)>,
}

impl Maker {
    /// Begins the file `name` in `dir`: sets room aside for records of `lengths` bytes, under a temporary name beside it.
    /// What dead makers of the same file have left is removed first.
    ///
    /// # Errors
    /// When `dir` can't be written to, or has too little room: how much is needed and how much is free.
    pub fn create(dir: &Path, name: &str, identity: &str, lengths: &[usize]) -> Result<Maker> {
        Maker::create_in(dir, name, identity, lengths, disk::free, Access::Direct)
    }

    /// Makes sure that the file could be begun.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn check(dir: &Path, name: &str, identity: &str, lengths: &[usize]) -> Result<()> {
        Maker::begin(dir, name, &Layout::new(identity, lengths)?, disk::free).map(drop)
    }

    pub(super) fn create_in(
        dir: &Path,
        name: &str,
        identity: &str,
        lengths: &[usize],
        free: impl Fn(&Path) -> Option<u64>,
        access: Access,
    ) -> Result<Maker> {
        let layout = Layout::new(identity, lengths)?;
        sweep(dir, name);
        let temporary = Maker::begin(dir, name, &layout, free)?;
        let path = temporary.path().to_owned();
        match disk::reserve(temporary.file(), layout.file()) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Err(error).with_context(|| too_little(dir, &layout, None)),
            Err(error) => return Err(error).with_context(|| format!("cannot write {}", path.display())),
        }
        Ok(Maker {
            file: open(&path, access)?,
            path,
            identity: identity.to_owned(),
            layout,
            end: Some((temporary, dir.join(name))),
        })
    }

    /// A temporary file where there is room for the whole.
    fn begin(dir: &Path, name: &str, layout: &Layout, free: impl Fn(&Path) -> Option<u64>) -> Result<Temporary> {
        // First, so that a folder which can't be written to isn't called full.
        let temporary = Temporary::create(dir, name)?;
        match free(dir) {
            Some(free) if free < layout.file() => bail!(too_little(dir, layout, Some(free))),
            _ => Ok(temporary),
        }
    }

    /// Takes part in making the file that another process has created at [`path`](Self::path), with the same identity and
    /// lengths.
    ///
    /// # Errors
    /// When it isn't there, can't be written, or is of another size.
    pub fn join(path: &Path, identity: &str, lengths: &[usize]) -> Result<Maker> {
        let layout = Layout::new(identity, lengths)?;
        let file = open(path, Access::Direct)?;
        let len = file
            .cached()
            .metadata()
            .with_context(|| path.display().to_string())?
            .len();
        ensure!(
            len == layout.file(),
            "{}: {len} bytes, expected {}: ranks differ in what they pack",
            path.display(),
            layout.file()
        );
        Ok(Maker {
            file,
            path: path.to_owned(),
            identity: identity.to_owned(),
            layout,
            end: None,
        })
    }

    /// Where the file is until it is finished.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a record and returns its checksum. `bytes` are its own, or those with zeros up to their [`padded`] length in
    /// a buffer like [`Pages`], which spares a copy.
    ///
    /// # Errors
    /// Names the file and the offset, if it can't be written.
    pub fn put(&self, record: usize, bytes: &[u8]) -> Result<u32> {
        let (length, at) = self.layout.record(record)?;
        let whole = padded(length);
        ensure!(
            bytes.len() == length || (bytes.len() == whole && bytes[length..].iter().all(|&byte| byte == 0)),
            "record {record} has {length} bytes and zeros up to {whole}, not {} bytes",
            bytes.len()
        );
        let copy;
        let bytes = if aligned(bytes, at) {
            bytes
        } else {
            let mut pages = Pages::zeros(whole);
            pages[..bytes.len()].copy_from_slice(bytes);
            copy = pages;
            &copy
        };
        self.file.write(bytes, at).with_context(|| {
            format!(
                "{}: cannot write {whole} bytes from byte {at} on (packed expert {record}); make room, or give another \
                 --cache-dir",
                self.path.display()
            )
        })?;
        Ok(crc32fast::hash(bytes))
    }

    /// Makes sure that what this process has put is on disk: each does so before one of them finishes.
    ///
    /// # Errors
    /// When the system says so.
    pub fn flush(&self) -> Result<()> {
        let synced = self.file.cached().sync_all();
        synced.with_context(|| format!("cannot write {} to disk", self.path.display()))
    }

    /// Writes the header, with the checksum of every record, and gives the file its name.
    ///
    /// # Errors
    /// When this maker has joined, when checksums are missing, or when the file can't be written or renamed. Nothing is then
    /// left of it.
    pub fn finish(mut self, checksums: &[u32]) -> Result<()> {
        let Some((temporary, to)) = self.end.take() else {
            bail!("{}: only its creator finishes it", self.path.display());
        };
        ensure!(
            checksums.len() == self.layout.records(),
            "{}: {} checksums for {} records",
            self.path.display(),
            checksums.len(),
            self.layout.records()
        );
        let header = header::encode(&self.identity, &self.layout, checksums);
        let written = self.file.write(&header, 0);
        written.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.flush()?;
        temporary.rename(&to)?;
        // Some file systems can't make a name durable; that is no error.
        let folder = to.parent().map(File::open);
        if let Some(Err(error)) = folder.map(|folder| folder.and_then(|folder| folder.sync_all())) {
            log::debug!("{}: cannot fsync its folder: {error}", to.display());
        }
        Ok(())
    }
}

fn open(path: &Path, access: Access) -> Result<Direct> {
    let opened = Direct::open(path, OpenOptions::new().read(true).write(true), access);
    opened.with_context(|| format!("cannot write {}", path.display()))
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG))
}

/// Why the file is not begun.
fn too_little(dir: &Path, layout: &Layout, free: Option<u64>) -> String {
    let free = free.map_or("less is".to_owned(), |free| format!("{} are", size(free)));
    format!(
        "{}: packing the experts takes {}, but only {free} free; make room, or give another --cache-dir",
        dir.display(),
        size(layout.file())
    )
}
