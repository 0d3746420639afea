//! Ranks of one job that were started with command lines, or checkpoints, of their own.

use crate::place::{bundled, read, Place};
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of the bundled language model in a folder of its own.
fn copy(place: &Place, name: &str) -> PathBuf {
    let (from, to) = (bundled("lm"), place.path(name));
    fs::create_dir(&to).expect("a folder");
    for file in fs::read_dir(from).expect("a folder") {
        let file = file.expect("a file");
        fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
    to
}

#[test]
fn ranks_that_were_not_started_alike_are_refused_before_work() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Some words.\nAnd some more of them.\n");
    let other = copy(&place, "other");
    let weights = other.join("model.safetensors");
    let mut bytes = fs::read(&weights).expect("weights");
    let last = bytes.len() - 4;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).expect("written");

    let lm = bundled("lm");
    let of = |job: &str, model: &Path, flags: &str| place.job_of(job, model, &input, "out.h5", flags);
    let plain = || of("score", &lm, "");
    let few = "--max-new-tokens 8";
    for (first, second, words) in [
        (plain(), of("score", &other, ""), &["checkpoint: \""][..]),
        (
            plain(),
            of("score", &lm, "--window 10"),
            &["window: not set there, 10 now"],
        ),
        (plain(), of("score", &lm, "--dtype int8"), &["dtype: "]),
        (
            plain(),
            of("score", &lm, "--activation-memory 1M"),
            &["activation_memory: "],
        ),
        (
            plain(),
            of("score", &lm, "--expert-parallel 1"),
            &["expert_parallel: not set there, 1 now"],
        ),
        (
            of("score", &lm, "--expert-slots 4 --cache-dir a-cache"),
            of("score", &lm, "--expert-slots 4"),
            &["cache_dir: \"given\" there, not set now"],
        ),
        (
            plain(),
            of("score", &lm, "--expert-slots 4"),
            &["expert_slots: not set there, 4 now"],
        ),
        (
            plain(),
            of("generate", &lm, few),
            &["job: \"score\" there, \"generate\" now"],
        ),
        (
            of("generate", &lm, few),
            plain(),
            &["job: \"generate\" there, \"score\" now"],
        ),
        (
            of("generate", &lm, few),
            of("generate", &lm, "--max-new-tokens 9 --temperature 1"),
            &["max_new_tokens: 8 there, 9 now", "temperature: not set there, 1 now"],
        ),
    ] {
        let end = place.mixed(&[(1, first), (1, second)]);
        end.refused(words);
        end.says(&["rank 1: on ", "was not started as rank 0 was on "]);
        assert!(!place.left("out.h5"), "something is left behind: {words:?}");
    }
    let end = place.mixed(&[(2, plain()), (1, of("score", &lm, "--top 2"))]);
    end.refused(&["rank 2: ", "top: 0 there, 2 now"]);
}

#[test]
fn ranks_may_have_copies_of_the_checkpoint_of_their_own() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "Some words.\nAnd some more of them.\n");
    let (here, lm) = (copy(&place, "here"), bundled("lm"));
    let of = |model: &Path, out: &str| place.job_of("score", model, &input, out, "");
    place.mixed(&[(1, of(&lm, "both.h5")), (1, of(&here, "both.h5"))]).ok();
    place.start(2, &[], None, &of(&lm, "one.h5")).ok();
    assert_eq!(read(&place.path("both.h5")), read(&place.path("one.h5")));
}
