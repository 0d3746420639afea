//! Memory for weights: large mappings, shared by many matrices, on pages of 2 MiB where the system allows.
//!
//! Weights are streamed. With pages of 4 KiB the CPU looks up an address every 64 lines, its prefetcher stops at the end of
//! each page, and in a virtual machine the lookup itself takes long: a single thread then reads 18 GB/s instead of 28.
//!
//! A mapping goes back to the system when the last of its buffers is dropped: right for weights that stay as long as the
//! model, not for ones that come and go.
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::linear::Line;

/// Bytes of a huge page.
const PAGE: usize = 2 << 20;
/// Bytes of a mapping that several buffers share. Pages of it that nobody has written to take no memory.
const CHUNK: usize = 64 << 20;
/// Bytes that a file is read by without passing through the system's cache.
const BLOCK: usize = 4096;
/// Buffers below this are left to the general allocator.
const SMALL: usize = 64 << 10;

/// The mapping that the next buffer comes from, and how much of it is taken.
static CURRENT: Mutex<(Weak<Mapping>, usize)> = Mutex::new((Weak::new(), 0));

/// Cache lines of zeros, to be written once and read often.
pub(super) struct Lines {
    first: NonNull<Line>,
    len: usize,
    /// Lines that there is room for.
    room: usize,
    /// Keeps the lines alive.
    _owner: Owner,
}

/// Where lines lie.
enum Owner {
    Own { _lines: Vec<Line> },
    Shared { _mapping: Arc<Mapping> },
}

// SAFETY: lines are plain numbers that belong to this value alone.
unsafe impl Send for Lines {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for Lines {}

impl Lines {
    /// `len` lines of zeros.
    pub(super) fn zeros(len: usize) -> Lines {
        let bytes = len * size_of::<Line>();
        let shared = (bytes >= SMALL).then(|| share(bytes)).flatten();
        shared.unwrap_or_else(|| Lines::own(vec![Line::default(); len]))
    }

    fn own(mut lines: Vec<Line>) -> Lines {
        // A vector is never null; its lines stay where they are when it moves.
        let first = NonNull::new(lines.as_mut_ptr()).unwrap_or(NonNull::dangling());
        let len = lines.len();
        Lines {
            first,
            len,
            room: len,
            _owner: Owner::Own { _lines: lines },
        }
    }

    /// Room for so many lines each, of zeros, in a mapping of their own, each starting at a multiple of 4096 bytes; nothing
    /// where the system gives none.
    pub(super) fn rooms(lines: &[usize]) -> Option<Vec<Lines>> {
        let padded = |lines: &usize| (lines * size_of::<Line>()).next_multiple_of(BLOCK);
        let mapping = Arc::new(Mapping::new(lines.iter().map(padded).sum())?);
        let mut at = 0;
        let room = |n: &usize| {
            let (first, bytes) = (at, padded(n));
            at += bytes;
            Lines {
                // SAFETY: `bytes` from `first` on lie inside the mapping and are given to nobody else.
                first: unsafe { mapping.start.add(first) }.cast(),
                len: 0,
                room: bytes / size_of::<Line>(),
                _owner: Owner::Shared {
                    _mapping: mapping.clone(),
                },
            }
        };
        Some(lines.iter().map(room).collect())
    }

    /// Takes so many lines of the room.
    ///
    /// # Panics
    /// If there are not as many.
    pub(super) fn set_len(&mut self, len: usize) {
        assert!(len <= self.room, "{len} lines in a room of {}", self.room);
        self.len = len;
    }

    /// The lines as bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: lines are plain numbers without padding.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr().cast(), self.len * size_of::<Line>()) }
    }

    /// The lines as bytes, up to the next multiple of 4096 where there is room.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let whole = (self.len * size_of::<Line>()).next_multiple_of(BLOCK);
        let bytes = whole.min(self.room * size_of::<Line>());
        // SAFETY: as above, inside the room; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr().cast(), bytes) }
    }
}

impl std::ops::Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `len` lines from `first` on are kept alive by the owner and belong to this value alone.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl std::ops::DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as above; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Lines {
        let mut lines = Lines::zeros(self.len);
        lines.copy_from_slice(self);
        lines
    }
}

/// A part of the current mapping, or of a new one; nothing where the system gives none.
fn share(bytes: usize) -> Option<Lines> {
    let mut current = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let held = current.0.upgrade();
    let left = held.as_ref().map_or(0, |m| m.bytes - current.1);
    let held = held.filter(|_| left >= bytes);
    let held_on = held.is_some();
    let (mapping, at) = match held {
        Some(mapping) => (mapping, current.1),
        None => (Arc::new(Mapping::new(bytes.max(CHUNK))?), 0),
    };
    // A mapping made for one large buffer has little left for others.
    if held_on || mapping.bytes - at - bytes > left {
        *current = (Arc::downgrade(&mapping), at + bytes);
    }
    Some(Lines {
        // SAFETY: `bytes` from `at` on lie inside the mapping and have been given to nobody.
        first: unsafe { mapping.start.add(at) }.cast(),
        len: bytes / size_of::<Line>(),
        room: bytes / size_of::<Line>(),
        _owner: Owner::Shared { _mapping: mapping },
    })
}

/// Anonymous memory that starts at a huge page.
struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
    /// What the system gave, which begins somewhat earlier.
    whole: (*mut libc::c_void, usize),
}

// SAFETY: a mapping is only an address range; who reads and writes where is settled by `Lines`.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize) -> Option<Mapping> {
        let bytes = bytes.next_multiple_of(PAGE);
        let all = bytes + PAGE;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: a new anonymous mapping touches no memory that is in use.
        let whole = unsafe { libc::mmap(std::ptr::null_mut(), all, access, kind, -1, 0) };
        if whole == libc::MAP_FAILED {
            return None;
        }
        let start = NonNull::new(whole.cast::<u8>())?;
        // SAFETY: the mapping is a page longer than what is taken of it.
        let start = unsafe { start.add(start.align_offset(PAGE)) };
        #[cfg(target_os = "linux")]
        // SAFETY: the range lies inside the mapping. Where the system has no huge pages it says so, which is no harm.
        unsafe {
            libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE)
        };
        Some(Mapping {
            start,
            bytes,
            whole: (whole, all),
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody holds lines of this mapping any more: they would keep it alive.
        unsafe { libc::munmap(self.whole.0, self.whole.1) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(lines: usize, with: u32) -> Lines {
        let mut new = Lines::zeros(lines);
        assert!(new.len() == lines && new.iter().all(|l| l.0 == [0; 16]));
        new.iter_mut().for_each(|l| l.0 = [with; 16]);
        new
    }

    #[test]
    fn buffers_of_all_sizes_are_zero_aligned_and_apart() {
        // From nothing to more than a mapping that others share.
        let sizes = [0, 1, 5000, 1023, 1024, 300_000, CHUNK / 64 + 3, 70_000, 2048];
        let all: Vec<Lines> = sizes.iter().zip(1..).map(|(n, i)| filled(*n, i)).collect();
        for (lines, i) in all.iter().zip(1..) {
            assert!(lines.as_ptr().is_aligned());
            assert!(lines.iter().all(|l| l.0 == [i; 16]), "buffer {i} was written over");
        }
        let copy = all[2].clone();
        drop(all);
        assert!(copy.iter().all(|l| l.0 == [3; 16]));
    }

    #[test]
    fn rooms_are_apart_and_keep_their_size() {
        let mut rooms = Lines::rooms(&[0, 1, 64, 65, 1000]).unwrap();
        let bytes: Vec<usize> = rooms.iter_mut().map(|r| r.room * 64).collect();
        assert_eq!(bytes, [0, 4096, 4096, 8192, 65536]);
        for (i, room) in rooms.iter_mut().enumerate() {
            assert!(room.is_empty() && room.first.as_ptr().cast::<u8>().align_offset(4096) == 0);
            room.set_len(room.room);
            room.bytes_mut().fill(i as u8 + 1);
        }
        rooms[3].set_len(65);
        assert_eq!([rooms[3].bytes().len(), rooms[3].bytes_mut().len()], [65 * 64, 8192]);
        for (i, room) in rooms.iter().enumerate() {
            assert!(
                room.bytes().iter().all(|b| *b == i as u8 + 1),
                "room {i} was written over"
            );
        }
    }

    #[test]
    fn threads_get_buffers_of_their_own() {
        std::thread::scope(|scope| {
            for t in 1..5 {
                scope.spawn(move || {
                    let mine: Vec<Lines> = (1..20).map(|n| filled(n * 500, t)).collect();
                    assert!(mine.iter().all(|b| b.iter().all(|l| l.0 == [t; 16])));
                });
            }
        });
    }
}
