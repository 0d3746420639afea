//! A PNG file of a picture's pixels.

use anyhow::Result;
use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};
use std::io::Write;

/// The bytes of a PNG file (RFC 2083): 8 bits a colour, `rgb` is `[height, width, 3]`.
///
/// # Errors
/// None but those of memory.
pub fn png(rgb: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // 8 bits, colours, deflate, filters by row, no interlacing.
    header.extend([8, 2, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in rgb.chunks_exact(3 * width as usize) {
        packed.write_all(&[0])?;
        packed.write_all(row)?;
    }
    chunk(&mut file, b"IDAT", &packed.finish()?);
    chunk(&mut file, b"IEND", &[]);
    Ok(file)
}

fn chunk(file: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    let mut sum = Crc::new();
    sum.update(name);
    sum.update(data);
    file.extend((data.len() as u32).to_be_bytes());
    file.extend(name);
    file.extend(data);
    file.extend(sum.sum().to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_file_has_its_chunks_with_their_sums() {
        let rgb: Vec<u8> = (0..2 * 3 * 3).collect();
        let file = png(&rgb, 3, 2).unwrap();
        let (mut at, mut names, mut pixels) = (8, Vec::new(), Vec::new());
        while at < file.len() {
            let number = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap());
            let (length, name) = (number(at) as usize, &file[at + 4..at + 8]);
            let mut sum = Crc::new();
            sum.update(&file[at + 4..at + 8 + length]);
            assert_eq!(number(at + 8 + length), sum.sum());
            names.push(String::from_utf8(name.to_vec()).unwrap());
            if name == b"IDAT" {
                let data = &file[at + 8..at + 8 + length];
                flate2::read::ZlibDecoder::new(data).read_to_end(&mut pixels).unwrap();
            }
            at += 12 + length;
        }
        assert_eq!(names, ["IHDR", "IDAT", "IEND"]);
        assert_eq!(&file[16..29], [0, 0, 0, 3, 0, 0, 0, 2, 8, 2, 0, 0, 0]);
        assert_eq!(pixels, [&[0], &rgb[..9], &[0], &rgb[9..]].concat());
    }
}
