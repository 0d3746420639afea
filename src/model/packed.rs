//! Experts from a file that holds them as the device computes with them.

use crate::checkpoint::packed::PackedFile;
use crate::device::Layout;
use crate::moe::buffer::source::{expert_bytes, resident, ExpertSource};
use crate::moe::layer::Expert;
use anyhow::Result;
use std::sync::Arc;

/// Records of an expert: both its products.
pub const RECORDS: usize = 2;

/// All experts of a model, a record for each product: `[layers, experts, 2]`.
pub struct PackedExperts {
    file: PackedFile,
    source: Arc<dyn ExpertSource>,
    experts: usize,
}

impl PackedExperts {
    /// The experts in `file`, which was made with [`lengths`] of the same `source`; each layer has `experts`.
    pub fn new(file: PackedFile, source: Arc<dyn ExpertSource>, experts: usize) -> PackedExperts {
        PackedExperts { file, source, experts }
    }
}

/// Bytes of each record of a file for `layers` layers of `experts` experts.
pub fn lengths(source: &dyn ExpertSource, layers: usize, experts: usize) -> Vec<usize> {
    let of = |layer| source.layouts(layer).map(|l| l.bytes()).repeat(experts);
    (0..layers).flat_map(of).collect()
}

/// Packs records, of which those of one expert come one after another.
pub struct Packer<'a> {
    source: &'a dyn ExpertSource,
    experts: usize,
    held: Option<(usize, Expert)>,
}

impl<'a> Packer<'a> {
    /// Packs what `source` reads; each layer has `experts`.
    pub fn new(source: &'a dyn ExpertSource, experts: usize) -> Packer<'a> {
        Packer {
            source,
            experts,
            held: None,
        }
    }

    /// Writes record `record` into `into`.
    ///
    /// # Errors
    /// As [`ExpertSource::read`].
    pub fn pack(&mut self, record: usize, into: &mut [u8]) -> Result<()> {
        let number = record / RECORDS;
        let expert = match self.held.take() {
            Some((held, expert)) if held == number => expert,
            _ => resident(self.source, number / self.experts, number % self.experts)?,
        };
        let part = [&expert.up, &expert.down][record % RECORDS].bytes_of();
        into[..part.len()].copy_from_slice(part);
        self.held = Some((number, expert));
        Ok(())
    }
}

impl ExpertSource for PackedExperts {
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        self.source.layouts(layer)
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let first = (layer * self.experts + expert) * RECORDS;
        self.file.read(first, into.up.bytes_mut())?;
        self.file.read(first + 1, into.down.bytes_mut())?;
        Ok(expert_bytes(self.layouts(layer)) as u64)
    }

    fn staging(&self) -> u64 {
        0
    }
}
