//! The reference checkpoints, where the folder that holds them is there.

use std::fs;
use std::path::{Path, PathBuf};

use sluicegate::checkpoint::generation::GenerationDefaults;
use sluicegate::checkpoint::{read_json, Checkpoint, StoredDtype};

use crate::small_model::{inspect, parsed};

/// A file of the folder beside the repository that holds reference checkpoints.
fn shared(path: &str) -> Option<PathBuf> {
    let root = std::env::var_os("SLUICE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let found = root.join(path);
    if !found.exists() {
        eprintln!("skipped: {} is not there", found.display());
        return None;
    }
    Some(found)
}

#[test]
fn the_reference_checkpoints_are_what_the_inventory_says() {
    for (path, dtype, max_length, forced_bos, drops) in [
        ("oracle/ckpt/nllb-moe-s1", StoredDtype::F32, 200, None, false),
        (
            "oracle/ckpt/nllb-moe-s2-bf16-shard-bias",
            StoredDtype::Bf16,
            200,
            None,
            false,
        ),
        ("oracle/ckpt/nllb-moe-s3-drop", StoredDtype::F32, 200, None, true),
        ("model/en-fr-de", StoredDtype::Bf16, 200, Some(8109), false),
    ] {
        let Some(dir) = shared(path) else { continue };
        let checkpoint = inspect(&dir).unwrap_or_else(|e| panic!("{e:#}"));
        let config = parsed(&read_json(&dir, "config.json").unwrap());
        assert_eq!(checkpoint.stored_dtype(), dtype);
        assert_eq!(config.dtype, Some(dtype));
        assert_eq!(config.drops_tokens().is_some(), drops);
        let mut expected: Vec<String> = config
            .spec()
            .inventory()
            .into_iter()
            .map(|tensor| tensor.name)
            .collect();
        expected.sort();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), expected);
        for name in &expected {
            checkpoint.read(name).unwrap_or_else(|e| panic!("{e:#}"));
        }
        assert_eq!(checkpoint.bytes_read(), checkpoint.total_bytes());
        assert_eq!(checkpoint.sha256().unwrap().len(), 64);
        let generation = GenerationDefaults::load(&dir).unwrap();
        assert_eq!(
            (generation.max_length, generation.forced_bos_token_id),
            (Some(max_length), forced_bos)
        );
        assert_eq!(
            (generation.decoder_start_token_id, generation.eos_token_ids),
            (Some(2), vec![2])
        );
        assert_eq!((generation.num_beams, generation.not_followed), (1, vec![]));
    }
}

#[test]
fn the_other_families_checkpoints_open_too() {
    let Some(all) = shared("oracle/ckpt") else { return };
    for entry in fs::read_dir(all).unwrap() {
        let dir = entry.unwrap().path();
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e:#}"));
        assert!(checkpoint.names().count() > 0, "{}", dir.display());
        GenerationDefaults::load(&dir).unwrap_or_else(|e| panic!("{e:#}"));
    }
}
