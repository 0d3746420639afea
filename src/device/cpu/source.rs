//! Where weights to be packed lie: as a checkpoint stores them, or as a view into a larger tensor.
use anyhow::{ensure, Result};
use half::{bf16, f16};

/// Weights as a checkpoint stores them, row-major, or a view of them.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// 32-bit float.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// A matrix inside a larger tensor, see [`Source::strided`].
    Strided(Strided<'a>),
}

/// A matrix inside a larger tensor.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    elements: Elements<'a>,
    offset: usize,
    shape: [usize; 2],
    strides: [usize; 2],
}

/// What a tensor holds.
#[derive(Clone, Copy)]
enum Elements<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> Source<'a> {
    /// The matrix of `shape` `[outputs, inputs]` that begins at element `offset`, with `strides` elements from one output,
    /// and from one input, to the next: of gates and up projections `[D, 2 F]`, the gates in the even columns, the gates are
    /// `strided(0, [F, D], [2, 2 * F])`. Whether it lies inside is seen when it is packed. A view of a view is one of the
    /// tensor.
    #[must_use]
    pub fn strided(self, offset: usize, shape: [usize; 2], strides: [usize; 2]) -> Source<'a> {
        let elements = self.elements();
        Source::Strided(Strided {
            elements,
            offset,
            shape,
            strides,
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Source::Strided(s) => s.shape[0] * s.shape[1],
            _ => self.elements().len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn elements(&self) -> Elements<'a> {
        match *self {
            Source::F32(s) => Elements::F32(s),
            Source::Bf16(s) => Elements::Bf16(s),
            Source::F16(s) => Elements::F16(s),
            Source::Strided(s) => s.elements,
        }
    }
}

impl Elements<'_> {
    fn len(&self) -> usize {
        match self {
            Elements::F32(s) => s.len(),
            Elements::Bf16(s) => s.len(),
            Elements::F16(s) => s.len(),
        }
    }
}

/// One matrix of a [`Linear`](super::Linear); several are stacked along the outputs (query, key and value as one product).
#[derive(Clone, Copy)]
pub struct Part<'a> {
    /// `[outputs, inputs]`
    pub weights: Source<'a>,
    /// `[outputs]`
    pub bias: Option<&'a [f32]>,
}

/// Where the weights of one output lie.
#[derive(Clone, Copy)]
pub(super) struct Column<'a> {
    elements: Elements<'a>,
    first: usize,
    stride: usize,
}

impl<'a> Part<'a> {
    /// Number of outputs, each of `inputs` inputs.
    pub(super) fn outputs(&self, inputs: usize) -> usize {
        self.weights.len() / inputs
    }

    /// An output that is there.
    pub(super) fn column(&self, inputs: usize, output: usize) -> Column<'a> {
        let (first, stride) = match self.weights {
            Source::Strided(s) => (s.offset + output * s.strides[0], s.strides[1]),
            _ => (output * inputs, 1),
        };
        Column {
            elements: self.weights.elements(),
            first,
            stride,
        }
    }

    /// Checks that this is some number of outputs of `inputs` inputs, with as many biases; `i` says which part it is.
    pub(super) fn check(&self, inputs: usize, i: usize) -> Result<()> {
        let (len, outputs) = (self.weights.len(), self.outputs(inputs));
        ensure!(
            len == outputs * inputs,
            "weights to pack, part {i}: found {len} elements, expected a multiple of {inputs}; is its shape right?"
        );
        if let Source::Strided(s) = self.weights {
            ensure!(
                s.shape[1] == inputs,
                "weights to pack, part {i}: found a view of {} inputs, expected {inputs}; is its shape right?",
                s.shape[1]
            );
            let last = |dim: usize| s.strides[dim].saturating_mul(s.shape[dim].saturating_sub(1));
            let end = s.offset.saturating_add(last(0)).saturating_add(last(1));
            ensure!(
                len == 0 || end < s.elements.len(),
                "weights to pack, part {i}: found a tensor of {} elements, expected at least {} for the view; is its shape right?",
                s.elements.len(),
                end.saturating_add(1)
            );
        }
        if let Some(b) = self.bias {
            ensure!(
                b.len() == outputs,
                "bias to pack, part {i}: found {} elements, expected {outputs}",
                b.len()
            );
        }
        Ok(())
    }
}

impl Column<'_> {
    /// The weights of inputs `start..start + out.len()` as f32.
    pub(super) fn read(&self, start: usize, out: &mut [f32]) {
        if self.stride != 1 {
            let first = self.first + start * self.stride;
            return match self.elements {
                Elements::F32(s) => gather(&s[first..], self.stride, out, |w| w),
                Elements::Bf16(s) => gather(&s[first..], self.stride, out, bf16::to_f32),
                Elements::F16(s) => gather(&s[first..], self.stride, out, f16::to_f32),
            };
        }
        let range = self.first + start..self.first + start + out.len();
        match self.elements {
            Elements::F32(s) => out.copy_from_slice(&s[range]),
            Elements::Bf16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, w)| *o = w.to_f32()),
            Elements::F16(s) => out.iter_mut().zip(&s[range]).for_each(|(o, w)| *o = w.to_f32()),
        }
    }
}

/// Every `stride`-th element of `from` as f32.
fn gather<T: Copy>(from: &[T], stride: usize, out: &mut [f32], to_f32: impl Fn(T) -> f32) {
    for (i, o) in out.iter_mut().enumerate() {
        *o = to_f32(from[i * stride]);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dtype, Linear};
    use super::*;

    #[test]
    fn wrong_shapes_are_refused() {
        let numbers = [0.0; 12];
        let refused = |weights: Source, bias: Option<&[f32]>| {
            Linear::pack(3, &[Part { weights, bias }], Dtype::F32)
                .err()
                .map(|e| e.to_string())
                .unwrap_or_default()
        };
        let whole = |n: usize| Source::F32(&numbers[..n]);
        assert!(refused(whole(7), None).contains("found 7 elements, expected a multiple of 3"));
        assert!(refused(whole(6), Some(&[0.0; 3])).contains("found 3 elements, expected 2"));
        assert_eq!(refused(whole(12).strided(1, [2, 3], [2, 4]), None), "");
        assert_eq!(refused(whole(0).strided(1, [0, 3], [2, 4]), None), "");
        let beyond = refused(whole(12).strided(2, [2, 3], [2, 4]), None);
        assert!(beyond.contains("of 12 elements, expected at least 13"), "{beyond}");
        let other = refused(whole(12).strided(0, [3, 4], [4, 1]), None);
        assert!(other.contains("a view of 4 inputs, expected 3"), "{other}");
        let huge = refused(whole(12).strided(0, [2, 3], [usize::MAX, 1]), None);
        assert!(huge.contains("of 12 elements"), "{huge}");
    }
}
