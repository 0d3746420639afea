//! The engine against the reference's outputs, on ranks that are threads of this process: ids, scores, log-probabilities
//! and routes of the tiny checkpoints (transformers 4.57.6), and bit-equality however the work is shared.
//!
//! They need the folder of reference checkpoints: SLUICE_SHARED, or `../shared` beside the checkout.

mod forced;
mod generate;
mod shards;

use serde_json::Value;
use sluicegate::checkpoint::read_json;
use sluicegate::device::{Cpu, Dtype};
use sluicegate::model::{self, Loading, Model};
use std::path::{Path, PathBuf};

/// A reference checkpoint with what the reference made of it; nothing (and a line saying so) where it is not there.
struct Golden {
    dir: PathBuf,
    json: Value,
}

impl Golden {
    fn open(name: &str) -> Option<Golden> {
        let shared = std::env::var_os("SLUICE_SHARED").map(PathBuf::from);
        let shared = shared.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"));
        let dir = shared.join("oracle/ckpt").join(name);
        if !dir.join("golden.json").exists() {
            eprintln!("skipped: {} is not there", dir.display());
            return None;
        }
        let json = read_json(&dir, "golden.json").expect("golden.json");
        Some(Golden { dir, json })
    }

    fn items(&self) -> &[Value] {
        self.json["items"].as_array().expect("items")
    }

    fn forced_bos(&self) -> u32 {
        self.json["info"]["forced_bos_token_id"].as_u64().expect("forced bos") as u32
    }

    /// The model as rank `rank` of `ranks` holds it.
    fn load(&self, rank: usize, ranks: usize) -> Box<dyn Model> {
        let (checkpoint, architecture) = model::open(&self.dir).expect("a sound checkpoint");
        let loading = Loading {
            checkpoint: &checkpoint,
            dtype: Dtype::F32,
            threads: 1,
            rank,
            ranks,
            progress: &mut |_, _| (),
        };
        architecture.load(loading).expect("weights")
    }
}

fn ids(value: &Value) -> Vec<u32> {
    let list = value.as_array().unwrap_or_else(|| panic!("ids, found {value}"));
    list.iter().map(|v| v.as_u64().expect("an id") as u32).collect()
}

fn floats(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .expect("numbers")
        .iter()
        .map(|v| v.as_f64().expect("a number"))
        .collect()
}

fn device(threads: usize) -> Cpu {
    Cpu::new(threads).expect("a device")
}
