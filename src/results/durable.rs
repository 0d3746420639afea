//! Files that are either wholly there or not at all, also after a power cut.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// The path with `suffix` added to its last component: `OUT.h5` gives `OUT.h5.parts`.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// The folder that holds `path`; `.` for a bare file name.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes sure that the bytes of `path` are on disk.
pub(crate) fn sync_file(path: &Path) -> Result<()> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .with_context(|| format!("cannot write {} to disk", path.display()))
}

/// Makes sure that names made or changed in `folder` are on disk. Some file systems can't; that is no error.
pub(crate) fn sync_folder(folder: &Path) {
    if let Err(error) = File::open(folder).and_then(|file| file.sync_all()) {
        log::debug!("cannot fsync the folder {}: {error}", folder.display());
    }
}

/// Renames within one file system, then makes the new name durable.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("cannot rename {} to {}", from.display(), to.display()))?;
    sync_folder(folder_of(to));
    Ok(())
}

/// Writes a small file so that a reader sees either the old content or the new one. `before_rename` runs in between.
pub(crate) fn write_whole(path: &Path, bytes: &[u8], before_rename: impl FnOnce()) -> Result<()> {
    let temporary = with_suffix(path, ".tmp");
    File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("cannot write {}", temporary.display()))?;
    before_rename();
    rename(&temporary, path)
}

/// SHA-256 of a file's bytes in hexadecimal, and how many there are.
pub(crate) fn checksum(path: &Path) -> Result<(String, u64)> {
    let context = || format!("cannot read {}", path.display());
    let mut file = File::open(path).with_context(context)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = file.read(&mut buffer).with_context(context)?;
        if got == 0 {
            break;
        }
        hash.update(&buffer[..got]);
        bytes += got as u64;
    }
    Ok((hex(&hash.finalize()), bytes))
}

/// A digest in hexadecimal.
pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
