//! How packed weights lie in memory: what kernels, slots and files of experts must agree on.

use super::linear::{Line, PANEL, VECTOR};

/// The type that packed weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit float.
    F32,
    /// bfloat16; activations are rounded to it before a product, sums are 32-bit. A CPU's own bfloat16 product takes two
    /// inputs a step and reads subnormals as zero, so AVX-512 with it gives other last bits than the rest.
    Bf16,
    /// Signed bytes with a scale for each output; activations are quantised row by row before a product (see
    /// [`quantise`](super::quantise)), sums are exact in 32-bit integers. All instruction sets give the same bits.
    Int8,
}

/// What packed weights are: sizes, type, and what stands beside them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Length of an input row (k).
    pub inputs: usize,
    /// Length of an output row (n); gates and up projections that belong together count once.
    pub outputs: usize,
    /// The type.
    pub dtype: Dtype,
    /// Whether a panel is 16 gates and 16 up projections rather than 32 outputs.
    pub gated: bool,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Layout {
    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.outputs.div_ceil(if self.gated { VECTOR } else { PANEL })
    }

    /// Steps of a kernel over the inputs: one a step, a pair, or four.
    pub(super) fn steps(&self) -> usize {
        match self.dtype {
            Dtype::F32 => self.inputs,
            Dtype::Bf16 => self.inputs.div_ceil(2),
            Dtype::Int8 => self.inputs.div_ceil(4),
        }
    }

    /// Lines of a panel's weights.
    pub(super) fn panel_lines(&self) -> usize {
        self.steps() * PANEL / VECTOR
    }

    /// Lines of all weights.
    pub(super) fn weight_lines(&self) -> usize {
        self.panels() * self.panel_lines()
    }

    /// Lines of a float for each column of all panels.
    pub(super) fn column_lines(&self) -> usize {
        self.panels() * PANEL / VECTOR
    }

    pub(super) fn scaled(&self) -> bool {
        self.dtype == Dtype::Int8
    }

    pub(super) fn lines(&self) -> usize {
        self.weight_lines() + self.column_lines() * (usize::from(self.scaled()) + usize::from(self.bias))
    }

    /// Memory that weights of this layout take, in bytes.
    pub fn bytes(&self) -> usize {
        self.lines() * size_of::<Line>()
    }

    /// Whether panels have columns that no weight fills.
    pub(super) fn padded(&self) -> bool {
        !self.outputs.is_multiple_of(if self.gated { VECTOR } else { PANEL })
    }
}
