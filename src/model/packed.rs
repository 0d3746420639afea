//! Experts from a file that holds them as the device computes with them.

use crate::checkpoint::packed::{padded, PackedFile};
use crate::device::Layout;
use crate::moe::buffer::source::{expert_bytes, read_into, rooms, ExpertSource};
use crate::moe::layer::Expert;
use anyhow::Result;
use std::sync::Arc;

/// All experts of a model, a record each, `[layers, experts]`: its first product, padded so that the second begins where a
/// read past the page cache can, then that.
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
    let of = |layer| {
        let [up, down] = source.layouts(layer);
        vec![padded(up.bytes()) + down.bytes(); experts]
    };
    (0..layers).flat_map(of).collect()
}

/// Packs records of such a file, one after the other in the same memory.
pub struct Packer<'a> {
    source: &'a dyn ExpertSource,
    experts: usize,
    room: Expert,
}

impl Packer<'_> {
    /// For a file with these [`lengths`].
    ///
    /// # Errors
    /// When there is too little memory.
    pub fn new(source: &dyn ExpertSource, layers: usize, experts: usize) -> Result<Packer<'_>> {
        Ok(Packer {
            source,
            experts,
            room: rooms(source, layers, 1)?.swap_remove(0),
        })
    }

    /// Writes record `record` into all of `into`.
    ///
    /// # Errors
    /// As [`ExpertSource::read`].
    pub fn pack(&mut self, record: usize, into: &mut [u8]) -> Result<()> {
        let room = &mut self.room;
        read_into(self.source, record / self.experts, record % self.experts, room)?;
        let (up, down) = (room.up.bytes_of(), room.down.bytes_of());
        let (first, second) = into.split_at_mut(padded(up.len()));
        first[..up.len()].copy_from_slice(up);
        first[up.len()..].fill(0);
        second.copy_from_slice(down);
        Ok(())
    }
}

impl ExpertSource for PackedExperts {
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        self.source.layouts(layer)
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let mut parts = [into.up.bytes_mut(), into.down.bytes_mut()];
        self.file.read_parts(layer * self.experts + expert, &mut parts)?;
        Ok(expert_bytes(self.layouts(layer)) as u64)
    }

    fn staging(&self) -> u64 {
        0
    }
}

#[cfg(test)]
mod tests {
    use crate::device::{Dtype, Linear, Part, Source};

    /// Files are taken for what they are by [`crate::checkpoint::packed::LAYOUT`] alone: where these differ, raise it.
    #[test]
    fn the_layout_of_packed_weights_is_the_one_of_its_number() {
        let values: Vec<f32> = (0..37 * 21).map(|i| (i * 7919 % 1000) as f32 * 0.01 - 5.0).collect();
        let bias: Vec<f32> = (0..21).map(|i| i as f32 - 3.0).collect();
        let part = |bias| Part {
            weights: Source::F32(&values),
            bias,
        };
        let checksums = [Dtype::F32, Dtype::Bf16, Dtype::Int8].map(|dtype| {
            let plain = Linear::pack(37, &[part(None)], dtype).unwrap();
            let biased = Linear::pack(37, &[part(Some(&bias[..]))], dtype).unwrap();
            let gated = Linear::pack_gated(1, 37, &[part(Some(&bias[..]))], &[part(None)], dtype).unwrap();
            [plain, biased, gated].map(|linear| crc32fast::hash(linear.bytes_of()))
        });
        assert_eq!(crate::checkpoint::packed::LAYOUT, 1);
        let known: [[u32; 3]; 3] = [
            [2_517_514_975, 2_235_513_394, 568_160_206],
            [1_493_717_157, 2_728_157_100, 1_935_929_628],
            [775_933_574, 1_674_746_263, 1_482_901_305],
        ];
        assert_eq!(checksums, known);
    }
}
