//! Rows put together from parts.
use super::Cpu;

impl Cpu {
    /// Puts each head of `out` `[rows, heads, widths[0] + widths[1]]` together from its part of `by_head` `[heads, rows,
    /// widths[0]]` and, behind that, of `by_row` `[rows, heads, widths[1]]`.
    ///
    /// # Panics
    /// If the lengths don't fit.
    pub fn join_heads(&self, by_head: &[f32], by_row: &[f32], heads: usize, widths: [usize; 2], out: &mut [f32]) {
        let [first, second] = widths;
        let row_elements = heads * (first + second);
        let rows = out.len().checked_div(row_elements).unwrap_or(0);
        assert!(
            out.len() == rows * row_elements
                && by_head.len() == rows * heads * first
                && by_row.len() == rows * heads * second,
            "join_heads: {} and {} elements don't make {} of {heads} heads of {first} and {second}",
            by_head.len(),
            by_row.len(),
            out.len()
        );
        self.for_rows(out, row_elements, row_elements as f64 * 0.2, |row, joined| {
            for (head, joined) in joined.chunks_exact_mut(first + second).enumerate() {
                let (before, behind) = joined.split_at_mut(first);
                before.copy_from_slice(&by_head[(head * rows + row) * first..][..first]);
                behind.copy_from_slice(&by_row[(row * heads + head) * second..][..second]);
            }
        });
    }
}
