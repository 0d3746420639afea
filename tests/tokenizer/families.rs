//! The tokenizers of all other families.

use super::{ids, json, shared};
use sluicegate::corpus::Tokenizer;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// The checkpoints of all families but NLLB, or none with a word about it.
fn others() -> Vec<PathBuf> {
    let Some(all) = shared("oracle/ckpt") else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with("nllb"));
    found.sort();
    assert!(found.len() > 15);
    found
}

#[test]
fn every_family_has_the_ids_of_the_reference() {
    for checkpoint in others() {
        let name = checkpoint.file_name().unwrap().to_str().unwrap();
        let tokenizer = Tokenizer::load(&checkpoint).unwrap();
        let golden = json(&checkpoint.join("golden.json"));
        let items = golden["items"].as_array().unwrap();
        assert!(items.len() > 20);
        let mut outputs = 0;
        for item in items {
            let (text, expected) = (item["text"].as_str().unwrap(), ids(&item["ids"]));
            let found = tokenizer.encode(text, true).unwrap();
            assert_eq!(found, expected, "{name}: {text:?}");
            assert_eq!(
                tokenizer.decode(&expected).unwrap(),
                item["decoded"].as_str().unwrap(),
                "{name}"
            );
            // Texts without a prompt are not gone on from.
            for output in ["greedy", "beam4"]
                .map(|mode| &item[mode])
                .into_iter()
                .filter(|o| !o.is_null())
            {
                let text = tokenizer.decode(&ids(&output["ids"])).unwrap();
                assert_eq!(text, output["text"].as_str().unwrap(), "{name}");
                outputs += 1;
            }
            // Specials stand at the ends, and nothing else is added.
            let bare = tokenizer.encode(text, false).unwrap();
            let family = name.split('-').next().unwrap();
            let (begins, ends) = match family {
                "mixtral" | "jetmoe" | "phimoe" | "deepseek_v2" | "deepseek_v3" => (tokenizer.bos(), None),
                "switch" => (None, tokenizer.eos()),
                _ => (None, None),
            };
            let around: Vec<u32> = begins.into_iter().chain(bare).chain(ends).collect();
            assert_eq!(found, around, "{name}: {text:?}");
        }
        assert!(outputs > 10, "{name}");
        let vocab = json(&checkpoint.join("config.json"))["vocab_size"].as_u64().unwrap() as usize;
        assert!(tokenizer.vocab_size() <= vocab);
        assert_eq!(
            (tokenizer.max_length(), tokenizer.eos().is_some()),
            (Some(96), true),
            "{name}"
        );
    }
}

#[test]
fn special_tokens_are_those_that_the_folder_names() {
    let Some(checkpoint) = shared("oracle/ckpt/mixtral-s1") else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let tokenizer = Tokenizer::load(&checkpoint).unwrap();
    assert_eq!(
        (tokenizer.bos(), tokenizer.eos(), tokenizer.pad()),
        (Some(1), Some(2), Some(2))
    );
    assert_eq!((tokenizer.id_of("</s>"), tokenizer.id_of("<none>")), (Some(2), None));
    assert_eq!(tokenizer.decode(&[1, 2]).unwrap(), "");

    fs::copy(checkpoint.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let load = |file: &str, text: &str| {
        fs::write(dir.path().join(file), text).unwrap();
        Tokenizer::load(dir.path())
    };
    let bare = load(
        "tokenizer_config.json",
        r#"{"add_bos_token": false, "add_eos_token": true, "bos_token": null}"#,
    );
    let bare = bare.unwrap();
    assert_eq!((bare.bos(), bare.eos(), bare.pad()), (None, None, None));
    assert_eq!(
        bare.encode("a b", true).unwrap(),
        tokenizer.encode("a b", true).unwrap(),
        "the flags are not followed where tokenizer.json says"
    );
    let map = r#"{"eos_token": {"content": "</s>"}, "bos_token": "<s>", "additional_special_tokens": ["<x>"]}"#;
    let older = load("special_tokens_map.json", map).unwrap();
    assert_eq!((older.bos(), older.eos()), (Some(1), Some(2)));
    let newer = r#"{"added_tokens_decoder": {}, "pad_token": "<none>"}"#;
    let newer = load("tokenizer_config.json", newer).unwrap();
    assert_eq!(
        (newer.eos(), newer.pad()),
        (None, None),
        "the older file counts in older folders only"
    );
    let message = load("tokenizer_config.json", r#"{"eos_token": "<end>"}"#)
        .err()
        .unwrap()
        .to_string();
    assert!(
        message.contains("no token `<end>`") && message.contains("eos_token"),
        "{message}"
    );
}
