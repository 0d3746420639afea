//! Chats through the checkpoint's template.

use super::{ids, json, shared};
use sluicegate::corpus::{Chat, Tokenizer};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A checkpoint's tokenizer with these files beside it.
fn with_files(checkpoint: &Path, files: &[(&str, &str)]) -> (TempDir, anyhow::Result<Tokenizer>) {
    let dir = TempDir::new().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(checkpoint.join(name), dir.path().join(name)).unwrap();
    }
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let tokenizer = Tokenizer::load(dir.path());
    (dir, tokenizer)
}

/// A chat of the fixture: a list of messages, or an object with what else the template is given.
fn chat(stored: &serde_json::Value) -> Chat {
    let mut arguments = stored.as_object().cloned().unwrap_or_default();
    let messages = arguments.remove("messages").unwrap_or(stored.clone());
    Chat {
        messages: messages.as_array().unwrap().clone(),
        template_arguments: arguments,
    }
}

#[test]
fn chats_have_the_ids_of_the_reference() {
    let Some(checkpoint) = shared("oracle/ckpt/mixtral-s1") else {
        return;
    };
    let fixture = json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/chat.json"));
    let mut compared = 0;
    for (family, template) in fixture["templates"].as_object().unwrap() {
        let files = [("chat_template.jinja", template.as_str().unwrap())];
        let (_dir, tokenizer) = with_files(&checkpoint, &files);
        let tokenizer = tokenizer.unwrap();
        for case in fixture["cases"].as_array().unwrap() {
            if case["template"] != *family {
                continue;
            }
            let chat = chat(&fixture["chats"][case["chat"].as_str().unwrap()]);
            match case.get("ids") {
                Some(expected) => {
                    let found = tokenizer.encode_chat(&chat).unwrap();
                    assert_eq!(found, ids(expected), "{family}, {}", case["chat"]);
                    compared += 1;
                }
                None => assert!(tokenizer.encode_chat(&chat).is_err()),
            }
        }
    }
    assert!(compared > 55);
}

#[test]
fn a_chat_template_is_found_where_checkpoints_keep_it() {
    let Some(checkpoint) = shared("oracle/ckpt/olmoe-s1") else {
        return;
    };
    let messages = chat(&serde_json::json!([{"role": "user", "content": "a"}]));
    let text = |files: &[(&str, &str)]| with_files(&checkpoint, files).1.and_then(|t| t.chat_text(&messages));
    let none = text(&[]).unwrap_err().to_string();
    assert!(
        none.contains("tokenizer_config.json: has no chat_template") && none.contains("`prompt`"),
        "{none}"
    );
    let jinja = ("chat_template.jinja", "jinja {{ messages[0].content }}");
    let config = (
        "tokenizer_config.json",
        r#"{"chat_template": "config {{ messages[0].content }}"}"#,
    );
    let list = (
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "default", "template": "list"}, {"name": "rag", "template": "no"}]}"#,
    );
    let beside = (
        "chat_template.json",
        r#"{"chat_template": "beside {{ messages[0].content }}"}"#,
    );
    assert_eq!(text(&[jinja, config, beside]).unwrap(), "jinja a");
    assert_eq!(text(&[config, beside]).unwrap(), "config a");
    assert_eq!(text(&[list]).unwrap(), "list");
    assert_eq!(text(&[beside]).unwrap(), "beside a");
    let broken = text(&[("chat_template.jinja", "{% if %}")]).unwrap_err();
    assert!(format!("{broken:#}").contains("chat_template.jinja: the chat template has a mistake"));
    let refused = text(&[("chat_template.jinja", "{{ raise_exception('No system role') }}")]).unwrap_err();
    assert!(format!("{refused:#}").contains("No system role"));
}
