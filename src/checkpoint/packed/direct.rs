//! Reads and writes that don't pass through the page cache, where the file system takes them.

use super::pages::aligned;
use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether to ask for `O_DIRECT` at all; tests do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Direct,
    /// Through the page cache.
    #[cfg(test)]
    Cached,
}

/// One file, opened twice.
#[derive(Debug)]
pub(super) struct Direct {
    /// For what is not aligned, and where the file system takes nothing else.
    cached: File,
    direct: Option<File>,
    /// Some file systems refuse at the first transfer only.
    refused: AtomicBool,
}

impl Direct {
    pub(super) fn open(path: &Path, options: &OpenOptions, access: Access) -> Result<Direct> {
        let cached = options.open(path)?;
        let direct = (access == Access::Direct).then(|| options.clone().custom_flags(libc::O_DIRECT).open(path));
        let direct = match direct {
            Some(Ok(file)) => Some(file),
            Some(Err(error)) => {
                log::debug!("{}: goes through the page cache: {error}", path.display());
                None
            }
            None => None,
        };
        Ok(Direct {
            cached,
            direct,
            refused: AtomicBool::new(false),
        })
    }

    /// The file for what needs no alignment.
    pub(super) fn cached(&self) -> &File {
        &self.cached
    }

    #[cfg(test)]
    pub(super) fn of(cached: File, direct: Option<File>) -> Direct {
        Direct {
            cached,
            direct,
            refused: AtomicBool::new(false),
        }
    }

    /// Whether transfers go past the page cache, as far as is known.
    pub(super) fn is_direct(&self) -> bool {
        self.direct.is_some() && !self.refused.load(Ordering::Relaxed)
    }

    /// One transfer, past the page cache if it can be.
    fn transfer(&self, aligned: bool, by: &mut dyn FnMut(&File) -> Result<usize>) -> Result<usize> {
        if let Some(file) = self.direct.as_ref().filter(|_| aligned && self.is_direct()) {
            match by(file) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => self.refused.store(true, Ordering::Relaxed),
                done => return done,
            }
        }
        by(&self.cached)
    }

    /// Fills `into` from `at` on. A file that ends before is [`ErrorKind::UnexpectedEof`].
    pub(super) fn read(&self, into: &mut [u8], at: u64) -> Result<()> {
        let mut done = 0;
        while done < into.len() {
            let (rest, at) = (&mut into[done..], at + done as u64);
            match self.transfer(aligned(rest, at), &mut |file| file.read_at(rest, at)) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` from `at` on.
    pub(super) fn write(&self, bytes: &[u8], at: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let (rest, at) = (&bytes[done..], at + done as u64);
            match self.transfer(aligned(rest, at), &mut |file| file.write_at(rest, at)) {
                Ok(0) => return Err(Error::from(ErrorKind::WriteZero)),
                Ok(bytes) => done += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
