//! Some of the experts in memory, the others read as they are needed: the results to the last bit, the memory, the refusals.

use crate::datasets::{assert_equal, invariant};
use crate::place::{bundled, shared, Place};
use crate::small_model::SmallModel;
use serde_json::{json, Value};
use std::fs;
use std::path::{Path, PathBuf};

const EVICTION: [&str; 5] = ["lookahead", "lifo", "lru", "fifo", "lfu"];
const PREFETCH: [&str; 3] = ["trace", "off", "gate"];
const DTYPES: [&str; 3] = ["f32", "bf16", "int8"];

/// A job over one input, as it is without a buffer.
struct Work<'a> {
    place: &'a Place,
    name: String,
    job: &'static str,
    model: PathBuf,
    input: PathBuf,
    flags: String,
}

impl Work<'_> {
    /// Compares runs with parts of the experts in memory with one that has them all: ranks and flags.
    fn is_the_same(&self, kept: &[(usize, String)]) {
        let (place, mut plain) = (self.place, None);
        let everything = [(1, String::new())];
        for (i, (ranks, more)) in everything.iter().chain(kept).enumerate() {
            let (out, report) = (format!("{}-{i}.h5", self.name), place.arg("report.json"));
            let flags = format!("{} {more} --report {report}", self.flags);
            let end = place.run_job(self.job, *ranks, &self.model, &self.input, &out, &flags);
            let what = format!("{}, {} on {ranks} ranks {flags}", self.name, self.job);
            // One of the references' texts is too long for most, and is passed over.
            assert!(end.code <= 1 && end.errors() == 0, "{what}: {end:#?}");
            let found = invariant(&place.path(&out));
            let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
            let buffers = report["results"]["buffer"].as_array().expect("ranks");
            assert_eq!(buffers.len(), *ranks);
            match &plain {
                None => plain = Some(found),
                Some(plain) => {
                    assert_equal(&found, plain, &what);
                    for buffer in buffers {
                        let number = |value: &Value| value.as_u64().expect("a number");
                        let (slots, experts) = (number(&buffer["slots"]), number(&buffer["experts"]));
                        let loads = number(&buffer["tally"]["loads"]);
                        assert!(slots < experts || slots == experts && loads == 0, "{what}: {buffer}");
                        assert!(*ranks > 2 || slots < experts && loads > 0, "{what}: {buffer}");
                    }
                }
            }
        }
    }
}

/// One way after another to keep experts: all policies, all ways to fetch ahead, few slots and some more (what reading takes
/// is much beside experts as small as these).
fn way(place: &Place, i: usize) -> (usize, String) {
    let ranks = 1 + i % 4;
    let budget = match i % 3 {
        0 => "--expert-slots 1",
        1 => "--expert-slots 2",
        _ if ranks < 3 => "--expert-memory 90%",
        _ => "--expert-slots 1",
    };
    let (eviction, prefetch) = (EVICTION[i % 5], PREFETCH[(i + i / 3) % 3]);
    // The first to come with a checkpoint and a precision makes the file, the others find it.
    let below = match i % 5 {
        0 | 3 => format!(" --cache-dir {}", place.path("cache").display()),
        1 => " --simulate-link 300M".to_owned(),
        _ => String::new(),
    };
    let pin = if i % 2 == 1 { " --pin hot:1" } else { "" };
    (
        ranks,
        format!("{budget} --eviction {eviction} --prefetch {prefetch}{pin}{below}"),
    )
}

/// A reference checkpoint's items as lines of a job.
fn items(place: &Place, model: &Path, job: &str) -> PathBuf {
    let golden: Value = serde_json::from_slice(&fs::read(model.join("golden.json")).expect("a file")).expect("JSON");
    let key = if job == "generate" { "prompt" } else { "text" };
    let lines = golden["items"].as_array().expect("items").iter();
    let lines: String = lines
        .map(|item| json!({key: item["text"]}).to_string() + "\n")
        .collect();
    place.write("items.jsonl", lines)
}

#[test]
fn reference_checkpoints_of_every_family_give_the_same_bits_with_a_few_experts_in_memory() {
    let Some(place) = Place::new() else { return };
    let Some(checkpoints) = shared("oracle/ckpt") else {
        return;
    };
    let entries = fs::read_dir(checkpoints).expect("a folder").flatten();
    let known = |path: &PathBuf| {
        // JetMoE's attention is sparse too: not one of the families here.
        path.join("golden.json").exists() && !path.to_string_lossy().contains("jetmoe")
    };
    let mut models: Vec<PathBuf> = entries.map(|e| e.path()).filter(known).collect();
    models.sort();
    assert!(models.len() > 12);
    let mut ways = (0..).map(|i| way(&place, i));
    for (i, model) in models.into_iter().enumerate() {
        let name = model.file_name().expect("a name").to_string_lossy().into_owned();
        let (job, flags) = match (name.split('-').next(), i % 2) {
            (Some("nllb"), _) => (
                "translate",
                "--source eng_Latn --target fra_Latn --max-new-tokens 12 --scores",
            ),
            (Some("switch"), _) | (_, 0) => ("generate", "--max-new-tokens 12 --scores"),
            _ => ("score", "--ranks --top 2"),
        };
        let work = Work {
            place: &place,
            job,
            input: items(&place, &model, job),
            flags: format!("{flags} --routing counts --on-error skip --dtype {}", DTYPES[i % 3]),
            model,
            name,
        };
        let first = work.name.ends_with("-s1");
        work.is_the_same(&ways.by_ref().take(1 + usize::from(first)).collect::<Vec<_>>());
    }
}

#[test]
fn bundled_checkpoints_give_the_same_bits_with_a_few_experts_in_memory() {
    let Some(place) = Place::new() else { return };
    let head = |name: &str, lines: usize| {
        let text = fs::read_to_string(bundled(name)).expect("a text");
        place.write("in.txt", text.lines().take(lines).collect::<Vec<_>>().join("\n") + "\n")
    };
    let mut ways = (0..).map(|i| way(&place, i));
    for (job, model, input, lines, flags) in [
        (
            "translate",
            "en-fr-de",
            "demo/demo.eng",
            12,
            "--source eng_Latn --target fra_Latn --max-new-tokens 16 --scores --num-beams 2 --batch-tokens 100",
        ),
        (
            "score",
            "lm",
            "demo/guide.txt",
            40,
            "--ranks --window 16 --stride 8 --activation-memory 200K --dtype f32",
        ),
        (
            "generate",
            "lm",
            "demo/guide.txt",
            12,
            "--max-new-tokens 12 --scores --dtype int8 --batch-tokens 300",
        ),
    ] {
        let work = Work {
            place: &place,
            name: format!("{model}-{job}"),
            job,
            model: bundled(model),
            input: head(input, lines),
            flags: format!("{flags} --routing tokens"),
        };
        work.is_the_same(&ways.by_ref().take(5).collect::<Vec<_>>());
    }
}

const FRENCH: &str = "--source eng_Latn --target fra_Latn --max-new-tokens 4";

#[test]
fn the_least_memory_that_a_refusal_names_does() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Press any key.\n");
    let model = bundled("en-fr-de");
    for (ranks, more) in [(1, ""), (2, "--eviction lru"), (2, "--dtype f32 --eviction lifo")] {
        let run = |memory: &str, out: &str| {
            let flags = format!("{FRENCH} {more} --expert-memory {memory}");
            place.translate(ranks, &model, &input, out, &flags)
        };
        let end = run("10K", "out.h5");
        end.refused(&["--expert-memory 10K", "holds 0 experts", "least"]);
        assert!(!place.left("out.h5"));
        let (_, least) = end.stderr.rsplit_once("give --expert-memory ").expect("the least");
        let least: u64 = least[..least.find('M').expect("MiB")].parse().expect("a number");
        assert!(least > 1);
        run(&format!("{}M", least - 1), "less.h5").refused(&[&format!("--expert-memory {least}M")]);
        run(&format!("{least}M"), &format!("{ranks}{}.h5", more.len())).ok();
    }
}

#[test]
fn options_that_mean_nothing_are_refused() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Press any key.\n");
    let model = SmallModel::new(4).save(&place, "model");
    for flags in [
        "--eviction lru",
        "--prefetch off",
        "--pin hot:1",
        "--cache-dir x",
        "--simulate-link 1G",
    ] {
        let end = place.translate(1, &model, &input, "out.h5", &format!("{FRENCH} {flags}"));
        assert_eq!(end.code, 2, "{flags}: {end:#?}");
        end.says(&["--expert-memory", "--expert-slots"]);
    }
    for flags in [
        "--expert-slots 0",
        "--expert-memory 0%",
        "--expert-memory 101%",
        "--expert-memory much",
        "--expert-slots 1 --expert-memory 1G",
    ] {
        let end = place.translate(1, &model, &input, "out.h5", &format!("{FRENCH} {flags}"));
        end.refused(&["--expert-"]);
    }
    let mut dense = SmallModel::new(4);
    for step in ["encoder_sparse_step", "decoder_sparse_step"] {
        dense.config[step] = 0.into();
    }
    let dense = dense.again().save(&place, "dense");
    let end = place.translate(2, &dense, &input, "out.h5", &format!("{FRENCH} --expert-slots 1"));
    end.refused(&["no experts"]);
    assert!(!place.left("out.h5"));
}

#[test]
fn a_config_file_and_more_pins_than_slots_give_the_same_rows() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Press any key.\nThe file was not found.\n");
    let model = SmallModel::new(4).save(&place, "model");
    let plain = place.rows(1, &model, &input, "plain.h5", FRENCH);
    place.write(
        "job.toml",
        "expert-slots = 1\neviction = \"lru\"\nprefetch = \"off\"\npin = \"hot:9\"\n",
    );
    let file = format!("{FRENCH} --config {}", place.arg("job.toml"));
    let end = place.translate(2, &model, &input, "file.h5", &file);
    end.says(&["holds 2 of 4 experts"]);
    end.ok();
    assert_eq!(crate::place::read(&place.path("file.h5")), plain);
    for (i, eviction) in EVICTION.into_iter().enumerate() {
        let flags = format!("{FRENCH} --expert-slots 1 --eviction {eviction} --pin hot:100");
        let found = place.rows(1 + i % 2, &model, &input, &format!("{eviction}.h5"), &flags);
        assert_eq!(found, plain, "{eviction}");
    }
}

#[test]
fn experts_that_are_not_in_memory_take_none() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Press any key.\nThe file was not found.\n");
    let model = SmallModel::of_experts().save(&place, "model");
    let measure = |name: &str, more: &str| {
        let report = place.arg(&format!("{name}.json"));
        let flags = format!("{FRENCH} --dtype f32 --report {report} {more}");
        place.rows(1, &model, &input, &format!("{name}.h5"), &flags);
        let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let results = &report["results"];
        [
            number(&results["peak_memory_bytes"][0]),
            number(&results["weight_bytes"][0]),
            number(&results["buffer"][0]["bytes"]),
        ]
    };
    let [peak, weights, _] = measure("all", "");
    for (name, more) in [("one", ""), ("lru", "--eviction lru --prefetch off")] {
        let [small, dense, slots] = measure(name, &format!("--expert-slots 1 {more}"));
        let (fell, saved) = (peak - small, weights - dense - slots);
        println!("{name}: {peak} bytes fell by {fell}, of {saved} that are not held");
        assert!(saved > 110e6, "{saved} of {weights}");
        assert!(
            fell >= 0.95 * saved,
            "{name}: the peak {peak} fell by {fell} bytes, not {saved}"
        );
    }
}
