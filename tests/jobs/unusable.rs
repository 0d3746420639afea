//! Rows that cannot be used: what becomes of them is the same in every job.

use crate::place::{bundled, read, Place};
use serde_json::{json, Map, Value};
use sluicegate::results::Status;
use std::fs;
use std::path::PathBuf;

/// A bundled checkpoint whose tokenizer knows the words `good` and `text` and has nothing for all others.
fn of_two_words(place: &Place, model: &str) -> PathBuf {
    let dir = place.path(model);
    fs::create_dir(&dir).expect("a folder");
    for entry in fs::read_dir(bundled(model)).expect("a checkpoint").flatten() {
        std::os::unix::fs::symlink(entry.path(), dir.join(entry.file_name())).expect("a link");
    }
    let path = dir.join("tokenizer.json");
    let mut file: Value = serde_json::from_slice(&fs::read(&path).expect("a tokenizer")).expect("JSON");
    let added = file["added_tokens"].as_array().expect("a list");
    let added = added
        .iter()
        .map(|t| (t["content"].as_str().expect("a text").to_owned(), t["id"].clone()));
    let mut vocab: Map<String, Value> = added.collect();
    let words = ["good", "text", "Ġgood", "Ġtext", "▁good", "▁text"];
    vocab.extend((1000..).zip(words).map(|(id, word)| (word.to_owned(), json!(id))));
    file["model"] = json!({"type": "WordLevel", "vocab": vocab, "unk_token": "[none]"});
    fs::remove_file(&path).expect("removed");
    fs::write(&path, file.to_string()).expect("written");
    dir
}

#[test]
fn a_text_that_cannot_be_tokenized_ends_the_job_or_is_skipped() {
    let Some(place) = Place::new() else { return };
    let (lm, nllb) = (of_two_words(&place, "lm"), of_two_words(&place, "en-fr-de"));
    let texts = place.write("in.txt", "good text\nbad text\ntext good\n");
    let pairs = place.write("pairs.txt", "good text\ttext\ntext\tbad\ntext good\tgood\n");
    let languages = "--source eng_Latn --target fra_Latn";
    for (i, (job, model, input, flags)) in [
        ("score", &lm, &texts, ""),
        ("score", &nllb, &pairs, "--pairs"),
        ("generate", &lm, &texts, "--max-new-tokens 2"),
        ("translate", &nllb, &texts, "--max-new-tokens 2"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("{i}.h5");
        let flags = match model == &nllb {
            true => format!("{flags} {languages}"),
            false => flags.to_owned(),
        };
        let end = place.run_job(job, 2, model, input, &out, &flags);
        end.refused(&[", line 2: ", "tokenizer.json", "--on-error skip"]);
        let end = place.run_job(job, 2, model, input, &out, &format!("{flags} --on-error skip"));
        assert_eq!((end.code, end.errors()), (1, 0), "{job} {flags}: {end:#?}");
        end.says(&[", line 2: ", "tokenizer.json"]);
        let failed: Vec<bool> = read(&place.path(&out))
            .iter()
            .map(|r| r.status == Status::Failed)
            .collect();
        assert_eq!(failed, [false, true, false], "{job} {flags}");
    }
}
