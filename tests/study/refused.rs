//! What can't be studied, and says so.

use crate::place::{bundled, Place, Start};
use sluicegate::results::{Phase, RoutingLayout, StepCounts};

fn layout(decoder: &[&str]) -> RoutingLayout {
    RoutingLayout {
        encoder_layers: Vec::new(),
        decoder_layers: decoder.iter().map(|name| (*name).to_owned()).collect(),
        experts: 2,
        top_k: 1,
    }
}

fn start(steps: usize, cells: usize) -> Vec<Start> {
    let step = |step: usize| StepCounts {
        attempt: 0,
        group: 0,
        step: step as u64,
        phase: Phase::Decode,
        counts: vec![1; cells],
    };
    vec![Start {
        ranks: 1,
        steps: (0..steps).map(step).collect(),
    }]
}

#[test]
fn traces_that_are_none_are_refused() {
    let place = Place::new();
    place.run("plain.h5", None, start(0, 0));
    place.run("dense.h5", Some(&layout(&[])), start(0, 0));
    place.run("empty.h5", Some(&layout(&["d1"])), start(0, 0));
    place.write("text.h5", "no HDF5");
    std::fs::create_dir(place.path("half.h5.parts")).unwrap();
    drop(hdf5::File::create(place.path("other.h5")).unwrap());
    for (trace, parts) in [
        ("plain.h5", &["plain.h5 has no /routing", "--routing counts"][..]),
        ("dense.h5", &["no MoE layers"]),
        ("empty.h5", &["trace is empty"]),
        ("text.h5", &["--trace", "not an HDF5 file"]),
        ("other.h5", &["not a result of sluice"]),
        ("half.h5", &["half.h5.parts", "not finished"]),
        ("none.h5", &["none.h5"]),
    ] {
        place.refused(&format!("--trace {trace} -o s.h5"), parts);
    }
}

#[test]
fn options_that_do_not_belong_to_the_trace_are_refused() {
    let place = Place::new();
    place.run("run.h5", Some(&layout(&["d1"])), start(3, 2));
    place.write("two.json", r#"{"ranks": 2, "layers": {"d1": [0, 1]}}"#);
    place.write("wrong.json", r#"{"ranks": 2, "layers": {"d1": [0, 2]}}"#);
    let model = bundled("en-fr-de").display().to_string();
    for (line, parts) in [
        ("-o run.h5 --overwrite", &["same file as --trace"][..]),
        ("-o s.h5 --slots 3,4", &["--slots", "2 experts"]),
        ("-o s.h5 --ranks 3 --placement two.json", &["--ranks 3", "is for 2"]),
        (
            "-o s.h5 --placement wrong.json",
            &["wrong.json", "expert 1", "rank 2 of 2"],
        ),
        ("-o s.h5 --placement none.json", &["none.json"]),
        ("-o nowhere/s.h5", &["mkdir"]),
        ("-o s.h5 --figures two.json", &["--figures", "is a file"]),
        (
            &format!("-o s.h5 --model {model}"),
            &["--model", "checkpoint of the run"],
        ),
    ] {
        place.refused(&format!("--trace run.h5 {line}"), parts);
    }
}

#[test]
fn what_is_there_is_not_replaced_unasked() {
    let place = Place::new();
    place.run("run.h5", Some(&layout(&["d1"])), start(3, 2));
    place.run("other.h5", Some(&layout(&["d1"])), start(3, 2));
    place.study("--trace run.h5 -o s.h5");
    place.refused("--trace run.h5 -o s.h5", &["there already", "--overwrite"]);
    place.study("--trace run.h5 -o s.h5 --overwrite");
    place.refused(
        "--trace run.h5 -o other.h5 --overwrite",
        &["results of a run (sluice translate)"],
    );
    place.refused("--trace s.h5 -o t.h5", &["output of sluice study"]);
}
