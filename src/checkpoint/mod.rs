//! Hugging Face model folders: `config.json`, safetensors files (one or sharded with an index), generation defaults.
//!
//! Opening a folder reads headers only and checks them against the files' sizes, so that a torn or foreign file is
//! refused before any work. Weights are read tensor by tensor with `pread`, each rank asking for what it owns (of a
//! tensor that holds all experts, its part), and NaN is looked for on the way. FP8 and MXFP4 weights are read as the
//! numbers that they stand for.
//!
//! ```no_run
//! use sluicegate::checkpoint::Checkpoint;
//! # fn main() -> anyhow::Result<()> {
//! let checkpoint = Checkpoint::open("inputs/en-fr-de".as_ref())?;
//! checkpoint.expect("model.shared.weight", &[8256, 256])?;
//! let embedding = checkpoint.read("model.shared.weight")?.to_f32();
//! assert_eq!(embedding.len(), 8256 * 256);
//! # Ok(())
//! # }
//! ```

mod fields;
mod fingerprint;
mod folder;
mod fp8;
pub mod generation;
mod header;
mod mxfp4;
pub mod packed;
mod reader;
mod tensor;

pub use fields::{read_json, Fields};
pub use header::{Dtype, TensorInfo};
pub use reader::{Checkpoint, READ_BLOCK};
pub use tensor::{StoredDtype, TensorData};
