//! A file of experts as the device computes with them, so that a miss is one read without conversion.
//!
//! It knows nothing of models: it holds records of bytes, each of a length of its own, at multiples of [`ALIGN`] and padded
//! with zeros to such, so that they can be read past the page cache. All numbers are little endian:
//!
//! | bytes | |
//! |---|---|
//! | 8 | `SLUICEXP` |
//! | 4 | version of this form |
//! | 4 | CRC-32 of the header, these four bytes counted as zeros |
//! | 8 | bytes of the header, a multiple of [`ALIGN`] |
//! | 8 | bytes of the identity |
//! | 8 | records |
//! | | the identity, in UTF-8 |
//! | 12 each | bytes of a record, CRC-32 of it with its padding |
//! | | zeros up to the header's end; then the records in order |
//!
//! A file is there wholly or not at all: a [`Maker`] writes under a temporary name (`NAME.HOST.PID-N.tmp`), the header
//! last. What a dead maker of the same file leaves is removed by the next one: a maker holds a lock on its file as long as
//! it lives, which the makers of the same host ask; a file of another host, whose locks may not be seen here, goes only
//! when nobody has written to it for a day.
//!
//! ```
//! use sluicegate::checkpoint::packed::{padded, Maker, PackedFile, Pages};
//! # fn main() -> anyhow::Result<()> {
//! # let dir = tempfile::tempdir()?;
//! let (name, identity, lengths) = ("example.experts", "model 1f3a, float32", [5, 0, 8192]);
//! let maker = Maker::create(dir.path(), name, identity, &lengths)?;
//! let records = lengths.map(|length| vec![7; length]);
//! let mut checksums = Vec::new();
//! for (record, bytes) in records.iter().enumerate() {
//!     checksums.push(maker.put(record, bytes)?);
//! }
//! maker.finish(&checksums)?;
//! let file = PackedFile::open(&dir.path().join(name), identity, &lengths)?.expect("made just now");
//! let mut slot = Pages::zeros(padded(5));
//! file.read(0, &mut slot)?;
//! assert_eq!(slot[..5], records[0]);
//! # Ok(())
//! # }
//! ```

mod direct;
mod file;
mod header;
mod maker;
mod pages;
mod temporary;
#[cfg(test)]
mod tests;

pub use file::PackedFile;
pub use maker::Maker;
pub use pages::Pages;
pub(crate) use temporary::Temporary;

/// What starts and padded lengths of records are multiples of: enough for reads past the page cache on any disk.
pub const ALIGN: usize = 4096;

/// The version of the layout of experts in memory. It belongs to a file's name and identity, so that a program whose layout
/// differs makes a file of its own.
pub const LAYOUT: u32 = 1;

/// The bytes that a record of `length` bytes takes in the file, and in the buffer that it is read into.
pub fn padded(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}

/// The name of a model's file in its folder. `model_sha256` is [`Checkpoint::sha256`](super::Checkpoint::sha256).
pub fn name(model_sha256: &str, dtype: &str) -> String {
    let short = model_sha256.get(..16).unwrap_or(model_sha256);
    format!("{short}-{dtype}-v{LAYOUT}.experts")
}

/// What a model's file says of itself.
pub fn identity(model_sha256: &str, dtype: &str) -> String {
    format!("model {model_sha256}, {dtype}, layout {LAYOUT}")
}
