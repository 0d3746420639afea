//! The memory budget: what a rank may hold at most, measured as the peak of its resident set.

use crate::place::{bundled, Place};
use serde_json::Value;
use sluicegate::checkpoint::read_json;
use sluicegate::model::inventory::Owner;
use sluicegate::model::nllb_moe::NllbMoeConfig;
use std::fs;
use std::path::{Path, PathBuf};

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().unwrap_or_else(|| panic!("numbers, found {value}"));
    list.iter().map(|v| v.as_f64().expect("a number")).collect()
}

/// Runs `input` on one and two ranks and compares what they held with the checkpoint's size.
fn measure(dir: &Path, input: &Path) {
    let Some(place) = Place::new() else { return };
    let config = read_json(dir, "config.json").expect("config.json");
    let config = NllbMoeConfig::from_json(&config, &dir.join("config.json")).expect("config");
    let (mut dense, mut experts) = (0.0, 0.0);
    for tensor in config.spec().inventory() {
        let bytes = 4.0 * tensor.elements() as f64;
        match tensor.owner {
            Owner::Dense => dense += bytes,
            Owner::Expert { .. } | Owner::Experts { .. } => experts += bytes,
        }
    }
    for (ranks, flags) in [(1, ""), (2, "--num-beams 4")] {
        let report = place.arg(&format!("{ranks}.json"));
        let flags =
            format!("--source eng_Latn --target fra_Latn --max-new-tokens 48 --dtype f32 --report {report} {flags}");
        place.rows(ranks, dir, input, &format!("{ranks}.h5"), &flags);
        let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
        let of = |name: &str| numbers(&report["results"][name]);
        let (peak, weights, caches) = (of("peak_memory_bytes"), of("weight_bytes"), of("held_bytes_at_most"));
        assert_eq!((peak.len(), weights.len(), caches.len()), (ranks, ranks, ranks));
        for rank in 0..ranks {
            let (held, allowed) = (peak[rank], 1.15 * weights[rank] + caches[rank] + 250e6);
            println!(
                "rank {rank} of {ranks}: {held} of {allowed} bytes, weights {}",
                weights[rank]
            );
            assert!(held <= allowed, "rank {rank} of {ranks}: {held} of {allowed} bytes");
            assert!(
                held > weights[rank],
                "rank {rank} of {ranks} can't hold its weights in {held} bytes"
            );
        }
        // Norms are not counted, and packing fills up to whole lines.
        let (held, wanted) = (weights.iter().sum::<f64>(), ranks as f64 * dense + experts);
        assert!(
            (held / wanted - 1.0).abs() < 0.01,
            "{ranks} ranks hold {held} bytes, the checkpoint {wanted}"
        );
    }
}

#[test]
fn ranks_keep_their_memory_budget_and_share_the_experts() {
    measure(&bundled("en-fr-de"), &bundled("demo/demo.eng"));
}

#[test]
#[ignore = "needs a checkpoint of some gigabytes: SLUICE_MID, a folder that also holds bench.txt"]
fn a_mid_size_checkpoint_keeps_the_budget() {
    let dir = PathBuf::from(std::env::var_os("SLUICE_MID").expect("SLUICE_MID names a folder"));
    measure(&dir, &dir.join("bench.txt"));
}

/// What rank 0 held at most, in bytes, when `job` went over `rows` rows.
fn peak(place: &Place, job: &str, rows: usize, flags: &str) -> f64 {
    let text = fs::read_to_string(bundled("demo/guide.txt")).expect("a text");
    let lines: Vec<&str> = text.lines().cycle().take(rows).collect();
    let input = place.write(&format!("{job}-{rows}.txt"), lines.join("\n") + "\n");
    let (out, report) = (format!("{job}-{rows}.h5"), place.arg(&format!("{job}-{rows}.json")));
    let flags = format!("{flags} --segment-seconds 0.1 --report {report}");
    place.run_job(job, 2, &bundled("lm"), &input, &out, &flags).ok();
    let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    assert_eq!(report["results"]["all_rows"], rows);
    numbers(&report["results"]["peak_memory_bytes"])[0]
}

/// A row's scores come to some 60 KB, its keys and values to 150 KB: what was kept of all rows would show. The smaller corpus
/// already fills the windows in which rows are put together.
#[test]
fn memory_does_not_grow_with_the_corpus() {
    let Some(place) = Place::new() else { return };
    for (job, [few, many], flags) in [
        ("score", [300, 1500], "--top 128 --activation-memory 2M"),
        ("generate", [60, 600], "--max-new-tokens 4 --batch-tokens 512"),
    ] {
        let (few, many) = (peak(&place, job, few, flags), peak(&place, job, many, flags));
        println!("{job}: {few} and {many} bytes");
        assert!(many <= few + 30e6, "{job}: {few} bytes, and {many} for more rows");
    }
}
