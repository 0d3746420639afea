//! One job at a time on one output.

use crate::metrics::host;
use anyhow::{bail, Context, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

/// Holds the lock as long as it lives; the system lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Locks `path` and writes into it who holds it. Held by another: an error with that one's pid and host. Where the
    /// file system has no locks (some NFS and Lustre mounts): a warning, and on without one.
    pub(crate) fn take(path: &Path) -> Result<Lock> {
        let context = || format!("cannot write {}: is the folder writable?", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .with_context(context)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.trim().is_empty() {
                    "a process not yet named"
                } else {
                    holder.trim()
                };
                bail!(
                    "{} is held by {holder}: another job writes this output; wait for it, end it, or give another \
                     --output",
                    path.display()
                );
            }
            Err(TryLockError::Error(error)) => {
                log::warn!(
                    "{}: this file system has no locks ({error}); make sure that no second job writes this output",
                    path.display()
                );
            }
        }
        let holder = format!("pid {} on host {}\n", std::process::id(), host::name());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(holder.as_bytes()))
            .and_then(|()| file.flush())
            .with_context(context)?;
        Ok(Lock { _file: file })
    }
}
