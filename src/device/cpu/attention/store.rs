//! Writing rows of keys and values into a cache.
use super::Element;
use crate::device::cpu::isa::Kernel;
use crate::device::cpu::lanes::Lanes;
use crate::device::cpu::pool::Shared;
use crate::device::cpu::Cpu;

impl Cpu {
    /// Writes row `i` of `from`, the `width` elements from `i * stride` on, into row `rows[i]` of `to`
    /// `[any, width]`, rounded to its type. Where a row of `to` is named twice, the later one stays.
    ///
    /// # Panics
    /// If a row lies outside its buffer.
    pub fn store_rows<T: Element>(&self, from: &[f32], stride: usize, width: usize, rows: &[u32], to: &mut [T]) {
        let n = rows.len();
        assert!(
            n == 0 || (n - 1) * stride + width <= from.len(),
            "store_rows: {n} rows are more than there are"
        );
        let end = rows.iter().max().map_or(0, |r| *r as usize + 1);
        assert!(end * width <= to.len(), "store_rows: row {end} is beyond the end");
        // Whoever names a row, one task writes it.
        let tasks = (4 * self.threads()).min(n);
        let out = Shared(to.as_mut_ptr());
        self.for_each(tasks, (n * width) as f64 * 0.2, |task| {
            for (i, &row) in rows.iter().enumerate() {
                if task_of(row, tasks) == task {
                    // SAFETY: the row lies inside `to`, which is borrowed until all are done, and only this task
                    // writes it.
                    let to = unsafe { std::slice::from_raw_parts_mut(out.at(row as usize * width), width) };
                    let from = &from[i * stride..][..width];
                    // SAFETY: a device's instruction set is available.
                    unsafe { self.isa().run(Round { from, to }) };
                }
            }
        });
    }
}

/// The task that writes a row. Slots are of equal length, often a power of two, and their rows are written at about the
/// same position: a remainder would send them all to one task.
fn task_of(row: u32, tasks: usize) -> usize {
    const GOLDEN: u32 = 0x9e37_79b9;
    ((u64::from(row.wrapping_mul(GOLDEN)) * tasks as u64) >> 32) as usize
}

/// Rounds each element to the type of the cache.
struct Round<'a, T> {
    from: &'a [f32],
    to: &'a mut [T],
}

impl<T: Element> Kernel for Round<'_, T> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to = T::round(*from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_at_equal_distances_go_to_all_tasks() {
        for distance in [1, 2, 33, 200, 256, 4096] {
            for tasks in [2, 8, 64] {
                let mut rows_of = vec![0; tasks];
                (0..512).for_each(|slot| rows_of[task_of(slot * distance + 7, tasks)] += 1);
                let most = rows_of.iter().max();
                assert!(most <= Some(&(2 * 512 / tasks)), "{distance}: {rows_of:?}");
            }
        }
    }
}
