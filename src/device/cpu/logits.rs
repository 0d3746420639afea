//! Whole rows of logits, for who needs more of them than the best.
use std::sync::OnceLock;

use super::pool::Shared;
use super::{Cpu, Epilogue, Linear};

/// Logits that are kept at a time (32 MiB).
const MOST_LOGITS: usize = 8 << 20;

impl Cpu {
    /// What `each(row, logits)` makes of the logits of each row of `x` `[rows, d]` against `w` `[vocabulary, d]`. Rows are
    /// taken a few at a time, on all threads; `room` keeps its memory from call to call. The logits are those in which
    /// [`Cpu::head`] finds the best.
    ///
    /// # Panics
    /// If `x` is no whole number of rows.
    pub fn logits<T: Send + Sync>(
        &self,
        x: &[f32],
        w: &Linear,
        room: &mut Vec<f32>,
        each: impl Fn(usize, &mut [f32]) -> T + Sync,
    ) -> Vec<T> {
        let (d, outputs) = (w.inputs(), w.outputs());
        let rows = x.len() / d;
        assert_eq!(x.len(), rows * d, "logits: x is no whole number of rows of {d}");
        let most = (MOST_LOGITS / outputs.max(1)).clamp(1, rows.max(1));
        if room.len() < most * outputs {
            room.resize(most * outputs, 0.0);
        }
        let found: Vec<OnceLock<T>> = (0..rows).map(|_| OnceLock::new()).collect();
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            let logits = &mut room[..count * outputs];
            self.linear(&x[first * d..(first + count) * d], w, Epilogue::Store, logits);
            let logits = Shared(logits.as_mut_ptr());
            self.for_each(count, (count * outputs) as f64, |row| {
                // SAFETY: each row is in one task's hands, in a buffer that lives until all are done.
                let logits = unsafe { std::slice::from_raw_parts_mut(logits.at(row * outputs), outputs) };
                let _ = found[first + row].set(each(first + row, logits));
            });
        }
        found.into_iter().filter_map(OnceLock::into_inner).collect()
    }
}
