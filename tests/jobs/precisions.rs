//! Precisions: in int8 nothing depends on how the work was shared; in int8 and float32 nothing depends on the processor.

use crate::datasets::{assert_equal, invariant, Datasets};
use crate::place::{bundled, Place};
use sluicegate::device::Isa;
use sluicegate::results::Results;
use std::fs;

const FLAGS: &str = "--source eng_Latn --target fra_Latn,deu_Latn --scores --routing tokens --max-new-tokens 24";

/// Translates 16 lines; `isa` is empty for the best instruction set.
fn run(place: &Place, name: &str, ranks: usize, isa: &str, flags: &str) -> Datasets {
    let lines = fs::read_to_string(bundled("demo/demo.eng")).expect("demo.eng");
    let input = place.write("in.txt", lines.lines().take(16).collect::<Vec<_>>().join("\n"));
    let out = format!("{name}.h5");
    let arguments = place.job(&bundled("en-fr-de"), &input, &out, &format!("{FLAGS} {flags}"));
    place.start(ranks, &[("SLUICE_ISA", isa)], None, &arguments).ok();
    invariant(&place.path(&out))
}

#[test]
fn int8_gives_the_same_bits_however_it_is_shared() {
    let Some(place) = Place::new() else { return };
    let one = run(&place, "one", 1, "", "--dtype int8");
    let results = Results::open(&place.path("one.h5")).expect("results");
    assert_eq!(results.identity().fields["dtype"], "int8");
    for (i, (ranks, flags)) in [
        (1, "--batch-tokens 1"),
        (2, "--batch-tokens 60"),
        (3, "--threads 2"),
        (4, "--expert-parallel 2 --batch-tokens 60"),
        (2, "--expert-parallel 1"),
    ]
    .into_iter()
    .enumerate()
    {
        let found = run(
            &place,
            &format!("shared{i}"),
            ranks,
            "",
            &format!("--dtype int8 {flags}"),
        );
        assert_equal(&found, &one, &format!("{ranks} ranks {flags}"));
    }
    // It is a precision of its own.
    assert_ne!(
        run(&place, "bf16", 1, "", "--dtype bf16")["/scores/logprobs"],
        one["/scores/logprobs"]
    );
}

#[test]
fn int8_and_float32_give_the_same_bits_on_every_instruction_set() {
    let Some(place) = Place::new() else { return };
    for dtype in ["int8", "f32"] {
        let flags = format!("--dtype {dtype} --threads 2");
        let best = run(&place, dtype, 1, "", &flags);
        for isa in Isa::available() {
            let found = run(&place, &format!("{dtype}-{}", isa.name()), 1, isa.name(), &flags);
            assert_equal(&found, &best, &format!("{dtype} on {}", isa.name()));
        }
    }
}
