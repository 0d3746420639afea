//! What `generation_config.json` says about lengths and the first token, followed as transformers 5.23 follows it.

use crate::place::{bundled, read, shared, Place};
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of a checkpoint, its JSON files changed: file, key, value (null takes the key out).
fn copy(place: &Place, from: &Path, name: &str, changes: &[(&str, &str, Value)]) -> PathBuf {
    let to = place.path(name);
    fs::create_dir_all(&to).expect("a folder");
    for entry in fs::read_dir(from).expect("a checkpoint") {
        let entry = entry.expect("an entry");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    for (file, key, value) in changes {
        let path = to.join(file);
        let mut object: Value = serde_json::from_slice(&fs::read(&path).expect("a file")).expect("JSON");
        let members = object.as_object_mut().expect("an object");
        match value {
            Value::Null => members.remove(*key),
            value => members.insert((*key).to_owned(), value.clone()),
        };
        fs::write(&path, object.to_string()).expect("written");
    }
    to
}

const GENERATION: &str = "generation_config.json";

#[test]
fn min_length_counts_the_prompt_and_min_new_tokens_does_not() {
    let Some(place) = Place::new() else { return };
    let prompts = [json!([896, 1107]), json!([896, 1107, 12, 40, 300])];
    let lines = prompts
        .iter()
        .map(|ids| json!({"prompt_token_ids": ids}).to_string() + "\n");
    let input = place.write("prompts.jsonl", lines.collect::<String>());
    let run = |changes: &[(&str, &str, Value)], out: &str, flags: &str| -> Vec<Vec<u32>> {
        let model = copy(&place, &bundled("lm"), &format!("model-{out}"), changes);
        let flags = format!("--dtype f32 --max-new-tokens 12 {flags}");
        place.run_job("generate", 1, &model, &input, out, &flags).ok();
        read(&place.path(out)).into_iter().map(|row| row.ids).collect()
    };
    // With the first token of each output as an end of sentence, outputs end at once unless they may not.
    let free = run(&[(GENERATION, "eos_token_id", json!(0))], "free.h5", "");
    let ends = json!([free[0][0], free[1][0]]);
    for (keys, flags, least) in [
        (vec![], "", [0, 0]),
        (vec![("min_length", 2)], "", [0, 0]),
        (vec![("min_length", 6)], "", [4, 1]),
        (vec![("min_length", 100)], "", [12, 12]),
        (vec![("min_length", 6), ("min_new_tokens", 2)], "", [2, 2]),
        (vec![("min_length", 6), ("min_new_tokens", 0)], "", [0, 0]),
        (vec![("min_length", 6)], "--min-new-tokens 3", [3, 3]),
        (vec![("min_length", 6)], "--num-beams 2 --early-stopping true", [4, 1]),
    ] {
        let mut changes = vec![(GENERATION, "eos_token_id", ends.clone())];
        changes.extend(keys.iter().map(|&(key, value)| (GENERATION, key, json!(value))));
        let found = run(&changes, &format!("{}.h5", place_name(&keys, flags)), flags);
        for (ids, least) in found.iter().zip(least) {
            let end = |id: &u32| ends.as_array().unwrap().contains(&json!(id));
            let before = ids.iter().position(end).unwrap_or(ids.len());
            assert!(before >= least && ids.len() <= 12, "{keys:?} {flags}: {ids:?}");
            if least == 0 {
                assert_eq!(before, 0, "{keys:?} {flags}: {ids:?}");
            }
        }
    }
}

fn place_name(keys: &[(&str, i32)], flags: &str) -> String {
    let words = keys.iter().map(|(key, value)| format!("{key}{value}"));
    words.chain([flags.replace(' ', "")]).collect()
}

#[test]
fn a_length_that_is_not_followed_is_told_once() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "The file\n");
    let told = "max_length = 30, prompts included, which is not followed";
    let model = copy(&place, &bundled("lm"), "lm", &[(GENERATION, "max_length", json!(30))]);
    for (flags, times) in [("", 1), ("--max-new-tokens 3", 0), ("--max-length 9", 0)] {
        let flags = format!("--dtype f32 --overwrite {flags}");
        let end = place.run_job("generate", 2, &model, &input, "out.h5", &flags);
        assert_eq!(
            (end.code, end.stderr.matches(told).count()),
            (0, times),
            "{flags}: {end:#?}"
        );
    }
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    // An encoder reads the prompt: the stored length is that of the output.
    let key = [(GENERATION, "max_length", json!(7))];
    let model = copy(&place, &checkpoints.join("switch-s1"), "switch", &key);
    let end = place.run_job(
        "generate",
        1,
        &model,
        &input,
        "switch.h5",
        "--dtype f32 --min-new-tokens 6",
    );
    assert!(!end.stderr.contains("max_length"), "{end:#?}");
    assert_eq!(read(&place.path("switch.h5"))[0].ids.len(), 6);
    end.ok();
}

#[test]
fn outputs_need_a_token_to_begin_with() {
    let Some(place) = Place::new() else { return };
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    let key = "decoder_start_token_id";
    let changes = [("config.json", key, Value::Null), (GENERATION, key, Value::Null)];
    let model = copy(&place, &checkpoints.join("switch-s1"), "switch", &changes);
    let input = place.write("in.txt", "a\n");
    let end = place.run_job("generate", 1, &model, &input, "out.h5", "--dtype f32");
    end.refused(&[GENERATION, "config.json", key, "add it"]);
    let input = place.write("in.tsv", "source\ttarget\na\tb\n");
    let end = place.run_job("score", 1, &model, &input, "out.h5", "--dtype f32 --pairs");
    end.refused(&["config.json", key, "add it"]);
}
