//! The tier below the slots: where an expert's weights are read from.

use crate::device::{Layout, Linear};
use crate::moe::layer::Expert;
use anyhow::Result;

/// Where experts are read from, by any thread.
pub trait ExpertSource: Send + Sync {
    /// What both products of an expert of MoE layer `layer` are packed as, up and down.
    fn layouts(&self, layer: usize) -> [Layout; 2];
    /// Reads expert `expert` (among all of the model) of MoE layer `layer` into memory that has its layouts; see
    /// [`read_into`]. Bytes that were read.
    ///
    /// # Errors
    /// When it cannot be read, or holds a NaN: names file and place.
    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64>;
    /// Bytes of memory that a read takes besides the expert's own.
    fn staging(&self) -> u64;
}

/// Memory for any `n` experts of the `layers` layers, one at a time each.
///
/// # Errors
/// When there is too little.
pub fn rooms(source: &dyn ExpertSource, layers: usize, n: usize) -> Result<Vec<Expert>> {
    let mut rooms = Linear::rooms(&largest(source, layers).repeat(n))?.into_iter();
    let mut experts = Vec::with_capacity(n);
    while let (Some(up), Some(down)) = (rooms.next(), rooms.next()) {
        experts.push(Expert { up, down });
    }
    Ok(experts)
}

/// Reads an expert into memory from [`rooms`], whatever it held before.
///
/// # Errors
/// As [`ExpertSource::read`].
pub fn read_into(source: &dyn ExpertSource, layer: usize, expert: usize, room: &mut Expert) -> Result<u64> {
    let [up, down] = source.layouts(layer);
    room.up.reshape(up);
    room.down.reshape(down);
    source.read(layer, expert, room)
}

/// Bytes of the largest first and second product of an expert of the `layers` layers.
fn largest(source: &dyn ExpertSource, layers: usize) -> [usize; 2] {
    [0, 1].map(|i| (0..layers).map(|l| source.layouts(l)[i].bytes()).max().unwrap_or(0))
}

/// Bytes of a slot for any expert of the `layers` layers: both products, each begun where a disk can be read to.
pub fn slot_bytes(source: &dyn ExpertSource, layers: usize) -> u64 {
    let sizes = largest(source, layers).map(|bytes| bytes.next_multiple_of(4096) as u64);
    sizes.iter().sum()
}

/// Bytes that an expert with these layouts takes.
pub fn expert_bytes(layouts: [Layout; 2]) -> usize {
    layouts.iter().map(Layout::bytes).sum()
}

/// Reads an expert into memory of its own.
///
/// # Errors
/// As [`ExpertSource::read`].
pub fn resident(source: &dyn ExpertSource, layer: usize, expert: usize) -> Result<Expert> {
    let [up, down] = source.layouts(layer).map(Linear::zeros);
    let mut read = Expert { up, down };
    source.read(layer, expert, &mut read)?;
    Ok(read)
}
