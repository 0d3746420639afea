//! The header of a file of packed experts, and where its records lie.

use super::{padded, ALIGN};
use anyhow::{ensure, Context, Result};

const MAGIC: &[u8; 8] = b"SLUICEXP";
/// Of the form of the file, not of what is in the records.
pub(super) const VERSION: u32 = 1;
/// Magic, version, checksum and length: these mean the same in every version.
pub(super) const PREFIX: usize = 24;
/// Where the identity begins.
const IDENTITY: usize = 40;
/// Bytes for each record.
const ENTRY: usize = 12;
/// A header that claims more is damaged: no model has 10 million experts.
const MAX_HEADER: u64 = 128 << 20;

/// Where records lie in a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    /// Bytes of each record.
    pub(super) lengths: Vec<usize>,
    /// Where each begins; one more, for the end of the file.
    pub(super) starts: Vec<u64>,
}

impl Layout {
    pub(super) fn new(identity: &str, lengths: &[usize]) -> Result<Layout> {
        let too_large = "the packed experts would be larger than any file";
        let header = padded(IDENTITY + identity.len() + ENTRY * lengths.len());
        ensure!(header as u64 <= MAX_HEADER, "{too_large}: {} records", lengths.len());
        let mut starts = vec![header as u64];
        let mut end = header as u64;
        for &length in lengths {
            let bytes = length.checked_next_multiple_of(ALIGN).context(too_large)?;
            end = end.checked_add(bytes as u64).context(too_large)?;
            starts.push(end);
        }
        ensure!(i64::try_from(end).is_ok(), "{too_large}: {end} bytes");
        let lengths = lengths.to_vec();
        Ok(Layout { lengths, starts })
    }

    pub(super) fn records(&self) -> usize {
        self.lengths.len()
    }

    /// Bytes of the file.
    pub(super) fn file(&self) -> u64 {
        self.starts[self.records()]
    }

    /// The length and the start of a record.
    pub(super) fn record(&self, record: usize) -> Result<(usize, u64)> {
        let length = self.lengths.get(record);
        let &length = length.with_context(|| format!("no record {record} among {} packed experts", self.records()))?;
        Ok((length, self.starts[record]))
    }
}

/// The header of a file, `[layout.starts[0]]` bytes.
pub(super) fn encode(identity: &str, layout: &Layout, checksums: &[u32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(layout.starts[0] as usize);
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend([0; 4]);
    bytes.extend(layout.starts[0].to_le_bytes());
    bytes.extend((identity.len() as u64).to_le_bytes());
    bytes.extend((layout.records() as u64).to_le_bytes());
    bytes.extend(identity.as_bytes());
    for (&length, checksum) in layout.lengths.iter().zip(checksums) {
        bytes.extend((length as u64).to_le_bytes());
        bytes.extend(checksum.to_le_bytes());
    }
    bytes.resize(layout.starts[0] as usize, 0);
    let checksum = crc32fast::hash(&bytes);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// What a header says.
#[derive(Debug, PartialEq)]
pub(super) enum Header {
    /// That the file is what is looked for: the checksum of each record.
    Right(Vec<u32>),
    /// That it is sound, but another: how it differs.
    Other(String),
}

/// Bytes of the header that begins with `prefix`.
///
/// # Errors
/// What was found and what was expected, if the file is none of packed experts.
pub(super) fn length(prefix: &[u8; PREFIX], file: u64) -> Result<usize> {
    ensure!(
        prefix.starts_with(MAGIC),
        "it begins with {:?}, expected {:?}: it is no file of packed experts",
        String::from_utf8_lossy(&prefix[..8]),
        String::from_utf8_lossy(MAGIC)
    );
    let header = u64_at(prefix, 16);
    ensure!(
        header >= ALIGN as u64 && header <= MAX_HEADER && header.is_multiple_of(ALIGN as u64),
        "its header claims {header} bytes, expected a multiple of {ALIGN}: it is damaged"
    );
    ensure!(
        header <= file,
        "it is torn: {file} bytes, and its header alone has {header}"
    );
    Ok(header as usize)
}

/// Reads a header of [`length`] bytes of a file of `file` bytes, which is to have this identity and layout.
///
/// # Errors
/// What was found and what was expected, if the file is damaged.
pub(super) fn decode(bytes: &[u8], file: u64, identity: &str, layout: &Layout) -> Result<Header> {
    let stored = u32_at(bytes, 12);
    let mut hash = crc32fast::Hasher::new();
    hash.update(&bytes[..12]);
    hash.update(&[0; 4]);
    hash.update(&bytes[16..]);
    let found = hash.finalize();
    ensure!(
        stored == found,
        "its header is damaged: checksum {found:08x}, expected {stored:08x}"
    );
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Ok(Header::Other(format!("of version {version}, expected {VERSION}")));
    }
    // The checksum holds, so what follows can only be wrong if it was written so; no length is trusted all the same.
    let wrong = "its header contradicts itself: it is damaged";
    let names = usize::try_from(u64_at(bytes, 24)).context(wrong)?;
    let records = usize::try_from(u64_at(bytes, 32)).context(wrong)?;
    let entries = IDENTITY.checked_add(names).context(wrong)?;
    let end = records.checked_mul(ENTRY).and_then(|n| n.checked_add(entries));
    let end = end.context(wrong)?;
    ensure!(
        end <= bytes.len() && padded(end) == bytes.len() && bytes[end..].iter().all(|&byte| byte == 0),
        wrong
    );
    let found = std::str::from_utf8(&bytes[IDENTITY..entries]).context(wrong)?;
    let (mut lengths, mut checksums) = (Vec::with_capacity(records), Vec::with_capacity(records));
    for entry in bytes[entries..end].chunks_exact(ENTRY) {
        lengths.push(usize::try_from(u64_at(entry, 0)).context(wrong)?);
        checksums.push(u32_at(entry, 8));
    }
    let own = Layout::new(found, &lengths).context(wrong)?;
    ensure!(
        own.file() == file,
        "it is torn or was added to: {file} bytes, expected {}",
        own.file()
    );
    if found != identity {
        return Ok(Header::Other(format!("of `{found}`, expected `{identity}`")));
    }
    if own != *layout {
        let sizes = |layout: &Layout| format!("{} records, {} bytes", layout.records(), layout.file());
        let (own, expected) = (sizes(&own), sizes(layout));
        return Ok(Header::Other(format!("of other records ({own}), expected {expected}")));
    }
    Ok(Header::Right(checksums))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}
