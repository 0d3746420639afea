//! The bundled model's own trace.

use crate::place::{bundled, counts, Place};
use crate::slow;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Translates some of the bundled sentences on two ranks; nothing, and a line saying so, where no ranks can be started.
fn translated() -> Option<Place> {
    if Command::new("mpirun").arg("--version").output().is_err() {
        assert!(
            std::env::var_os("SLUICE_NO_SKIP").is_none(),
            "mpirun is not there, and SLUICE_NO_SKIP is set"
        );
        eprintln!("skipped: mpirun is not there");
        return None;
    }
    Some(run(2, 24, 64))
}

/// Translates bundled sentences, over and over, so many in all.
fn run(ranks: usize, lines: usize, batch_tokens: usize) -> Place {
    let place = Place::new();
    let text = fs::read_to_string(bundled("demo/demo.eng")).unwrap();
    let lines: Vec<&str> = text.lines().cycle().take(lines).collect();
    place.write("in.txt", &(lines.join("\n") + "\n"));
    let line = format!(
        "--oversubscribe --bind-to none -n {ranks} {} translate in.txt --model {} --source eng_Latn --target fra_Latn \
         --output run.h5 --routing counts --threads 1 --batch-tokens {batch_tokens}",
        env!("CARGO_BIN_EXE_sluice"),
        bundled("en-fr-de").display()
    );
    let output = place.command("mpirun", &line);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    place
}

#[test]
fn lookahead_loads_no_more_than_other_policies_and_little_more_than_the_minimum() {
    if translated().is_none() {
        return;
    }
    for ranks in [2, 4] {
        let place = run(ranks, 480, 2048);
        for pool in ["rank", "layer"] {
            let page = place.json(&format!(
                "--trace run.h5 -o s.h5 --overwrite --slots 1..{} --pool {pool}",
                16 / ranks - 1
            ));
            let found = &page["placements"][0];
            let accesses = found["accesses"].as_f64().unwrap();
            let loads: Vec<Vec<f64>> = (found["policies"].as_array().unwrap().iter())
                .map(|policy| serde_json::from_value(policy["loads"].clone()).unwrap())
                .collect();
            assert_eq!(found["policies"][0]["name"], "lookahead");
            let (ours, least) = (&loads[0], loads.last().unwrap());
            for (i, (&ours, &least)) in ours.iter().zip(least).enumerate() {
                let case = format!("{ranks} ranks, pool {pool}, {} slots: {ours}, {least}", i + 1);
                let most = if least / accesses > 0.3 {
                    1.05 * least
                } else {
                    least + 0.03 * accesses
                };
                assert!(ours <= most, "{case}");
                // What is no more than chance in a short trace is let pass: a load or two of each rank.
                let others = loads[1..loads.len() - 1]
                    .iter()
                    .map(|loads| loads[i])
                    .fold(f64::MAX, f64::min);
                assert!(ours <= others + 2.0 * ranks as f64, "{case}, another policy {others}");
            }
        }
    }
}

#[test]
fn loads_are_those_of_a_slow_count() {
    let Some(place) = translated() else { return };
    let visits = slow::visits(&place.path("run.h5"));
    let blocks = |_: usize, expert: usize| expert / 8;
    for (pool, share) in [("rank", true), ("layer", false)] {
        let line =
            format!("--trace run.h5 -o s.h5 --overwrite --slots 1..8 --policies lookahead,fifo,lru --pool {pool}");
        let page = place.study(&line);
        assert!(
            page.contains("ranks: 2 (as in the run)") && page.contains("lookahead/min"),
            "{page}"
        );
        let (shape, loads) = counts(&place.path("s.h5"), "loads");
        assert_eq!(shape, [1, 4, 8]);
        let of = |policy: usize, slots: usize| loads[8 * policy + slots - 1];
        for slots in 1..=8 {
            for (policy, renew) in [(1, false), (2, true)] {
                let (needed, loaded) = slow::count(&visits, 2, &blocks, slots, share, renew);
                assert_eq!(of(policy, slots), loaded, "pool {pool}, {slots} slots, policy {policy}");
                assert_eq!(counts(&place.path("s.h5"), "accesses").1, [needed]);
            }
            assert!(
                (0..3).all(|policy| of(policy, slots) >= of(3, slots)),
                "nothing is below the minimum"
            );
        }
        for (name, parts) in [("loads_by_rank", 2), ("loads_by_layer", 4)] {
            let (shape, apart) = counts(&place.path("s.h5"), name);
            assert_eq!(shape, [1, 4, 8, parts], "{name}");
            let sums: Vec<u64> = apart.chunks(parts).map(|part| part.iter().sum()).collect();
            assert_eq!(sums, loads, "{name}");
        }
    }
}

#[test]
fn bytes_come_from_the_checkpoint() {
    let Some(place) = translated() else { return };
    let model = bundled("en-fr-de").display().to_string();
    let page = place.json(&format!(
        "--trace run.h5 -o s.h5 --slots 1,8 --model {model} --policies lifo --dtype f32"
    ));
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(bundled("en-fr-de/config.json")).unwrap()).unwrap();
    let number = |name: &str| config[name].as_u64().unwrap();
    // Two products with their biases.
    let (d, inner) = (number("d_model"), number("encoder_ffn_dim"));
    let expert = 4 * (2 * d * inner + d + inner);
    assert_eq!(page["bytes"]["expert"][0], expert);
    let memory = &page["placements"][0]["memory"];
    assert_eq!(memory["all_experts"], 4 * 8 * expert);
    assert_eq!(memory["resident_experts"][0], 4 * expert);
    let dense = page["bytes"]["dense"].as_u64().unwrap();
    let saved = (28 * expert) as f64 / (dense + 32 * expert) as f64;
    assert_eq!(memory["saved_share"], serde_json::json!([saved, 0.0]));
    let plain = place.study("--trace run.h5 -o t.h5 --slots 1,8 --expert-bytes 1M --policies lifo");
    assert!(plain.contains("4.0 MiB") && plain.contains("87.5 %"), "{plain}");
}

#[test]
fn figures_are_there_and_whole() {
    let Some(place) = translated() else { return };
    let model = bundled("en-fr-de").display().to_string();
    place.study(&format!("--trace run.h5 -o s.h5 --model {model} --figures a/b"));
    for name in ["misses-blocks", "memory-blocks"] {
        let path = |ending: &str| place.path(&format!("a/b/{name}.{ending}"));
        let png = image::open(path("png")).unwrap().into_rgb8();
        assert_eq!(png.dimensions(), (1600, 1000));
        let svg = fs::read_to_string(path("svg")).unwrap();
        let colours = match name {
            // A line with a mark for each of 8 slots, and in the legend.
            "misses-blocks" => &["0072B2", "D55E00", "CC79A7", "009E73", "E69F00", "56B4E9", "000000"][..],
            _ => &["444444", "E69F00", "E1E1E1"],
        };
        for colour in colours {
            let rgb = [0, 2, 4].map(|at| u8::from_str_radix(&colour[at..at + 2], 16).unwrap());
            let dots = png.pixels().filter(|pixel| pixel.0 == rgb).count();
            assert!(dots > 100, "{dots} pixels of #{colour} in {name}.png");
            let marks = svg
                .matches(&format!("<polygon opacity=\"1\" fill=\"#{colour}\""))
                .count();
            assert_eq!(
                marks,
                if name == "misses-blocks" { 9 } else { 0 },
                "#{colour} in {name}.svg"
            );
        }
        let texts = svg_texts(&path("svg"));
        let wanted = match name {
            "misses-blocks" => &["lookahead", "min", "8", "80", "experts loaded / experts used (%)"][..],
            _ => &["dense weights", "experts in slots", "not in memory"],
        };
        for text in wanted {
            assert!(texts.iter().any(|found| found == text), "{text} is not in {texts:?}");
        }
    }
}

/// The texts in an SVG file, every element of which must be closed in turn.
fn svg_texts(path: &Path) -> Vec<String> {
    let svg = fs::read_to_string(path).unwrap();
    let (mut open, mut texts): (Vec<&str>, Vec<String>) = (Vec::new(), Vec::new());
    for part in svg.split('<').skip(1) {
        let (tag, text) = part.split_once('>').expect("a tag ends");
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        let name = tag.split([' ', '/']).find(|name| !name.is_empty()).unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name)),
            (false, false) => open.push(name),
            (false, true) => {}
        }
        if tag.starts_with("text") {
            texts.push(text.trim().replace("&lt;", "<").replace("&amp;", "&"));
        }
    }
    assert!(open.is_empty(), "{open:?} are not closed");
    texts
}
