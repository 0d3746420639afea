//! Memory that reads and writes past the page cache can use.

use super::ALIGN;
use std::ops::{Deref, DerefMut};

/// Bytes that start at a multiple of [`ALIGN`] in memory.
#[derive(Debug)]
pub struct Pages {
    /// Never grows, so that it stays where it is.
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Pages {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Pages {
        let bytes = vec![0; len + ALIGN];
        let start = bytes.as_ptr().addr().next_multiple_of(ALIGN) - bytes.as_ptr().addr();
        Pages { bytes, start, len }
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Whether a transfer between this memory and this place in a file can go past the page cache.
pub(super) fn aligned(bytes: &[u8], at: u64) -> bool {
    bytes.as_ptr().addr().is_multiple_of(ALIGN) && bytes.len().is_multiple_of(ALIGN) && at.is_multiple_of(ALIGN as u64)
}
