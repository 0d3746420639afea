//! Sums that don't depend on the order of what is added.

/// 2^64: how many steps of a [`FixedSum`] make 1.
const STEPS: f64 = 18_446_744_073_709_551_616.0;

/// A sum in steps of 2^-64, as a whole number of 128 bits: adding is exact, so that any order and any cut into parts gives
/// the same sum to the last bit. An f32 from 2^-40 on is a whole number of steps; what is finer is rounded, each value by itself.
///
/// It holds 9 * 10^18 on either side; what would be beyond stays there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FixedSum(i128);

impl FixedSum {
    /// Adds a value; one that is no number adds nothing.
    pub fn add(&mut self, value: f64) {
        // A product with a power of two is exact, and a cast keeps to the bounds.
        self.0 = self.0.saturating_add((value * STEPS).round() as i128);
    }

    /// Adds the values of another.
    pub fn merge(&mut self, other: FixedSum) {
        self.0 = self.0.saturating_add(other.0);
    }

    /// The sum, rounded once.
    pub fn value(self) -> f64 {
        self.0 as f64 / STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::FixedSum;

    #[test]
    fn any_order_gives_the_same_sum() {
        // In floating point these lose the small ones or not, depending on the order.
        let values: Vec<f32> = (0..2000i32)
            .map(|i| [-1e6, 1e-7, -0.1, 1e6][i as usize % 4] * (1.0 + i as f32 / 7.0))
            .collect();
        let sum = |values: &mut dyn Iterator<Item = &f32>| {
            let mut sum = FixedSum::default();
            values.for_each(|value| sum.add(f64::from(*value)));
            sum
        };
        let forwards = sum(&mut values.iter());
        assert_eq!(sum(&mut values.iter().rev()), forwards);
        let mut parts = sum(&mut values[1234..].iter());
        parts.merge(sum(&mut values[..1234].iter()));
        assert_eq!(parts, forwards);
        assert_eq!(parts.value().to_bits(), forwards.value().to_bits());
    }

    #[test]
    fn single_precision_is_kept() {
        for value in [-0.1f32, -17.25, 3.4e-9, 1e11, -0.0] {
            let mut sum = FixedSum::default();
            sum.add(f64::from(value));
            assert_eq!(sum.value(), f64::from(value));
        }
        let mut sum = FixedSum::default();
        sum.add(f64::NAN);
        sum.add(f64::NEG_INFINITY);
        assert!(sum.value() < -9e18);
    }
}
