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
                if row as usize % tasks == task {
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
