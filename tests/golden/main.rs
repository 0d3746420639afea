//! The engine against the reference's outputs, on ranks that are threads of this process: ids, scores, log-probabilities
//! and routes of the tiny checkpoints (transformers 4.57.6 for nllb-moe, else 5.23), and bit-equality however the work is shared.
//!
//! They need the folder of reference checkpoints: SLUICE_SHARED, or `../shared` beside the checkout.

mod decoder;
mod forced;
mod generate;
mod score;
mod shards;
mod stored;

use serde_json::Value;
use sluicegate::checkpoint::read_json;
use sluicegate::device::{Cpu, Dtype};
use sluicegate::model::{self, Architecture, Loading, Model};
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

    /// A special token of the reference's run.
    fn token(&self, name: &str) -> Option<u32> {
        self.json["info"][name].as_u64().map(|id| id as u32)
    }

    fn architecture(&self) -> Box<dyn Architecture> {
        model::open(&self.dir).expect("a sound checkpoint").1
    }

    /// The model as rank `rank` of `ranks` holds it.
    fn load(&self, rank: usize, ranks: usize) -> Box<dyn Model> {
        self.load_as(Dtype::F32, rank, ranks)
    }

    /// The same in another type.
    fn load_as(&self, dtype: Dtype, rank: usize, ranks: usize) -> Box<dyn Model> {
        load(&self.dir, dtype, rank, ranks)
    }
}

/// The model of a folder as rank `rank` of `ranks` holds it.
fn load(dir: &Path, dtype: Dtype, rank: usize, ranks: usize) -> Box<dyn Model> {
    let (checkpoint, architecture) = model::open(dir).expect("a sound checkpoint");
    let loading = Loading {
        checkpoint: &checkpoint,
        dtype,
        threads: 1,
        rank,
        ranks,
        buffered: false,
        progress: &mut |_, _| (),
    };
    architecture.load(loading).expect("weights")
}

/// Whether the reference dropped a token of the item in one of the routers whose names begin so: its first expert had no
/// room left, and counts as weight 0.
fn dropped(item: &Value, routers: &str) -> bool {
    let all = item["routing"].as_object().expect("routing").iter();
    let mut weights = all
        .filter(|(name, _)| name.starts_with(routers))
        .flat_map(|(_, r)| r["w"].as_array().expect("weights"));
    weights.any(|token| floats(token)[0] == 0.0)
}

/// How far the reference's float32 log-probabilities are from its own in float64, where that is above the bound
/// (transformers 5.23, eager attention and experts).
const REFERENCE_OFF: [(&str, f64); 2] = [("qwen2_moe-s2-step2-tied", 4.0e-4), ("granitemoe-s1", 1.7e-4)];

/// The largest difference of a log-probability of checkpoint `name` from the reference's. Where the reference itself is off
/// by more than rounding usually does, float32 may be as far off on the other side.
fn bound(name: &str) -> f64 {
    let off = REFERENCE_OFF.iter().find(|(of, _)| *of == name);
    1e-4 + off.map_or(0.0, |(_, off)| 2.0 * off)
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
