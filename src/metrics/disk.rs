//! Room on a file system: how much there is, and setting it aside.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that this process may still write in `folder`, quotas not counted; nothing where the system doesn't say.
pub fn free(folder: &Path) -> Option<u64> {
    let folder = CString::new(folder.as_os_str().as_bytes()).ok()?;
    // SAFETY: all zeros is a valid value of this struct of numbers.
    let mut room: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends with a NUL, and the call writes to the struct only.
    let asked = unsafe { libc::statvfs(folder.as_ptr(), &mut room) };
    // Some network file systems answer with a block size of 0: they don't know.
    (asked == 0 && room.f_frsize > 0).then(|| room.f_bavail.saturating_mul(room.f_frsize))
}

/// Makes `file` `bytes` long, with room set aside where the file system can do so.
///
/// # Errors
/// When there is no room, or the file can't be written.
pub fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // No room is no error, but the call takes no 0.
    let set_aside = match len {
        0 => Ok(()),
        _ => allocate(file, len),
    };
    match set_aside {
        Err(error)
            if !matches!(
                error.raw_os_error(),
                Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL)
            ) =>
        {
            Err(error)
        }
        _ => file.set_len(bytes),
    }
}

fn allocate(file: &File, len: libc::off_t) -> io::Result<()> {
    loop {
        // SAFETY: the call takes numbers only; the descriptor is open as long as `file` lives. Unlike posix_fallocate it
        // never writes zeros where the file system can't set room aside.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_known_and_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let before = free(dir.path()).unwrap();
        assert!(before > 0);
        assert_eq!(free(&dir.path().join("not there")), None);
        let path = dir.path().join("file");
        let file = File::create(&path).unwrap();
        for bytes in [0, 5000, 12_288] {
            reserve(&file, bytes).unwrap();
            assert_eq!(file.metadata().unwrap().len(), bytes);
        }
        assert!(std::fs::read(&path).unwrap().iter().all(|&byte| byte == 0));
        // More than any file system has.
        assert!(reserve(&file, 1 << 62).is_err());
        assert!(reserve(&file, u64::MAX).is_err());
    }
}
