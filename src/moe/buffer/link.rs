//! Experts in memory behind a link of limited speed: what a GPU would see of experts that lie with its host.

use super::source::{expert_bytes, resident, ExpertSource};
use crate::device::Layout;
use crate::moe::layer::Expert;
use anyhow::Result;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// All experts of a rank, copied no faster than a link would.
pub struct Link {
    source: Arc<dyn ExpertSource>,
    first: usize,
    /// By layer.
    experts: Vec<Vec<Expert>>,
    bytes_per_second: u64,
}

impl Link {
    /// Reads the experts `own` of all `layers` layers.
    ///
    /// # Errors
    /// As [`ExpertSource::read`].
    pub fn new(source: Arc<dyn ExpertSource>, layers: usize, own: Range<usize>, bytes_per_second: u64) -> Result<Link> {
        let of = |layer| own.clone().map(|e| resident(source.as_ref(), layer, e)).collect();
        Ok(Link {
            experts: (0..layers).map(of).collect::<Result<_>>()?,
            first: own.start,
            bytes_per_second,
            source,
        })
    }
}

impl ExpertSource for Link {
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        self.source.layouts(layer)
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let (start, from) = (Instant::now(), &self.experts[layer][expert - self.first]);
        for (from, to) in [(&from.up, &mut into.up), (&from.down, &mut into.down)] {
            let from = from.bytes_of();
            to.bytes_mut()[..from.len()].copy_from_slice(from);
        }
        let bytes = expert_bytes(self.layouts(layer)) as u64;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        std::thread::sleep(takes.saturating_sub(start.elapsed()));
        Ok(bytes)
    }

    fn staging(&self) -> u64 {
        0
    }
}
