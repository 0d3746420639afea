//! A file under a temporary name: gone when its owner is.

use crate::metrics::host;
use anyhow::{Context, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// After so long without a write the file of another host is nobody's.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);
const SUFFIX: &str = ".tmp";

/// A file `NAME.HOST.PID-N.tmp`, removed when dropped. As long as it lives it holds a lock on the file, by which others of
/// this host see that it lives.
#[derive(Debug)]
pub(crate) struct Temporary {
    path: PathBuf,
    file: File,
    kept: bool,
}

impl Temporary {
    /// Makes one for `name` in `dir`.
    pub(crate) fn create(dir: &Path, name: &str) -> Result<Temporary> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let prefix = format!("{name}.{}.{}", host::name().replace('/', "_"), std::process::id());
        loop {
            let path = dir.join(format!("{prefix}-{}{SUFFIX}", NEXT.fetch_add(1, Ordering::Relaxed)));
            let made = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
            let file = match made {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.with_context(|| {
                    format!(
                        "cannot write {}: is the folder writable? Else give another --cache-dir",
                        path.display()
                    )
                })?,
            };
            let temporary = Temporary {
                path,
                file,
                kept: false,
            };
            // Another that came by before the lock may have taken it for a dead one's.
            match temporary.file.try_lock() {
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => log::debug!("{}: no lock: {error}", temporary.path.display()),
                Ok(()) => {}
            }
            if temporary.is_there() {
                return Ok(temporary);
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn is_there(&self) -> bool {
        let inode = |metadata: io::Result<fs::Metadata>| metadata.map(|m| m.ino()).ok();
        inode(fs::metadata(&self.path)) == inode(self.file.metadata())
    }

    /// Gives it its name for good, in place of a file that has it.
    pub(super) fn rename(mut self, to: &Path) -> Result<()> {
        let renamed = fs::rename(&self.path, to);
        renamed.with_context(|| format!("cannot rename {} to {}", self.path.display(), to.display()))?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes what dead owners of `name` have left in `dir`.
pub(super) fn sweep(dir: &Path, name: &str) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let own = host::name().replace('/', "_");
    for entry in entries.flatten() {
        let file = entry.file_name();
        let owner = file.to_str().and_then(|file| owner(file, name));
        let Some((host, pid)) = owner else { continue };
        let path = entry.path();
        if let Some(_lock) = dead(&path, host == own, pid) {
            log::info!("{}: left by one that died while writing; removing it", path.display());
            let _ = fs::remove_file(&path);
        }
    }
}

/// The host and pid in a temporary name.
fn owner<'a>(file: &'a str, name: &str) -> Option<(&'a str, &'a str)> {
    let middle = file.strip_prefix(name)?.strip_prefix('.')?.strip_suffix(SUFFIX)?;
    let (host, number) = middle.rsplit_once('.')?;
    Some((host, number.split_once('-')?.0))
}

/// The file if its owner is dead, locked where there are locks.
fn dead(path: &Path, own_host: bool, pid: &str) -> Option<File> {
    let file = File::open(path).ok()?;
    let free = match file.try_lock() {
        Ok(()) => true,
        Err(TryLockError::WouldBlock) => false,
        // A process of this host can be looked for; of another one age decides alone.
        Err(TryLockError::Error(_)) => !own_host || !Path::new("/proc").join(pid).exists(),
    };
    let written = file.metadata().and_then(|metadata| metadata.modified());
    let stale = written.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > STALE));
    (free && (own_host || stale)).then_some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_living_and_other_hosts_write_stays() {
        let dir = tempfile::tempdir().unwrap();
        let alive = Temporary::create(dir.path(), "a.experts").unwrap();
        let (own, path) = (host::name(), |name: &str| dir.path().join(name));
        let dead = path(&format!("a.experts.{own}.4194000-0.tmp"));
        let (away, long) = (
            path("a.experts.node-7.example.12-3.tmp"),
            path("a.experts.node-8.1-0.tmp"),
        );
        let others = [
            "b.experts.x.1-0.tmp",
            "a.experts",
            "a.experts.tmp",
            "a.experts.x.tmp",
            "a.expertsx.h.1-1.tmp",
        ];
        let others = others.map(path);
        for file in others.iter().chain([&dead, &away, &long]) {
            File::create(file).unwrap();
        }
        let old = std::time::SystemTime::now() - 2 * STALE;
        File::options()
            .write(true)
            .open(&long)
            .unwrap()
            .set_modified(old)
            .unwrap();
        sweep(dir.path(), "a.experts");
        assert!(alive.path().exists() && away.exists() && others.iter().all(|file| file.exists()));
        assert!(!dead.exists() && !long.exists());
        let was = alive.path().to_owned();
        drop(alive);
        assert!(!was.exists());
    }

    #[test]
    fn names_tell_their_owners() {
        assert_eq!(
            owner("a.experts.node-7.x.12-3.tmp", "a.experts"),
            Some(("node-7.x", "12"))
        );
        assert_eq!(owner("a.experts.12-3.tmp", "a.experts"), None);
        assert_eq!(owner("a.experts", "a.experts"), None);
    }
}
