//! Which tensors a checkpoint must hold, of what shape, and to whom each belongs.

use std::collections::HashSet;

use anyhow::{bail, ensure, Result};

use crate::checkpoint::Checkpoint;

/// Missing tensors that an error names; the rest it counts.
const NAMED: usize = 4;

/// Who needs a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// Every rank.
    Dense,
    /// The ranks that hold this expert.
    Expert {
        /// Index among the MoE layers, encoder first.
        layer: usize,
        /// Index among the layer's experts.
        expert: usize,
    },
    /// The ranks that hold any expert of a layer: all are in this one tensor, expert after expert.
    Experts {
        /// Index among the MoE layers, encoder first.
        layer: usize,
    },
}

/// One tensor that must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Name in the checkpoint.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Who needs it.
    pub owner: Owner,
}

impl Expected {
    /// How many elements it has.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Compares a checkpoint with its configuration, by headers alone.
///
/// Copies of an encoder-decoder's embedding (`lm_head`, `embed_tokens`), stored sinusoids and whatever else lies outside
/// the layers are passed over.
///
/// # Errors
/// If a tensor is missing or of another shape or type, or if a layer holds one that the configuration has no place
/// for (an expert too many, a router bias, a layer too many): with such weights the model meant is another.
pub fn check(checkpoint: &Checkpoint, expected: &[Expected], surplus: impl Fn(&str) -> Option<String>) -> Result<()> {
    let missing: Vec<&str> = expected
        .iter()
        .map(|tensor| tensor.name.as_str())
        .filter(|name| checkpoint.info(name).is_none() && !checkpoint.is_mxfp4(name))
        .collect();
    if let Some(first) = missing.first() {
        let named: Vec<String> = missing.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
        let more = missing.len() - named.len();
        bail!(
            "{}: {} of {} tensors are missing: {}{}; the checkpoint is incomplete, or config.json is another model's",
            checkpoint.file_of(first).display(),
            missing.len(),
            expected.len(),
            named.join(", "),
            if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            }
        );
    }
    for tensor in expected {
        match tensor.shape[..] {
            [experts, outputs, inputs] if checkpoint.is_mxfp4(&tensor.name) => {
                checkpoint.expect_mxfp4(&tensor.name, [experts, outputs, inputs])?;
            }
            _ => checkpoint.expect(&tensor.name, &tensor.shape)?,
        }
    }
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let quantised = |name: &str| {
        let mut ends = ["_scale_inv", "_blocks", "_scales"].into_iter();
        ends.any(|end| name.strip_suffix(end).is_some_and(|tensor| known.contains(tensor)))
    };
    for name in checkpoint
        .names()
        .filter(|name| !known.contains(name) && !quantised(name))
    {
        let surplus = surplus(name);
        ensure!(
            surplus.is_none(),
            "{}: tensor `{name}` has no place in this model: {}; config.json and weights are not of one model",
            checkpoint.file_of(name).display(),
            surplus.unwrap_or_default()
        );
    }
    Ok(())
}
