//! What must not be taken for the same job.

use super::found::found;
use super::job::{Bench, Start};
use std::fs;

/// A job that stops with some rows finished.
fn unfinished(bench: &Bench, out: &str, stdin: Option<&str>) {
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_CRASH_AT", "record-after-rename:2", Some(0))),
        stdin,
    };
    let ended = bench.run(&start, out, "--batch-tokens 100");
    assert_ne!(ended.code, Some(0), "it did not crash: {}", ended.stderr);
    assert!(bench.kept(out) > 0);
}

#[test]
fn another_job_is_refused_and_told_what_differs() {
    let Some(bench) = Bench::new() else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    unfinished(&bench, "out.h5", None);
    let kept = bench.kept("out.h5");
    let start = Start {
        ranks: 2,
        ..Start::default()
    };
    let refuse = |start: &Start, more: &str, name: &str| {
        // The finished output is asked only once: it is compared by the same means.
        let outs = ["out.h5", "plain.h5"];
        for out in &outs[..1 + (name == "target") as usize] {
            let ended = bench.run(start, out, more);
            assert_eq!(ended.code, Some(2), "{more}: {}", ended.stderr);
            assert_eq!(ended.errors().len(), 1, "{more}: {}", ended.stderr);
            for part in ["belongs to another job", &format!("  {name}: "), "--overwrite"] {
                assert!(ended.stderr.contains(part), "{more}: {part}: {}", ended.stderr);
            }
        }
        assert_eq!(bench.kept("out.h5"), kept);
    };
    for (more, name) in [
        ("--target deu_Latn", "target"),
        ("--num-beams 2", "num_beams"),
        ("--max-new-tokens 9", "max_length"),
        ("--min-new-tokens 3", "min_length"),
        ("--length-penalty 0.5", "length_penalty"),
        ("--early-stopping never", "early_stopping"),
        ("--no-repeat-ngram-size 3", "no_repeat_ngram_size"),
        ("--dtype f32", "dtype"),
        ("--dtype int8", "dtype"),
        ("--scores=false", "scores"),
        ("--routing counts", "routing"),
    ] {
        refuse(&start, more, name);
    }
    // Another checkpoint: one byte of its weights.
    let model = bench.path("model");
    fs::create_dir(&model).expect("a folder");
    for entry in fs::read_dir(format!("{}/inputs/en-fr-de", env!("CARGO_MANIFEST_DIR")))
        .expect("the model")
        .flatten()
    {
        fs::write(model.join(entry.file_name()), fs::read(entry.path()).expect("a file")).expect("copied");
    }
    let weights = model.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("written");
    refuse(&start, &format!("-m {}", model.display()), "model_sha256");
    // Another input.
    let whole = fs::read_to_string(bench.path("demo.eng")).expect("the input");
    fs::write(bench.path("demo.eng"), whole.replacen('a', "b", 1)).expect("written");
    refuse(&start, "", "input_sha256");
    fs::write(bench.path("demo.eng"), whole).expect("written");
    bench.resume(1, "out.h5", "", &plain);
    // --overwrite takes another job's place.
    bench.done(2, "out.h5", "--overwrite --no-repeat-ngram-size 3");
    bench.done(2, "out.h5", "--overwrite");
    bench.same("out.h5", &plain);
}

#[test]
fn standard_input_is_kept_until_its_job_is_done() {
    let Some(bench) = Bench::new() else { return };
    bench.done(1, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let text = fs::read_to_string(bench.path("demo.eng")).expect("the input");
    for (case, again) in ["", &text].into_iter().enumerate() {
        let out = format!("out-{case}.h5");
        unfinished(&bench, &out, Some(&text));
        // Another input is refused, and doesn't take the place of the first one.
        let piped = |stdin, ranks| Start {
            ranks,
            stdin: Some(stdin),
            ..Start::default()
        };
        let ended = bench.run(&piped("Something else.\n", 1), &out, "");
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        assert!(ended.stderr.contains("input_sha256"), "{}", ended.stderr);
        // Without any, or with the same once more, it goes on.
        let kept = bench.kept(&out);
        let ended = bench.run(&piped(again, 3), &out, "");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        assert!(
            ended.stderr.contains(&format!("resuming: {kept} of")),
            "{}",
            ended.stderr
        );
        bench.same(&out, &plain);
        for (input, ranks) in [(text.as_str(), 1), ("", 2)] {
            let ended = bench.run(&piped(input, ranks), &out, "");
            assert_eq!(ended.code, Some(0), "{}", ended.stderr);
            assert!(ended.stdout.contains("is finished already"), "{}", ended.stdout);
            bench.same(&out, &plain);
        }
        // What else differs is refused as ever, and so is another input.
        for (input, more, name) in [
            ("", "--num-beams 2", "num_beams"),
            ("Something else.\n", "", "input_sha256"),
        ] {
            let ended = bench.run(&piped(input, 1), &out, more);
            assert_eq!(ended.code, Some(2), "{}", ended.stderr);
            assert!(ended.stderr.contains(&format!("  {name}: ")), "{}", ended.stderr);
            let input_differs = ended.stderr.contains("  input_sha256: ");
            assert_eq!(input_differs, !input.is_empty(), "{}", ended.stderr);
        }
    }
    // No input at all is another one than a file's.
    let ended = bench.run(
        &Start {
            ranks: 1,
            stdin: Some(""),
            ..Start::default()
        },
        "plain.h5",
        "",
    );
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("  rows: 40 there, 0 now"), "{}", ended.stderr);
    let left = fs::read_dir(bench.path("")).expect("a folder").flatten();
    let left: Vec<_> = left
        .map(|e| e.file_name())
        .filter(|n| n.to_string_lossy().contains(".stdin"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_second_job_on_the_same_output_is_refused() {
    let Some(bench) = Bench::new() else { return };
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_PAUSE_AT", "load", Some(1))),
        ..Start::default()
    };
    let mut first = bench.start(&start, "out.h5", "");
    assert!(first.until(|job| job.said("SLUICE_PAUSE_AT")));
    for more in ["", "--overwrite"] {
        let holder = first.ranks()[0];
        let second = bench.run(
            &Start {
                ranks: 1,
                ..Start::default()
            },
            "out.h5",
            more,
        );
        assert_eq!((second.code, second.errors().len()), (Some(2), 1), "{}", second.stderr);
        let said = format!("held by pid {holder} ");
        assert!(second.stderr.contains(&said), "{said}: {}", second.stderr);
    }
    super::job::kill("KILL", first.ranks());
    first.wait();
    bench.done(1, "out.h5", "");
}
