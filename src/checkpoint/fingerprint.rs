//! `model_sha256`: a name for a model that changes with its weights, config or tokenizer.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::folder::{Shard, INDEX};

/// Small files that shape results; those that aren't there are passed over.
const WHOLE: [&str; 10] = [
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
];

/// Bytes of one sample.
const SAMPLE: u64 = 64 << 10;
/// Samples lie at 0/16, 1/16, ..., 16/16 of a file's weights.
const STEPS: u64 = 16;

/// Hashes whole small files, then of each shard: name, size, header and sampled blocks.
///
/// The folder's own path doesn't count. Every part is preceded by its length, so that parts can't run together.
pub(super) fn sha256(dir: &Path, shards: &[Shard]) -> Result<String> {
    let mut hash = Sha256::new();
    for name in WHOLE {
        let path = dir.join(name);
        match File::open(&path) {
            Ok(mut file) => {
                let mut text = Vec::new();
                file.read_to_end(&mut text)
                    .with_context(|| path.display().to_string())?;
                part(&mut hash, name.as_bytes());
                part(&mut hash, &text);
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| path.display().to_string()),
        }
    }
    for shard in shards {
        let name = shard.path.strip_prefix(dir).unwrap_or(&shard.path);
        part(&mut hash, name.as_os_str().as_encoded_bytes());
        hash.update(shard.len.to_le_bytes());
        for (start, end) in samples(shard.data_start, shard.len) {
            let mut block = vec![0; (end - start) as usize];
            shard
                .file
                .read_exact_at(&mut block, start)
                .with_context(|| shard.path.display().to_string())?;
            part(&mut hash, &block);
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn part(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

/// Byte ranges to hash of a file of `len` bytes: its header, then blocks at even distances up to its very end.
fn samples(data_start: u64, len: u64) -> Vec<(u64, u64)> {
    let mut ranges = vec![(0, data_start)];
    let data = len - data_start;
    if data <= (STEPS + 1) * SAMPLE {
        ranges.push((data_start, len));
    } else {
        let room = data - SAMPLE;
        // In two parts, so that nothing overflows.
        let start = |i: u64| data_start + room / STEPS * i + room % STEPS * i / STEPS;
        ranges.extend((0..=STEPS).map(|i| (start(i), start(i) + SAMPLE)));
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_reach_from_the_first_weight_to_the_last() {
        assert_eq!(samples(100, 100), [(0, 100), (100, 100)]);
        let whole = (STEPS + 1) * SAMPLE;
        assert_eq!(samples(100, 100 + whole), [(0, 100), (100, 100 + whole)]);
        for data in [whole + 1, 3 * whole + 7, 1 << 40] {
            let ranges = samples(100, 100 + data);
            assert_eq!(ranges.len() as u64, STEPS + 2);
            assert_eq!(ranges[1].0, 100);
            assert_eq!(ranges[ranges.len() - 1].1, 100 + data);
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{ranges:?}");
        }
    }
}
