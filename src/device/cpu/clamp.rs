//! Cutting values off.
use super::Cpu;

impl Cpu {
    /// Cuts `width` elements from `offset` on in each row of `x` `[rows, stride]` to `-limit..=limit`; a NaN stays one.
    ///
    /// # Panics
    /// If they don't fit into a row, `x` is no whole number of rows, or the limit is negative or NaN.
    pub fn clamp(&self, x: &mut [f32], stride: usize, offset: usize, width: usize, limit: f32) {
        assert!(
            x.len().is_multiple_of(stride) && offset + width <= stride && limit >= 0.0,
            "clamp: {width} from {offset} on in rows of {stride}, {} elements, limit {limit}",
            x.len()
        );
        self.for_rows(x, stride, width as f64 * 0.2, |_, row| {
            let cut = &mut row[offset..offset + width];
            cut.iter_mut().for_each(|x| *x = x.clamp(-limit, limit));
        });
    }
}
