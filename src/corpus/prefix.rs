//! Tokenizing only the beginning of a very long text that will be cut anyway.
//!
//! The library needs about half a second and 100 MB for each megabyte of text, which a model reads a few kilobytes of.
//! Where it is sure that the beginning of a text has the same tokens alone as in the whole text, the rest is left out.

use serde_json::Value;

/// Whether the tokens of a text's beginning are known to be the same without the rest, if the beginning ends at a
/// [`boundary`]: words are split at blanks and tokenized one by one, what is normalized before does not reach over the
/// blank between two ASCII letters, and no added token has a blank in it.
///
/// `file` is `tokenizer.json`. What is not known here counts as unsure.
pub(crate) fn is_sure(file: &Value) -> bool {
    let words = &file["pre_tokenizer"];
    let by_word = words["type"] == "Metaspace" && words["split"] == true && words["prepend_scheme"] == "always";
    let added = file["added_tokens"].as_array().map_or(&[][..], Vec::as_slice);
    let no_blank = added
        .iter()
        .all(|t| t["content"].as_str().is_some_and(|c| !c.contains(char::is_whitespace)));
    by_word && no_blank && file["model"]["type"] == "BPE" && is_local(&file["normalizer"])
}

fn is_local(normalizer: &Value) -> bool {
    match normalizer["type"].as_str() {
        None => normalizer.is_null(),
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .is_some_and(|all| all.iter().all(is_local)),
        Some("Replace") => {
            let runs = [r"\s+", " {2,}"]; // runs of white space become one blank
            normalizer["content"] == " "
                && normalizer["pattern"]["Regex"]
                    .as_str()
                    .is_some_and(|p| runs.contains(&p))
        }
        Some(kind) => matches!(
            kind,
            "NFC" | "NFD" | "NFKC" | "NFKD" | "Precompiled" | "Strip" | "Lowercase"
        ),
    }
}

/// The last place at or before `byte` where an ASCII letter ends and a blank and another ASCII letter follow.
pub(crate) fn boundary(text: &str, byte: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    (1..=byte.min(bytes.len().saturating_sub(2)))
        .rev()
        .find(|at| bytes[*at] == b' ' && bytes[*at - 1].is_ascii_alphabetic() && bytes[*at + 1].is_ascii_alphabetic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn boundaries_lie_between_ascii_letters() {
        let text = "one two, three é four";
        assert_eq!(boundary(text, 100), Some(3));
        assert_eq!(boundary(text, 2), None);
        assert_eq!(boundary("a b", 9), Some(1));
        assert_eq!(boundary("a ", 9), None);
        assert_eq!(boundary("", 9), None);
    }

    #[test]
    fn what_is_not_known_is_unsure() {
        let file = json!({
            "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "NFKC"}, {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}, {"type": "Strip"}]},
            "model": {"type": "BPE"},
            "added_tokens": [{"content": "<s>"}],
        });
        assert!(is_sure(&file));
        for (pointer, value) in [
            ("/pre_tokenizer/split", json!(false)),
            ("/pre_tokenizer", json!(null)),
            ("/normalizer/normalizers/1/pattern", json!({"Regex": "a b"})),
            ("/normalizer/normalizers/0/type", json!("Novel")),
            ("/model/type", json!("Unigram")),
            ("/added_tokens/0/content", json!("two words")),
        ] {
            let mut other = file.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            assert!(!is_sure(&other), "{pointer}");
        }
    }
}
