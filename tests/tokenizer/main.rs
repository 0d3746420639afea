//! Tokenizers against the reference's ids, and what they do with odd texts and torn files.

mod chats;
mod families;
mod nllb;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A folder of the reference files, or none with a word about it.
fn shared(part: &str) -> Option<PathBuf> {
    let shared = std::env::var_os("SLUICE_SHARED").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"),
        PathBuf::from,
    );
    let path = shared.join(part);
    if !path.exists() {
        eprintln!("skipped: {} not there", path.display());
        return None;
    }
    Some(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}
