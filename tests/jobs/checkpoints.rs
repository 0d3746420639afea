//! Damaged checkpoints: one error, which names tensor and file, exit code 2, nobody hangs, nothing is left.

use crate::place::Place;
use crate::small_model::{shard, SmallModel, LAST_EXPERT, VICTIM};
use std::fs;

const FRENCH: &str = "--source eng_Latn --target fra_Latn --max-new-tokens 4";

#[test]
fn damage_is_refused_before_work() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "One line.\n");
    let sound = || SmallModel::new(4);

    let torn = sound().save_sharded(&place, "torn");
    let path = torn.join(shard(2));
    let bytes = fs::read(&path).expect("a shard");
    fs::write(&path, &bytes[..bytes.len() - 5]).expect("written");
    place.refused(2, &torn, &input, FRENCH, &[&shard(2)]);

    let absent = sound().save_sharded(&place, "absent");
    fs::remove_file(absent.join(shard(2))).expect("removed");
    place.refused(2, &absent, &input, FRENCH, &[&shard(2)]);

    let mut model = sound();
    model.tensors.retain(|name, _| !name.starts_with(LAST_EXPERT));
    let dir = model.save(&place, "incomplete");
    place.refused(2, &dir, &input, FRENCH, &[LAST_EXPERT, "incomplete"]);

    let mut model = sound();
    model.tensors.get_mut(VICTIM).expect("a tensor").0.reverse();
    let dir = model.save(&place, "turned");
    place.refused(
        2,
        &dir,
        &input,
        FRENCH,
        &[VICTIM, "model.safetensors", "[16, 24]", "[24, 16]"],
    );

    let pointer = sound().save(&place, "pointer");
    let text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n";
    fs::write(pointer.join("model.safetensors"), text).expect("written");
    place.refused(2, &pointer, &input, FRENCH, &["model.safetensors", "git lfs pull"]);

    let length = sound().save(&place, "length");
    let path = length.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("a file");
    bytes[..8].copy_from_slice(&(1u64 << 63).to_le_bytes());
    fs::write(&path, bytes).expect("written");
    place.refused(2, &length, &input, FRENCH, &["model.safetensors"]);

    place.refused(2, &place.path("nowhere"), &input, FRENCH, &["nowhere"]);

    let outside = sound().save(&place, "outside");
    let path = outside.join("generation_config.json");
    fs::write(path, "{\"decoder_start_token_id\": 99999999, \"eos_token_id\": 2}").expect("written");
    place.refused(2, &outside, &input, FRENCH, &["generation_config.json", "99999999"]);

    let other = sound().save(&place, "other");
    let path = other.join("tokenizer.json");
    let tokenizer = fs::read_to_string(&path).expect("a tokenizer");
    fs::write(path, tokenizer.replacen("\"▁analys\": 8051", "\"▁analys\": 50000", 1)).expect("written");
    place.refused(2, &other, &input, FRENCH, &["tokenizer.json", "50000", "vocab_size"]);
}

/// Only the last rank reads that expert, so it alone finds the NaN; with two groups, one rank of each does.
#[test]
fn a_nan_in_an_expert_is_found_by_the_rank_that_owns_it() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "One line.\nAnother one.\n");
    let mut model = SmallModel::new(4);
    model.tensors.get_mut(VICTIM).expect("a tensor").1[17] = f32::NAN;
    let dir = model.save(&place, "nan");
    for (ranks, flags) in [(1, ""), (2, ""), (4, "--expert-parallel 2"), (6, "")] {
        let end = place.translate(ranks, &dir, &input, "out.h5", &format!("{FRENCH} {flags}"));
        end.refused(&[VICTIM, "model.safetensors", "NaN"]);
        assert!(!place.path("out.h5").exists(), "{ranks} ranks {flags}");
        fs::remove_dir_all(place.path("out.h5.parts")).ok();
    }
}

#[test]
fn a_checkpoint_that_lies_in_shards_gives_the_same_rows() {
    let Some(place) = Place::new() else { return };
    let input = place.write("in.txt", "One line.\nAnother one.\n");
    let whole = place.rows(2, &SmallModel::new(4).save(&place, "whole"), &input, "whole.h5", FRENCH);
    let shards = place.rows(
        2,
        &SmallModel::new(4).save_sharded(&place, "shards"),
        &input,
        "shards.h5",
        FRENCH,
    );
    assert_eq!(whole, shards);
}
