//! The bytes of an input: opening and unpacking it, and keeping standard input.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{bail, Context, Result};

use super::format::Packing;

const BUFFER: usize = 256 << 10;

/// First bytes that tell of something other than text, what that is, and the cure.
const NOT_TEXT: [(&[u8], &str); 7] = [
    (b"\x1f\x8b", "gzip data: name it .gz"),
    (b"\x28\xb5\x2f\xfd", "zstd data: name it .zst"),
    (b"\xfd7zXZ\x00", "xz data: unpack it, or pack it with gzip or zstd"),
    (b"\xff\xfe", "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (b"\xfe\xff", "UTF-16 text: convert it with `iconv -f UTF-16 -t UTF-8`"),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file: give the text that it was made from",
    ),
    (
        b"version https://git-lfs.github.com/spec/",
        "a git-LFS pointer: fetch the file with `git lfs pull`",
    ),
];

/// Looks at a file before it is read: it exists, is a regular file, can be opened, and begins like what its name
/// says. Gives its length in bytes as it lies on disk.
pub(crate) fn check(path: &Path, packing: Packing) -> Result<u64> {
    let found = fs::metadata(path).with_context(|| format!("{}: cannot find this input", path.display()))?;
    if found.is_dir() {
        bail!(
            "{0}: is a folder; give the files in it, for instance as '{0}/*.txt'",
            path.display()
        );
    }
    if !found.is_file() {
        bail!(
            "{}: is no regular file, so it cannot be read twice; give `-` and pipe it in",
            path.display()
        );
    }
    let mut start = Vec::new();
    open_file(path)?
        .take(64)
        .read_to_end(&mut start)
        .with_context(|| format!("{}: cannot read", path.display()))?;
    let (magic, name): (&[u8], &str) = match packing {
        Packing::Gzip => (b"\x1f\x8b", "gzip"),
        Packing::Zstd => (b"\x28\xb5\x2f\xfd", "zstd"),
        Packing::Plain => {
            return match NOT_TEXT.iter().find(|(magic, _)| start.starts_with(magic)) {
                Some((_, what)) => bail!("{}: holds {what}", path.display()),
                None => Ok(found.len()),
            }
        }
    };
    if start.is_empty() {
        bail!(
            "{}: is an empty file, which is no {name} data (an empty text packs to some bytes): make it again",
            path.display()
        );
    }
    if !begins_as(&start, magic, packing) {
        bail!(
            "{}: is no {name} data (it begins with {:02x?}): name it after what it holds",
            path.display(),
            &start[..start.len().min(4)]
        );
    }
    Ok(found.len())
}

/// Whether a file that starts with these bytes can be of this packing; one cut off inside the magic number can.
fn begins_as(start: &[u8], magic: &[u8], packing: Packing) -> bool {
    // A zstd file may begin with a frame of metadata.
    let metadata =
        packing == Packing::Zstd && start.len() > 3 && start[0] & 0xf0 == 0x50 && start[1..4] == *b"\x2a\x4d\x18";
    start.starts_with(magic) || magic.starts_with(start) || metadata
}

pub(crate) fn open_file(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("{}: cannot open this input", path.display()))
}

/// Opens the decoded bytes of the first `file_bytes` bytes of a file: what is appended later is not seen.
pub(crate) fn open(path: &Path, packing: Packing, file_bytes: u64) -> Result<Box<dyn BufRead + Send>> {
    let file = BufReader::with_capacity(BUFFER, open_file(path)?.take(file_bytes));
    Ok(match packing {
        Packing::Plain => Box::new(file),
        Packing::Gzip => Box::new(BufReader::with_capacity(
            BUFFER,
            flate2::bufread::MultiGzDecoder::new(file),
        )),
        Packing::Zstd => {
            let decoder = zstd::stream::read::Decoder::with_buffer(file)
                .with_context(|| format!("{}: cannot start to unpack it", path.display()))?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
    })
}

/// The error of a read that failed after `decoded` bytes.
pub(crate) fn read_error(path: &Path, packing: Packing, decoded: u64, error: io::Error) -> anyhow::Error {
    let path = path.display();
    let part = match packing {
        Packing::Plain => return anyhow::anyhow!("{path}: reading failed at byte {decoded}: {error}"),
        Packing::Gzip => "member",
        Packing::Zstd => "frame",
    };
    match error.kind() {
        io::ErrorKind::UnexpectedEof => anyhow::anyhow!(
            "{path}: ends in the middle of a {part}, at decoded byte {decoded}: the file is cut off, or something else \
             follows its data; copy or make it again"
        ),
        _ => anyhow::anyhow!("{path}: cannot be unpacked beyond decoded byte {decoded} ({error}): damaged, or something else follows its \
             data; copy or make it again"),
    }
}

/// Keeps a stream that can be read only once (standard input, `-`) as the file `to`, so that every rank and a later
/// resume can read it. It appears under its name only when it is complete and on disk. Gives its length in bytes.
///
/// The name of `to` announces the format as any other: end it in `.txt`.
///
/// # Errors
/// The stream cannot be read, or the file not be written.
pub fn spool(mut stream: impl Read, to: &Path) -> Result<u64> {
    let mut name = to.as_os_str().to_owned();
    name.push(".part");
    let part = Path::new(&name);
    let keep = |stream: &mut dyn Read| -> Result<u64> {
        let mut file = File::create(part).with_context(|| format!("{}: cannot create it", part.display()))?;
        let mut block = vec![0; BUFFER];
        let mut bytes = 0;
        loop {
            let n = match stream.read(&mut block) {
                Ok(0) => break,
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(e).with_context(|| format!("standard input: reading failed at byte {bytes}")),
            };
            file.write_all(&block[..n])
                .with_context(|| format!("{}: cannot keep standard input here, byte {bytes}", part.display()))?;
            bytes += n as u64;
        }
        file.sync_all()
            .with_context(|| format!("{}: cannot be brought to disk", part.display()))?;
        fs::rename(part, to).with_context(|| format!("{}: cannot be given its name", to.display()))?;
        Ok(bytes)
    };
    keep(&mut stream).inspect_err(|_| {
        let _ = fs::remove_file(part); // half an input is of no use, and the error above is the one to tell
    })
}

/// Refuses an output that is the very file of an input, under this or another name.
///
/// # Errors
/// Both names lead to one file.
pub fn refuse_overwrite(input: &Path, output: &Path) -> Result<()> {
    let same = match (fs::metadata(input), fs::metadata(output)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    };
    if same || input == output {
        bail!(
            "{}: is the input {} itself; give the output another name",
            output.display(),
            input.display()
        );
    }
    Ok(())
}
