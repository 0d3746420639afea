//! NLLB's tokenizer, with its languages.

use super::{ids, json, shared};
use serde_json::Value;
use sluicegate::corpus::NllbTokenizer;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A copy of a checkpoint's tokenizer with other settings in its config.
fn tokenizer_with(dir: &TempDir, checkpoint: &Path, changes: &[(&str, Value)]) -> anyhow::Result<NllbTokenizer> {
    fs::copy(checkpoint.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let mut config = json(&checkpoint.join("tokenizer_config.json"));
    for (name, value) in changes {
        config[*name] = value.clone();
    }
    fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    NllbTokenizer::load(dir.path())
}

#[test]
fn ids_are_those_of_the_reference() {
    for name in ["nllb-moe-s1", "nllb-moe-s2-bf16-shard-bias", "nllb-moe-s3-drop"] {
        let Some(checkpoint) = shared(&format!("oracle/ckpt/{name}")) else {
            return;
        };
        let dir = TempDir::new().unwrap();
        let cutting = NllbTokenizer::load(&checkpoint).unwrap();
        let whole = tokenizer_with(&dir, &checkpoint, &[("model_max_length", serde_json::json!(1e30))]).unwrap();
        assert_eq!((cutting.max_length(), whole.max_length()), (Some(96), None));
        let golden = json(&checkpoint.join("golden.json"));
        let items = golden["items"].as_array().unwrap();
        assert!(items.len() > 20);
        for item in items {
            let text = item["text"].as_str().unwrap();
            let cut = cutting.source(text, "eng_Latn").unwrap();
            assert_eq!(cut.ids, ids(&item["ids_trunc"]), "{name}: {text:?}");
            assert_eq!(cut.cut, item["ids"] != item["ids_trunc"]);
            // The reference's `ids` stop at 512.
            let full = whole.source(text, "eng_Latn").unwrap();
            let expected = ids(&item["ids"]);
            assert!(!full.cut);
            if expected.len() < 512 {
                assert_eq!(full.ids, expected, "{name}: {text:?}");
            } else {
                assert_eq!(full.ids[..511], expected[..511]);
            }
            assert_eq!(
                cutting.decode(&expected).unwrap(),
                item["decoded"].as_str().unwrap(),
                "{name}: {text:?}"
            );
            for mode in ["greedy", "beam4"] {
                let output = &item[mode];
                assert_eq!(
                    cutting.decode(&ids(&output["ids"])).unwrap(),
                    output["text"].as_str().unwrap()
                );
            }
        }
        // Labels: the next item's text in the target language.
        for pair in items.windows(2) {
            let labels = cutting.source(pair[1]["text"].as_str().unwrap(), "fra_Latn").unwrap();
            assert_eq!(labels.ids, ids(&pair[0]["score"]["labels"]), "{name}");
        }
    }
}

#[test]
fn ids_and_texts_are_those_of_the_trained_model() {
    let (Some(demo), Some(model)) = (shared("model/demo"), shared("model/en-fr-de")) else {
        return;
    };
    let tokenizer = NllbTokenizer::load(&model).unwrap();
    assert_eq!(
        (tokenizer.vocab_size(), tokenizer.languages().len(), tokenizer.eos()),
        (8256, 202, 2)
    );
    for (file, lang) in [
        ("hyp.fra.greedy.jsonl", "fra_Latn"),
        ("hyp.deu.beam4.jsonl", "deu_Latn"),
    ] {
        let lines = fs::read_to_string(demo.join(file)).unwrap();
        assert_eq!(lines.lines().count(), 160);
        for line in lines.lines() {
            let item: Value = serde_json::from_str(line).unwrap();
            let source = tokenizer.source(item["source"].as_str().unwrap(), "eng_Latn").unwrap();
            assert_eq!(source.ids, ids(&item["input_ids"]));
            let output = ids(&item["output_ids"]);
            assert_eq!(output[1], tokenizer.target_lang_id(lang).unwrap());
            assert_eq!(tokenizer.decode(&output).unwrap(), item["text"].as_str().unwrap());
        }
    }
}

#[test]
fn an_unknown_language_is_refused_with_the_closest_ones() {
    let Some(checkpoint) = shared("oracle/ckpt/nllb-moe-s1") else {
        return;
    };
    let tokenizer = NllbTokenizer::load(&checkpoint).unwrap();
    for code in ["fre_Latn", "fr", "", "<pad>", "</s>", "<mask>", "▁the", "fra_latn"] {
        let message = tokenizer.target_lang_id(code).unwrap_err().to_string();
        assert!(
            message.contains(&format!("`{code}`")) && message.contains("6 codes"),
            "{message}"
        );
        assert!(tokenizer.source("a", code).is_err());
    }
    let message = tokenizer.target_lang_id("fre_Latn").unwrap_err().to_string();
    assert!(message.contains("closest are fra_Latn"), "{message}");
    let same = tokenizer.source("a", "fra_Latn").unwrap();
    assert_eq!(same.ids[0], tokenizer.target_lang_id("fra_Latn").unwrap());
}

#[test]
fn settings_of_the_config_are_kept() {
    let Some(checkpoint) = shared("oracle/ckpt/nllb-moe-s1") else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let now = NllbTokenizer::load(&checkpoint).unwrap();
    let load = |changes: &[(&str, Value)]| tokenizer_with(&dir, &checkpoint, changes);
    let text = "The router sends every token to two experts.";
    let plain = now.source(text, "eng_Latn").unwrap().ids;
    let n = plain.len();

    let legacy = load(&[("legacy_behaviour", true.into())])
        .unwrap()
        .source(text, "eng_Latn")
        .unwrap();
    assert_eq!(legacy.ids, [&plain[1..], &plain[..1]].concat());
    let short = load(&[("legacy_behaviour", true.into()), ("model_max_length", 6.into())]).unwrap();
    let short = short.source(text, "eng_Latn").unwrap();
    assert_eq!(
        short.ids,
        [&plain[1..5], &[2, plain[0]][..]].concat(),
        "a cut keeps both specials"
    );
    assert!(short.cut);

    for (length, cut) in [(n, false), (n - 1, true), (3, true)] {
        let source = load(&[("model_max_length", length.into())])
            .unwrap()
            .source(text, "eng_Latn")
            .unwrap();
        assert_eq!((source.ids.len(), source.cut), (length, cut));
        assert_eq!((source.ids[0], source.ids[length - 1]), (plain[0], 2));
    }
    for bad in [serde_json::json!(2), serde_json::json!("many")] {
        assert!(load(&[("model_max_length", bad)])
            .err()
            .unwrap()
            .to_string()
            .contains("model_max_length"));
    }
    let object = serde_json::json!({"content": "</s>", "special": true});
    assert_eq!(load(&[("eos_token", object)]).unwrap().eos(), 2);
    assert!(load(&[("eos_token", "<end>".into())])
        .err()
        .unwrap()
        .to_string()
        .contains("`<end>`"));
}

#[test]
fn length_settings_inside_tokenizer_json_are_left_out() {
    let Some(checkpoint) = shared("oracle/ckpt/nllb-moe-s1") else {
        return;
    };
    let dir = TempDir::new().unwrap();
    let mut file = json(&checkpoint.join("tokenizer.json"));
    file["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    file["padding"] = serde_json::json!({"strategy": {"Fixed": 40}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 1, "pad_type_id": 0, "pad_token": "<pad>"});
    fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    fs::copy(
        checkpoint.join("tokenizer_config.json"),
        dir.path().join("tokenizer_config.json"),
    )
    .unwrap();
    let text = "The router sends every token to two experts.";
    let found = NllbTokenizer::load(dir.path())
        .unwrap()
        .source(text, "eng_Latn")
        .unwrap();
    assert_eq!(
        found,
        NllbTokenizer::load(&checkpoint)
            .unwrap()
            .source(text, "eng_Latn")
            .unwrap()
    );
}

#[test]
fn a_torn_tokenizer_is_refused() {
    let dir = TempDir::new().unwrap();
    let message = |dir: &TempDir| format!("{:#}", NllbTokenizer::load(dir.path()).err().expect("must be refused"));
    assert!(message(&dir).contains("tokenizer.json: a model folder needs this file"));
    for (torn, said) in [
        ("", "not valid JSON"),
        ("{\"version\": \"1.0\"", "not valid JSON"),
        ("{}", "no tokenizer that can be understood"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ] {
        fs::write(dir.path().join("tokenizer.json"), torn).unwrap();
        assert!(message(&dir).contains(said), "{torn}: {}", message(&dir));
    }
    let Some(checkpoint) = shared("oracle/ckpt/nllb-moe-s1") else {
        return;
    };
    fs::copy(checkpoint.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    assert!(message(&dir).contains("tokenizer_config.json: a model folder needs this file"));
    fs::write(dir.path().join("tokenizer_config.json"), "[]").unwrap();
    assert!(message(&dir).contains("no JSON object"));
}

#[test]
fn odd_texts_become_ids() {
    let Some(model) = shared("model/en-fr-de") else { return };
    let tokenizer = NllbTokenizer::load(&model).unwrap();
    let eng = tokenizer.target_lang_id("eng_Latn").unwrap();
    for blank in ["", " ", "\u{2028}\u{A0}\t"] {
        assert_eq!(tokenizer.source(blank, "eng_Latn").unwrap().ids, [eng, 2], "{blank:?}");
    }
    let unknown = tokenizer.source("\u{13000}\u{13001} \u{13002}", "eng_Latn").unwrap();
    assert!(
        unknown.ids.contains(&3),
        "unknown characters are <unk>: {:?}",
        unknown.ids
    );
    assert_eq!(tokenizer.decode(&unknown.ids).unwrap().trim(), "");
    let typed = tokenizer.source("a </s> fra_Latn", "eng_Latn").unwrap();
    assert_eq!(
        typed.ids.iter().filter(|id| **id == 2).count(),
        2,
        "a typed special token is one"
    );
    assert_eq!(
        tokenizer.decode(&[2, 999_999, 2]).unwrap(),
        "",
        "an id beyond the vocabulary leaves nothing"
    );
}

/// Of a very long line only the beginning is tokenized: the ids must be those of the whole line all the same.
#[test]
fn a_very_long_line_is_cut_like_any_other() {
    let Some(model) = shared("model/en-fr-de") else { return };
    let dir = TempDir::new().unwrap();
    let cutting = NllbTokenizer::load(&model).unwrap();
    let whole = tokenizer_with(&dir, &model, &[("model_max_length", serde_json::json!(1e30))]).unwrap();
    let sentence =
        "Ｔhe  router \u{301}sends every token to two experts</s>; fra_Latn a <mask> é \u{A0}and so \u{13000} on. ";
    for (line, tokens) in [
        (sentence.repeat(6000), true),                   // ends in the middle of things
        ("a".repeat(400_000), true),                     // no place to cut
        ("\u{13000}".repeat(100_000), false),            // one unknown token
        (format!("{} a b", " ".repeat(400_000)), false), // next to nothing
        (format!("{}{sentence}", "e\u{301} ".repeat(200_000)), true),
    ] {
        let found = cutting.source(&line, "eng_Latn").unwrap();
        let mut expected = whole.source(&line, "eng_Latn").unwrap().ids;
        assert_eq!(found.cut, tokens);
        if tokens {
            expected.drain(511..expected.len() - 1);
        }
        assert_eq!(found.ids, expected);
    }
    let huge = "The router sends every token to two experts. ".repeat(10_000_000 / 45);
    let found = cutting.source(&huge, "eng_Latn").unwrap();
    assert_eq!((found.ids.len(), found.cut), (512, true));
    assert_eq!(found, cutting.source(&huge[..45_000], "eng_Latn").unwrap());
}
