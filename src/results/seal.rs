//! JSON files that tell when a character of them was changed: the last member of the object, `digest`, is the SHA-256 of
//! all text before it.

use super::durable::hex;
use anyhow::{ensure, Context, Result};
use serde::de::DeserializeOwned;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// What stands around the digest.
const BEFORE: &[u8] = b",\n\"digest\":\"";
const AFTER: &[u8] = b"\"}";
/// Hexadecimal digits of a SHA-256.
const DIGITS: usize = 64;

/// `object` as JSON with its digest.
pub(crate) fn sealed(object: &impl Serialize) -> Result<Vec<u8>> {
    let mut json = serde_json::to_vec(object)?;
    ensure!(
        json.pop() == Some(b'}') && json.len() > 1,
        "only an object with members can have a digest"
    );
    let digest = hex(&Sha256::digest(&json));
    json.extend([BEFORE, digest.as_bytes(), AFTER].concat());
    Ok(json)
}

/// The object of a file that [`sealed`] gave, or that an earlier version wrote without a digest.
///
/// # Errors
/// It isn't that object, or its text isn't what the digest is of.
pub(crate) fn unseal<T: DeserializeOwned>(json: &[u8]) -> Result<T> {
    if let Some((text, digest)) = split(json) {
        ensure!(
            hex(&Sha256::digest(text)).as_bytes() == digest,
            "some of its characters were changed (they no longer have the SHA-256 at its end)"
        );
    }
    serde_json::from_slice(json).context("it is no such JSON")
}

/// The text that has a digest, and the digest.
fn split(json: &[u8]) -> Option<(&[u8], &[u8])> {
    let json = json.strip_suffix(AFTER)?;
    let (json, digest) = json.split_at_checked(json.len().checked_sub(DIGITS)?)?;
    Some((json.strip_suffix(BEFORE)?, digest))
}

#[cfg(test)]
mod tests {
    use super::{sealed, unseal};
    use std::collections::BTreeMap;

    #[test]
    fn a_changed_character_is_noticed() {
        let object: BTreeMap<String, u32> = (0..9).map(|i| (format!("é {i}"), i * 37)).collect();
        let json = sealed(&object).expect("JSON");
        let value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(value["é 3"], 111);
        let digest = value["digest"].clone();
        let read = |json: &[u8]| unseal::<BTreeMap<String, serde_json::Value>>(json);
        let whole = read(&json).expect("whole");
        assert_eq!(whole.len(), 10);
        for place in 0..json.len() {
            for bit in 0..8 {
                let mut changed = json.clone();
                changed[place] ^= 1 << bit;
                // In the digest's own name or around it nothing is lost.
                if let Ok(read) = read(&changed) {
                    assert!(read.values().any(|value| *value == digest), "{place}");
                    assert!(object.keys().all(|name| read.get(name) == whole.get(name)), "{place}");
                }
            }
            assert!(read(&json[..place]).is_err(), "cut to {place}");
        }
        let plain = serde_json::to_vec(&object).expect("JSON");
        assert_eq!(read(&plain).expect("as before there were digests").len(), 9);
    }
}
