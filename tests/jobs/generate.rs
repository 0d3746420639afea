//! `sluice generate`: the reference's ids, whatever the ranks; prompts in all forms; sampling by seeds; stop strings.

use crate::datasets::{assert_equal, invariant, Datasets};
use crate::place::{bundled, read, shared, Place};
use serde_json::{json, Value};
use sluicegate::results::{Row, Status};
use std::fs;
use std::path::Path;

#[test]
fn reference_checkpoints_of_every_family_generate_what_the_reference_does() {
    let Some(place) = Place::new() else { return };
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    for family in [
        "olmoe-s2-clip-norm",
        "mixtral-s1",
        "qwen2_moe-s2-step2-tied",
        "qwen3_moe-s1",
        "deepseek_v2-s2-lite-yarn",
        "deepseek_v3-s1",
        "gpt_oss-s1",
        "switch-s1",
    ] {
        let model = checkpoints.join(family);
        let golden: Value = serde_json::from_slice(&fs::read(model.join("golden.json")).unwrap()).unwrap();
        let items = golden["items"].as_array().unwrap();
        let line = |(i, item): (usize, &Value)| {
            let prompt = match family.starts_with("switch") {
                true => json!({"custom_id": i, "prompt": item["text"]}),
                // Texts without tokens have no prompt.
                false => {
                    json!({"custom_id": i, "prompt_token_ids": item["prompt"].as_array().cloned().unwrap_or_default()})
                }
            };
            prompt.to_string() + "\n"
        };
        let lines: String = items.iter().enumerate().map(line).collect();
        let input = place.write("prompts.jsonl", lines);
        for (mode, flags) in [
            ("greedy", "--num-beams 1"),
            ("beam4", "--num-beams 4"),
            (
                "beam4_alt",
                "--num-beams 4 --length-penalty 0.6 --early-stopping true --no-repeat-ngram-size 3",
            ),
        ] {
            let mut number = 0;
            let mut run = |ranks: usize, sharing: &str| -> Datasets {
                number += 1;
                let out = format!("{family}-{mode}-{number}.h5");
                let flags = format!("--dtype f32 --max-new-tokens 32 --scores --routing counts {flags} {sharing}");
                place.run_job("generate", ranks, &model, &input, &out, &flags).ok();
                invariant(&place.path(&out))
            };
            let one = run(1, "");
            let mut compared = 0;
            for (row, item) in read(&place.path(&format!("{family}-{mode}-1.h5"))).iter().zip(items) {
                if row.status == Status::Blank {
                    continue;
                }
                let wanted: Vec<u32> = serde_json::from_value(item[mode]["ids"].clone()).unwrap();
                // An encoder-decoder's begin with the decoder's start token.
                let wanted = &wanted[family.starts_with("switch") as usize..];
                assert_eq!(row.ids, wanted, "{family}, {mode}, {:?}", item["text"]);
                compared += 1;
            }
            assert!(compared > 10);
            assert_equal(
                &run(3, "--batch-tokens 50"),
                &one,
                &format!("{family}, {mode}, 3 ranks"),
            );
        }
    }
}

/// Prompts for the bundled language model.
fn prompts(place: &Place) -> std::path::PathBuf {
    let text = fs::read_to_string(bundled("demo/guide.txt")).unwrap();
    let starts = text.lines().take(24).map(|l| l.chars().take(40).collect::<String>());
    place.write("prompts.txt", starts.collect::<Vec<_>>().join("\n"))
}

fn generate(place: &Place, ranks: usize, input: &Path, out: &str, flags: &str) -> Vec<Row> {
    let flags = format!("--dtype f32 --max-new-tokens 20 --overwrite {flags}");
    place
        .run_job("generate", ranks, &bundled("lm"), input, out, &flags)
        .ok();
    read(&place.path(out))
}

fn outputs(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|r| r.output.as_str()).collect()
}

#[test]
fn draws_depend_on_the_seed_and_on_nothing_else() {
    let Some(place) = Place::new() else { return };
    let input = prompts(&place);
    let flags = "--temperature 0.9 --top-p 0.95 --top-k 40 --seed 5 --scores";
    let one = generate(&place, 1, &input, "one.h5", flags);
    let wanted = invariant(&place.path("one.h5"));
    for (ranks, sharing) in [(3, ""), (2, "--batch-tokens 30"), (2, "--expert-parallel 1")] {
        generate(&place, ranks, &input, "other.h5", &format!("{flags} {sharing}"));
        assert_equal(&invariant(&place.path("other.h5")), &wanted, sharing);
    }
    let other = generate(
        &place,
        1,
        &input,
        "seed.h5",
        "--temperature 0.9 --top-p 0.95 --top-k 40 --seed 6",
    );
    let greedy = generate(&place, 1, &input, "greedy.h5", "");
    assert!(outputs(&one) != outputs(&other) && outputs(&one) != outputs(&greedy));
    // The likeliest token alone is greedy search; so is temperature 0.
    let first = generate(&place, 1, &input, "k1.h5", "--temperature 0.7 --top-k 1");
    assert_eq!(outputs(&first), outputs(&greedy));
    let cold = generate(&place, 1, &input, "cold.h5", "--temperature 0");
    assert_eq!(outputs(&cold), outputs(&greedy));
}

#[test]
fn prompts_come_as_lines_ids_and_chats_with_settings_of_their_own() {
    let Some(place) = Place::new() else { return };
    let plain = place.write("p.txt", "The file\n\nA command\n");
    let wanted = generate(&place, 1, &plain, "plain.h5", "");
    assert_eq!(wanted[1].status, Status::Blank);
    let ids = &wanted[0];
    assert_eq!(ids.ids.len(), 20);
    let lines = [
        json!({"custom_id": "a", "prompt": "The file"}),
        json!({"custom_id": "b", "prompt": "A command", "max_tokens": 3}),
        json!({"custom_id": "c", "prompt": "A command", "stop": [" "]}),
        json!({"custom_id": "d", "prompt_token_ids": [896, 1107]}),
    ];
    let lines: String = lines.iter().map(|l| l.to_string() + "\n").collect();
    let input = place.write("p.jsonl", lines);
    let rows = generate(&place, 2, &input, "jsonl.h5", "");
    assert_eq!(rows[0].output, wanted[0].output);
    assert_eq!(rows[1].ids, wanted[2].ids[..3]);
    assert_eq!(rows[1].status, Status::LengthLimit);
    let before = wanted[2].output.trim_start_matches(' ');
    let start = wanted[2].output.len() - before.len();
    let cut = match start {
        0 => wanted[2].output.split(' ').next().unwrap(),
        _ => "",
    };
    assert_eq!((rows[2].output.as_str(), rows[2].status), (cut, Status::Ok));
    assert!(!rows[3].output.is_empty());
    // A model without a chat template says so, and how to go on.
    let chat = place.write(
        "chat.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}]}\n",
    );
    let end = place.run_job("generate", 1, &bundled("lm"), &chat, "chat.h5", "");
    end.refused(&["chat_template", "prompt"]);
    // A prompt longer than the model was trained for: named, and with skip only it is lost.
    let long = place.write(
        "long.txt",
        "The file\n".to_owned() + &"word ".repeat(3000) + "\nA command\n",
    );
    let flags = "--dtype f32 --max-new-tokens 20";
    let end = place.run_job("generate", 1, &bundled("lm"), &long, "long.h5", flags);
    end.refused(&["long.txt, line 2", "1024", "--on-error skip"]);
    // As it advises: the job goes on.
    let flags = "--dtype f32 --max-new-tokens 20 --on-error skip";
    let end = place.run_job("generate", 1, &bundled("lm"), &long, "long.h5", flags);
    assert_eq!(end.code, 1, "{end:#?}");
    let rows = read(&place.path("long.h5"));
    assert_eq!(outputs(&rows), [&wanted[0].output, "", &wanted[2].output]);
    assert_eq!(rows[1].status, Status::Failed);
}

#[test]
fn stop_strings_end_and_cut_outputs() {
    let Some(place) = Place::new() else { return };
    let input = prompts(&place);
    let whole = generate(&place, 1, &input, "whole.h5", "");
    let mut arguments = place.job_of(
        "generate",
        &bundled("lm"),
        &input,
        "stop.h5",
        "--dtype f32 --max-new-tokens 20",
    );
    arguments.extend(["--stop", " the ", "--stop", "."].map(String::from));
    place.start(2, &[], None, &arguments).ok();
    let mut cut = 0;
    for (row, whole) in read(&place.path("stop.h5")).iter().zip(&whole) {
        let end = [" the ", "."].iter().filter_map(|s| whole.output.find(s)).min();
        match end {
            Some(end) => {
                assert_eq!((row.output.as_str(), row.status), (&whole.output[..end], Status::Ok));
                assert!(row.ids.len() <= whole.ids.len() && whole.ids.starts_with(&row.ids));
                cut += 1;
            }
            None => assert_eq!((&row.output, row.status), (&whole.output, whole.status)),
        }
    }
    assert!(cut > 5, "{cut} outputs were cut");
}

#[test]
fn what_makes_no_sense_is_refused_before_work() {
    let Some(place) = Place::new() else { return };
    let text = place.write("in.txt", "a\n");
    for (model, flags, words) in [
        (
            "lm",
            "--temperature 0.5 --num-beams 2",
            vec!["--temperature", "--num-beams 2"],
        ),
        ("lm", "--top-p 0", vec!["--top-p 0", "probability"]),
        ("lm", "--temperature -1", vec!["--temperature"]),
        ("en-fr-de", "", vec!["nllb-moe", "sluice translate"]),
    ] {
        let end = place.run_job("generate", 2, &bundled(model), &text, "refused.h5", flags);
        assert_eq!(end.code, 2, "{flags}: {end:#?}");
        end.says(&words);
        assert!(!place.left("refused.h5"), "{flags}");
    }
    let end = place.run_job("translate", 1, &bundled("lm"), &text, "refused.h5", "--source eng_Latn");
    end.refused(&["translate", "olmoe", "sluice generate"]);
}

#[test]
fn a_prompt_beyond_the_memory_costs_a_row_and_not_the_job() {
    let Some(place) = Place::new() else { return };
    // Its keys and values would take 2.6 GiB.
    let prompt = |tokens: usize| json!({"prompt_token_ids": vec![5; tokens]}).to_string() + "\n";
    let input = place.write("prompts.jsonl", prompt(10) + &prompt(600_000) + &prompt(10));
    let flags = "--dtype f32 --max-new-tokens 5";
    let run = |flags: &str| {
        let arguments = place.job_of("generate", &bundled("lm"), &input, "out.h5", flags);
        place.limited(1500, &arguments)
    };
    run(flags).refused(&[
        "prompts.jsonl, line 2",
        "600000 tokens",
        "GiB",
        "--max-new-tokens",
        "--on-error skip",
    ]);
    let end = run(&format!("{flags} --on-error skip --overwrite"));
    assert_eq!(end.code, 1, "{end:#?}");
    end.says(&["prompts.jsonl, line 2", "600000 tokens"]);
    let rows = read(&place.path("out.h5"));
    let failed: Vec<bool> = rows.iter().map(|r| r.status == Status::Failed).collect();
    assert_eq!(failed, [false, true, false]);
    assert_eq!(rows[0].ids, rows[2].ids);
}

#[test]
fn positions_that_are_not_computed_are_refused_and_not_met_at_work() {
    let Some(place) = Place::new() else { return };
    let Some(model) = shared("oracle/ckpt/phimoe-s2-longrope") else {
        return;
    };
    let prompt = |tokens: usize| json!({"prompt_token_ids": vec![5; tokens]}).to_string() + "\n";
    let input = place.write("prompts.jsonl", prompt(10) + &prompt(44) + &prompt(45));
    let run = |flags: &str| place.run_job("generate", 1, &model, &input, "out.h5", flags);
    for (flags, words) in [
        (
            "--max-new-tokens 64",
            ["--max-new-tokens 64", "64 positions", "at most 63"],
        ),
        ("--max-length 65", ["--max-length 65", "64 positions", "at most 64"]),
    ] {
        run(flags).refused(&words);
        assert!(!place.left("out.h5"), "{flags}");
    }
    let end = run("--max-new-tokens 20");
    assert_eq!(end.code, 2, "{end:#?}");
    end.says(&["prompts.jsonl, line 3", "45 tokens", "64 positions", "--max-new-tokens"]);
    let end = run("--max-new-tokens 20 --on-error skip --overwrite");
    assert_eq!(end.code, 1, "{end:#?}");
    let failed: Vec<bool> = read(&place.path("out.h5"))
        .iter()
        .map(|r| r.status == Status::Failed)
        .collect();
    assert_eq!(failed, [false, false, true]);
    // So do rows that ask for too much themselves, whatever others have.
    let own = |tokens: usize| json!({"prompt_token_ids": [5, 6, 7], "max_tokens": tokens}).to_string() + "\n";
    let rows = place.write("own.jsonl", own(61) + &own(62));
    let end = place.run_job("generate", 1, &model, &rows, "own.h5", "");
    end.refused(&["own.jsonl, line 2", "up to 62", "the row's own limit", "64 positions"]);
    // A length that nobody asked for is cut to what there is.
    run("--overwrite").ok();
    assert!(read(&place.path("out.h5")).iter().all(|r| r.ids.len() <= 64 - 10));
    let text = place.write("in.txt", "a b c d e f g h\n");
    let end = place.run_job("score", 1, &model, &text, "scores.h5", "--window 65");
    end.refused(&["--window 65", "64 positions", "at most 64"]);
}
