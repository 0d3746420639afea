//! Folders whose files are missing, torn, damaged or something else.

use std::fs;

use serde_json::{json, Value};
use sluicegate::checkpoint::Checkpoint;

use crate::small_model::{inspect, refused, shard_name, shard_of, Model, INDEX, SINGLE, VICTIM};

#[test]
fn no_checkpoint_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let inside = |name: &str| dir.path().join(name);
    refused(&inside("nowhere"), &["nowhere", "no such model folder"]);
    refused(dir.path(), &[SINGLE, INDEX, "no Hugging Face model folder"]);
    fs::write(inside("config.json"), "{}").unwrap();
    refused(dir.path(), &[SINGLE, "weights are missing"]);
    fs::write(inside("pytorch_model.bin"), "x").unwrap();
    refused(dir.path(), &["pytorch_model.bin", "convert"]);
    refused(&inside("config.json"), &["config.json", "a folder is needed"]);
    fs::create_dir(inside(SINGLE)).unwrap();
    refused(dir.path(), &[SINGLE, "not a file"]);
}

#[test]
fn a_file_that_is_something_else() {
    let dir = Model::new().save();
    let cases: [(&[u8], &str); 8] = [
        (b"", "0 bytes"),
        (b"\x01\x02\x03", "3 bytes"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:77\nsize 5\n",
            "git lfs pull",
        ),
        (b"<!DOCTYPE html><html><title>401</title></html>", "web page"),
        (b"PK\x03\x04\x00\x00\x08\x08\x00\x00archive", "pickle"),
        (&[255; 64], "18446744073709551615"),
        (
            &[0, 0, 0, 0, 0, 0, 0, 128, b'{', b'}'],
            "header of 9223372036854775808 bytes",
        ),
        (&[0; 8], "header is damaged"),
    ];
    for (bytes, word) in cases {
        fs::write(dir.path().join(SINGLE), bytes).unwrap();
        refused(dir.path(), &[SINGLE, word]);
    }
    fs::write(dir.path().join(SINGLE), Model::new().bytes(|_| false)).unwrap();
    refused(dir.path(), &[SINGLE, "no tensor"]);
}

#[test]
fn a_header_of_the_length_of_a_pickles_magic_is_no_pickle() {
    let dir = tempfile::tempdir().unwrap();
    let mut json = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#.to_string();
    json += &" ".repeat(0x280 - json.len());
    let file = [
        &(json.len() as u64).to_le_bytes()[..],
        json.as_bytes(),
        &2.5f32.to_le_bytes(),
    ]
    .concat();
    fs::write(dir.path().join(SINGLE), file).unwrap();
    assert_eq!(Checkpoint::open(dir.path()).unwrap().read_f32("a").unwrap(), [2.5]);
}

#[test]
fn a_torn_file() {
    let model = Model::new();
    let whole = model.bytes(|_| true);
    let header = 8 + u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let dir = model.save();
    let write = |len: usize| fs::write(dir.path().join(SINGLE), &whole[..len]).unwrap();
    write(whole.len() - 5);
    refused(dir.path(), &[SINGLE, "torn", "5 bytes are missing", "tensor `model."]);
    write(header);
    refused(dir.path(), &[SINGLE, "torn", "tensor `model."]);
    write(header - 1);
    refused(dir.path(), &[SINGLE, "torn", "header"]);
    write(8);
    refused(dir.path(), &[SINGLE, "torn", "header"]);
    // Torn at every length whatever: refused, never a panic.
    for len in (0..whole.len()).step_by(97) {
        write(len);
        refused(dir.path(), &[SINGLE]);
    }
    fs::write(dir.path().join(SINGLE), [&whole[..], b"x"].concat()).unwrap();
    refused(dir.path(), &[SINGLE, "1 bytes follow the last tensor (`model."]);
}

#[test]
fn a_damaged_header() {
    let model = Model::new();
    let whole = model.bytes(|_| true);
    let length = u64::from_le_bytes(*whole.first_chunk().unwrap()) as usize;
    let (json, data) = (
        std::str::from_utf8(&whole[8..8 + length]).unwrap().trim_end(),
        &whole[8 + length..],
    );
    let dir = model.save();
    let write = |json: &str| {
        let file = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), data].concat();
        fs::write(dir.path().join(SINGLE), file).unwrap();
    };
    write(json);
    inspect(dir.path()).unwrap();
    let victim: Value = serde_json::from_str::<Value>(json).unwrap()[VICTIM].clone();
    let with = |key: &str, value: Value| {
        let mut header: Value = serde_json::from_str(json).unwrap();
        header[VICTIM][key] = value;
        header.to_string()
    };
    let (begin, end) = (
        victim["data_offsets"][0].as_u64().unwrap(),
        victim["data_offsets"][1].as_u64().unwrap(),
    );
    write(&with("data_offsets", json!([begin - 4, end - 4])));
    refused(dir.path(), &[SINGLE, VICTIM, "overlap"]);
    write(&with("data_offsets", json!([begin + (1u64 << 40), end + (1u64 << 40)])));
    refused(dir.path(), &[SINGLE]);
    write(&with("data_offsets", json!([end, begin])));
    refused(dir.path(), &[SINGLE, VICTIM]);
    write(&with("shape", json!([12, 9])));
    refused(dir.path(), &[SINGLE, VICTIM, "[12, 9]"]);
    write(&with("shape", json!([u64::MAX, u64::MAX])));
    refused(dir.path(), &[SINGLE, VICTIM, "larger than any file"]);
    write(&with("dtype", json!("BF16")));
    refused(dir.path(), &[SINGLE, VICTIM, "bfloat16"]);
    write(&with("dtype", json!(4)));
    refused(dir.path(), &[SINGLE, VICTIM, "line 1 column"]);
    write(&json[..json.len() - 2]);
    refused(dir.path(), &[SINGLE, "header is damaged", "line 1 column"]);
    write(&json.replace("expert_2.fc1.weight", "expert_1.fc1.weight"));
    refused(dir.path(), &[SINGLE, "expert_1.fc1.weight", "listed twice"]);
}

#[test]
fn shards_and_their_index() {
    let model = Model::new();
    let dir = model.save_sharded();
    let second = dir.path().join(shard_name(2));
    let bytes = fs::read(&second).unwrap();
    let restore = || {
        fs::write(&second, &bytes).unwrap();
        model.index(dir.path(), |name| shard_name(shard_of(name)));
        inspect(dir.path()).unwrap();
    };
    restore();

    fs::remove_file(&second).unwrap();
    refused(
        dir.path(),
        &[INDEX, "1 of 2 shards are missing", &shard_name(2), "model.decoder."],
    );
    restore();

    fs::write(&second, &bytes[..bytes.len() - 100]).unwrap();
    refused(
        dir.path(),
        &[&shard_name(2), "100 bytes are missing", "tensor `model.decoder"],
    );
    restore();

    // The victim belongs to the encoder, which is in the first shard.
    model.index(dir.path(), |name| {
        shard_name(if name == VICTIM { 2 } else { shard_of(name) })
    });
    refused(
        dir.path(),
        &[VICTIM, &shard_name(1), &shard_name(2), "not in this shard"],
    );
    restore();

    fs::write(&second, model.bytes(|name| shard_of(name) == 2 || name == VICTIM)).unwrap();
    refused(dir.path(), &[VICTIM, &shard_name(1), &shard_name(2)]);
    restore();

    fs::write(
        &second,
        model.bytes(|name| shard_of(name) == 2 && !name.ends_with("0.ffn.fc1.bias")),
    )
    .unwrap();
    refused(
        dir.path(),
        &["model.decoder.layers.0.ffn.fc1.bias", &shard_name(2), "in none"],
    );
    restore();

    model.index(dir.path(), |_| "../model.safetensors".into());
    refused(dir.path(), &[INDEX, "outside the model folder", "tensor `model."]);
    fs::write(dir.path().join(INDEX), "{\"weight_map\":\n {").unwrap();
    refused(dir.path(), &[INDEX, "line 2 column"]);
    fs::write(dir.path().join(INDEX), "{}").unwrap();
    refused(dir.path(), &[INDEX, "weight_map"]);
    fs::write(dir.path().join(INDEX), "version https://git-lfs.github.com/spec/v1\n").unwrap();
    refused(dir.path(), &[INDEX, "git lfs pull"]);
}
