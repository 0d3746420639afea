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

/// The bad row comes last, when the ranks are at work on others.
#[test]
fn a_row_that_turns_out_unusable_late_costs_nothing_else() {
    let Some(place) = Place::new() else { return };
    let lm = of_two_words(&place, "lm");
    let line = |i: usize| "good text ".repeat(1 + i % 4) + "good\n";
    let good: String = (0..90).map(line).collect();
    let bad = place.write("bad.txt", good.clone() + "bad text\n");
    let good = place.write("good.txt", good);
    for (job, flags) in [
        ("generate", "--dtype f32 --max-new-tokens 24 --batch-tokens 64"),
        ("score", "--dtype f32 --window 16 --activation-memory 200K"),
    ] {
        place.run_job(job, 1, &lm, &good, &format!("{job}-good.h5"), flags).ok();
        let wanted = read(&place.path(&format!("{job}-good.h5")));
        for (out, resumes) in [(format!("{job}-skip.h5"), false), (format!("{job}-fail.h5"), true)] {
            if resumes {
                let end = place.run_job(job, 3, &lm, &bad, &out, flags);
                end.refused(&["bad.txt, line 91: ", "tokenizer.json", "--on-error skip"]);
            }
            let end = place.run_job(job, 3, &lm, &bad, &out, &format!("{flags} --on-error skip"));
            assert_eq!((end.code, end.errors()), (1, 0), "{job}: {end:#?}");
            end.says(&["bad.txt, line 91: "]);
            if resumes {
                end.says(&["resuming: ", " of 91 rows are kept"]);
            }
            let rows = read(&place.path(&out));
            assert_eq!(rows.len(), 91);
            assert!(rows[..90] == wanted[..], "{job}, {out}");
            assert_eq!(rows[90].status, Status::Failed);
        }
    }
}

/// Of the language model, with a last norm so large that hidden states overflow. No weight is a NaN itself: that is refused.
fn of_a_damaged_norm(place: &Place) -> PathBuf {
    let dir = place.path("damaged");
    fs::create_dir(&dir).expect("a folder");
    for entry in fs::read_dir(bundled("lm")).expect("a checkpoint").flatten() {
        fs::copy(entry.path(), dir.join(entry.file_name())).expect("a copy");
    }
    let path = dir.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("weights");
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).expect("JSON");
    let norm = &tensors["model.norm.weight"];
    assert_eq!(norm["dtype"], "BF16");
    let [first, end] = [0, 1].map(|i| 8 + header + norm["data_offsets"][i].as_u64().expect("an offset") as usize);
    for weight in bytes[first..end].chunks_exact_mut(2) {
        weight.copy_from_slice(&0x7f7f_u16.to_le_bytes());
    }
    fs::write(&path, bytes).expect("written");
    dir
}

#[test]
fn a_row_with_a_nan_is_named_by_file_and_line() {
    let Some(place) = Place::new() else { return };
    let model = of_a_damaged_norm(&place);
    let input = place.write("in.txt", "\n\nA line of text.\n");
    for (job, flags) in [("score", ""), ("generate", "--max-new-tokens 4")] {
        for ranks in [1, 3] {
            let out = format!("{job}-{ranks}.h5");
            let end = place.run_job(job, ranks, &model, &input, &out, &format!("--dtype f32 {flags}"));
            end.refused(&["in.txt, line 3: ", "NaN"]);
        }
    }
}
