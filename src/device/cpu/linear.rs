//! Weights packed for the product kernels.
use anyhow::{ensure, Context, Result};

use super::layout::{Dtype, Layout};
use super::memory::Lines;
use super::quantised::{byte, inverse, largest, scale_of};
use super::source::{Column, Part};
use super::Epilogue;

/// Outputs of a panel.
pub(super) const PANEL: usize = 32;
/// Outputs of a vector: half a panel.
pub(super) const VECTOR: usize = 16;
/// Inputs packed at once, so that what is written to stays in the first-level cache.
const BLOCK: usize = 64;
/// Elements from which on packing is worth several threads.
const LARGE: usize = 1 << 18;
/// Inputs of an int8 product at most: its sums must fit 32 bits.
const MOST_BYTES: usize = 1 << 17;

/// A cache line of packed weights: 16 f32, 16 pairs of bfloat16, or 16 fours of bytes.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(super) struct Line(pub [u32; 16]);

/// A linear layer `y = x W^T + b`, packed for the kernels.
///
/// Outputs are cut in panels of 32, the last one padded with zeros. A panel holds, input after input, the 32 weights:
/// `[outputs / 32][inputs][32]`; in bfloat16, pair of inputs after pair: `[outputs / 32][inputs / 2][32][2]`; in int8, four
/// after four: `[outputs / 32][inputs / 4][32][4]`, 128 added to each, as `vpdpbusd` wants one of its factors unsigned.
/// Behind them come the scales of int8 weights (what the bytes of each output are multiples of) and the bias, `[outputs]`
/// each, padded to whole panels: one piece of memory, which a slot can take from a file as it is.
///
/// Gated (see [`Linear::pack_gated`]), a panel holds 16 gates and then the 16 up projections that they belong to.
#[derive(Clone)]
pub struct Linear {
    pub(super) layout: Layout,
    lines: Lines,
}

impl Linear {
    /// Packs `parts`, each `[outputs_i, inputs]`, stacked along the outputs; a part without bias among others with one
    /// counts as bias zero. On the calling thread; [`Linear::pack_with`] takes several.
    ///
    /// # Errors
    /// If a part is no whole number of rows of `inputs`, its bias has another length than its rows, or a row is too long
    /// for int8 (2^17).
    pub fn pack(inputs: usize, parts: &[Part<'_>], dtype: Dtype) -> Result<Linear> {
        Linear::pack_with(1, inputs, parts, dtype)
    }

    /// As [`Linear::pack`], with `threads` threads where it is worth them.
    ///
    /// # Errors
    /// As [`Linear::pack`].
    pub fn pack_with(threads: usize, inputs: usize, parts: &[Part<'_>], dtype: Dtype) -> Result<Linear> {
        Linear::packed(threads, inputs, [parts, &[]], dtype, false)
    }

    /// Packs the gates and up projections of a gated feed-forward layer, each some parts stacked to `[F, inputs]`, into one
    /// product of F outputs `act(gate) * up`: for [`Epilogue::Gated`](super::Epilogue::Gated) only. With `threads` threads
    /// where it is worth them.
    ///
    /// # Errors
    /// As [`Linear::pack`]; and if there are not as many gates as up projections.
    pub fn pack_gated(
        threads: usize,
        inputs: usize,
        gate: &[Part<'_>],
        up: &[Part<'_>],
        dtype: Dtype,
    ) -> Result<Linear> {
        Linear::packed(threads, inputs, [gate, up], dtype, true)
    }

    fn packed(threads: usize, inputs: usize, parts: [&[Part<'_>]; 2], dtype: Dtype, gated: bool) -> Result<Linear> {
        let layout = Layout {
            inputs,
            outputs: outputs(inputs, parts[0]),
            dtype,
            gated,
            bias: parts.iter().copied().flatten().any(|p| p.bias.is_some()),
        };
        check(&layout, parts)?;
        let mut linear = Linear::zeros(layout);
        linear.write(threads, parts);
        Ok(linear)
    }

    /// Weights of nothing but zeros, to be packed over ([`Linear::repack`]).
    pub fn zeros(layout: Layout) -> Linear {
        let lines = Lines::zeros(layout.lines());
        Linear { layout, lines }
    }

    /// Memory for layers of at most `bytes` each, in one mapping, each starting at a multiple of 4096; they have no
    /// outputs until they get a layout ([`Linear::reshape`]) and weights.
    ///
    /// # Errors
    /// When the system has no addresses left.
    pub fn rooms(bytes: &[usize]) -> Result<Vec<Linear>> {
        let layout = Layout {
            inputs: 1,
            outputs: 0,
            dtype: Dtype::F32,
            gated: false,
            bias: false,
        };
        let lines: Vec<usize> = bytes.iter().map(|b| b.div_ceil(size_of::<Line>())).collect();
        let rooms = Lines::rooms(&lines).with_context(|| {
            let total = bytes.iter().sum::<usize>() >> 20;
            format!("memory for experts: the system gives no {total} MiB; is there a limit of addresses (ulimit -v)?")
        })?;
        Ok(rooms.into_iter().map(|lines| Linear { layout, lines }).collect())
    }

    /// Gives a room another layout; what it holds means nothing until it is written.
    ///
    /// # Panics
    /// If the layout does not fit into the room.
    pub fn reshape(&mut self, layout: Layout) {
        self.lines.set_len(layout.lines());
        self.layout = layout;
    }

    /// Packs other weights of the same layout into the same memory, as [`Linear::pack`] or, with `second` parts,
    /// [`Linear::pack_gated`] do.
    ///
    /// # Errors
    /// As those; and if the parts are of another layout.
    pub fn repack(&mut self, threads: usize, first: &[Part<'_>], second: &[Part<'_>]) -> Result<()> {
        let (parts, layout) = ([first, second], self.layout);
        check(&layout, parts)?;
        let found = outputs(layout.inputs, first);
        let biases = parts.iter().copied().flatten().any(|p| p.bias.is_some());
        ensure!(
            found == layout.outputs && layout.gated != second.is_empty() && (layout.bias || !biases),
            "weights to pack: found {found} outputs{}, expected {layout:?}; are all experts of one shape?",
            if biases { " with bias" } else { "" }
        );
        self.write(threads, parts);
        Ok(())
    }

    /// All memory, to be filled with what [`Linear::bytes_of`] gave for the same layout; of a room, up to the next multiple
    /// of 4096.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.lines.bytes_mut()
    }

    /// All memory as bytes: weights, scales, bias.
    pub fn bytes_of(&self) -> &[u8] {
        self.lines.bytes()
    }

    /// The layout.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Packs the outputs of the first parts, in panels of 32; or of both, in panels of 16 of each, where there are second
    /// ones.
    fn write(&mut self, threads: usize, parts: [&[Part<'_>]; 2]) {
        let layout = self.layout;
        let (panels, of_panel) = (layout.panels(), layout.panel_lines());
        let order = Order::new(layout.inputs, parts);
        if layout.padded() {
            self.lines.fill(Line::default());
        }
        let (lines, floats) = self.lines.split_at_mut(layout.weight_lines());
        let (scales, bias) = floats_mut(floats).split_at_mut(if layout.scaled() { panels * PANEL } else { 0 });
        order.write_bias(bias);
        let mut none = vec![0.0; if layout.scaled() { 0 } else { panels * PANEL }];
        let scales = if layout.scaled() { scales } else { &mut none };
        let pack = |first: usize, lines: &mut [Line], scales: &mut [f32]| {
            let panels = lines.chunks_exact_mut(of_panel).zip(scales.chunks_exact_mut(PANEL));
            for (i, (panel, scales)) in panels.enumerate() {
                pack_panel(layout.inputs, &order.columns(first + i), layout.dtype, panel, scales);
            }
        };
        let run = if panels * PANEL * layout.inputs > LARGE {
            panels.div_ceil(threads.max(1))
        } else {
            panels
        };
        if run == panels {
            pack(0, lines, scales);
        } else {
            let runs = lines.chunks_mut(run * of_panel).zip(scales.chunks_mut(run * PANEL));
            std::thread::scope(|scope| {
                for (i, (lines, scales)) in runs.enumerate() {
                    scope.spawn(move || pack(i * run, lines, scales));
                }
            });
        }
    }

    /// Memory held, in bytes.
    pub fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Length of an input row (k).
    pub fn inputs(&self) -> usize {
        self.layout.inputs
    }

    /// Length of an output row (n); gates and up projections that belong together count once.
    pub fn outputs(&self) -> usize {
        self.layout.outputs
    }

    /// Row `row` of the original `[outputs, inputs]` matrix as f32 (rounded to the packed type), so that an embedding
    /// tied to it needs no copy. `out` is `[inputs]`.
    ///
    /// # Panics
    /// If there is no such row, `out` has another length, or the weights are gated.
    pub fn embedding(&self, row: usize, out: &mut [f32]) {
        let Layout {
            inputs,
            outputs,
            dtype,
            gated,
            ..
        } = self.layout;
        assert!(!gated, "gated weights are no embedding");
        assert!(row < outputs, "row {row} of {outputs} outputs");
        assert_eq!(out.len(), inputs, "room for a row of other length");
        let steps = self.steps();
        let column = row % PANEL;
        let lines = self.lines[row / PANEL * steps * 2..][..steps * 2]
            .iter()
            .skip(column / 16)
            .step_by(2);
        let words = lines.map(|line| line.0[column % 16]);
        match dtype {
            Dtype::F32 => out.iter_mut().zip(words).for_each(|(o, w)| *o = f32::from_bits(w)),
            Dtype::Bf16 => out.chunks_mut(2).zip(words).for_each(|(pair, w)| {
                for (o, bits) in pair.iter_mut().zip([w << 16, w & 0xffff_0000]) {
                    *o = f32::from_bits(bits);
                }
            }),
            Dtype::Int8 => out.chunks_mut(4).zip(words).for_each(|(four, w)| {
                let scale = self.scales().map_or(0.0, |scales| scales[row]);
                for (o, byte) in four.iter_mut().zip(w.to_ne_bytes()) {
                    *o = (f32::from(byte) - 128.0) * scale;
                }
            }),
        }
    }

    /// Number of panels.
    pub(super) fn panels(&self) -> usize {
        self.layout.panels()
    }

    /// Steps of a kernel over the inputs: one a step, a pair, or four.
    pub(super) fn steps(&self) -> usize {
        self.layout.steps()
    }

    /// The type.
    pub(super) fn dtype(&self) -> Dtype {
        self.layout.dtype
    }

    /// Panics if the epilogue is not one for these weights.
    pub(super) fn assert_fits(&self, epilogue: Epilogue) {
        match (self.layout.gated, matches!(epilogue, Epilogue::Gated(_))) {
            (true, false) => panic!("{epilogue:?} of gated weights: they go with Epilogue::Gated only"),
            (false, true) => panic!("{epilogue:?} of plain weights: it goes with those of Linear::pack_gated only"),
            _ => {}
        }
    }

    /// The packed words.
    pub(super) fn words(&self) -> *const u32 {
        self.lines.as_ptr().cast()
    }

    /// The scales of int8 weights, padded to whole panels.
    pub(super) fn scales(&self) -> Option<&[f32]> {
        let layout = &self.layout;
        let lines = &self.lines[layout.weight_lines()..];
        layout.scaled().then(|| floats(&lines[..layout.column_lines()]))
    }

    /// The bias, padded to whole panels.
    pub(super) fn bias(&self) -> Option<&[f32]> {
        let layout = &self.layout;
        layout
            .bias
            .then(|| floats(&self.lines[layout.lines() - layout.column_lines()..]))
    }
}

/// Outputs of parts that are stacked.
fn outputs(inputs: usize, parts: &[Part<'_>]) -> usize {
    parts.iter().map(|p| p.outputs(inputs.max(1))).sum()
}

/// Refuses parts that cannot be packed.
fn check(layout: &Layout, parts: [&[Part<'_>]; 2]) -> Result<()> {
    let Layout {
        inputs, dtype, gated, ..
    } = *layout;
    let [gates, ups] = parts.map(|parts| outputs(inputs, parts));
    ensure!(
        !gated || gates == ups,
        "weights to pack: found {gates} gates and {ups} up projections, expected as many of each; are their shapes right?"
    );
    ensure!(inputs > 0, "weights to pack: rows of 0 inputs, expected at least 1");
    ensure!(
        dtype != Dtype::Int8 || inputs <= MOST_BYTES,
        "weights to pack: rows of {inputs} inputs, expected at most {MOST_BYTES} in int8; choose another dtype"
    );
    for (i, part) in parts.iter().copied().flatten().enumerate() {
        part.check(inputs, i)?;
    }
    Ok(())
}

/// A float for each column.
fn floats(lines: &[Line]) -> &[f32] {
    // SAFETY: a line is 16 words of 32 bits without padding, and any bits are a float.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * VECTOR) }
}

fn floats_mut(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: as above; the borrow is unique.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * VECTOR) }
}

/// Which outputs of which parts stand where in the panels.
struct Order<'a> {
    inputs: usize,
    /// What alternates in a panel: 32 of the one, or 16 of each.
    turns: Vec<&'a [Part<'a>]>,
}

impl<'a> Order<'a> {
    fn new(inputs: usize, [first, second]: [&'a [Part<'a>]; 2]) -> Order<'a> {
        let mut turns = vec![first];
        turns.extend((!second.is_empty()).then_some(second));
        Order { inputs, turns }
    }

    /// Outputs of one turn.
    fn width(&self) -> usize {
        PANEL / self.turns.len()
    }

    /// What stands in the 32 columns of a panel.
    fn columns(&self, panel: usize) -> [Option<Column<'a>>; PANEL] {
        let mut columns = [None; PANEL];
        for (columns, parts) in columns.chunks_exact_mut(self.width()).zip(&self.turns) {
            // The output to be found, counted from the first of the part in hand.
            let mut output = panel * self.width();
            let mut columns = columns.iter_mut().peekable();
            for part in *parts {
                let here = part.outputs(self.inputs);
                while output < here {
                    let Some(column) = columns.next() else { break };
                    *column = Some(part.column(self.inputs, output));
                    output += 1;
                }
                if columns.peek().is_none() {
                    break;
                }
                output -= here;
            }
        }
        columns
    }

    /// Writes all biases in the order of the panels, those that are not there zero.
    fn write_bias(&self, ordered: &mut [f32]) {
        if ordered.is_empty() {
            return;
        }
        ordered.fill(0.0);
        for (turn, parts) in self.turns.iter().enumerate() {
            let biases = parts.iter().flat_map(|part| {
                let of = |output| part.bias.map_or(0.0, |bias| bias[output]);
                (0..part.outputs(self.inputs)).map(of)
            });
            for (output, bias) in biases.enumerate() {
                let (panel, column) = (output / self.width(), output % self.width());
                ordered[panel * PANEL + turn * self.width() + column] = bias;
            }
        }
    }
}

/// Packs the outputs at `columns`, and finds their scales for int8.
fn pack_panel(
    inputs: usize,
    columns: &[Option<Column<'_>>; PANEL],
    dtype: Dtype,
    panel: &mut [Line],
    scales: &mut [f32],
) {
    let there = || {
        columns
            .iter()
            .enumerate()
            .filter_map(|(i, from)| Some((i, from.as_ref()?)))
    };
    let mut read = [0.0; BLOCK];
    if dtype == Dtype::Int8 {
        for (column, from) in there() {
            let mut most = 0;
            for start in (0..inputs).step_by(BLOCK) {
                let values = &mut read[..BLOCK.min(inputs - start)];
                from.read(start, values);
                most = most.max(largest(values));
            }
            scales[column] = scale_of(most);
        }
    }
    for start in (0..inputs).step_by(BLOCK) {
        let values = &mut read[..BLOCK.min(inputs - start)];
        for (column, from) in there() {
            from.read(start, values);
            let (half, lane) = (column / VECTOR, column % VECTOR);
            match dtype {
                Dtype::F32 => {
                    for (i, w) in values.iter().enumerate() {
                        panel[(start + i) * 2 + half].0[lane] = w.to_bits();
                    }
                }
                Dtype::Bf16 => {
                    for (i, pair) in values.chunks(2).enumerate() {
                        panel[(start / 2 + i) * 2 + half].0[lane] = pack_pair(pair);
                    }
                }
                Dtype::Int8 => {
                    let inverse = inverse(scales[column]);
                    for (i, four) in values.chunks(4).enumerate() {
                        panel[(start / 4 + i) * 2 + half].0[lane] = pack_four(four, inverse);
                    }
                }
            }
        }
    }
}

/// One or two values as bfloat16, rounded to nearest even, the first in the lower half.
#[inline(always)]
pub(super) fn pack_pair(pair: &[f32]) -> u32 {
    let high = pair.get(1).map_or(0, |x| round_to_bf16(*x));
    round_to_bf16(pair[0]) >> 16 | high
}

/// Up to four values as multiples of a scale, 128 added to each.
fn pack_four(four: &[f32], inverse: f32) -> u32 {
    let mut bytes = [128; 4];
    for (to, x) in bytes.iter_mut().zip(four) {
        *to = byte(*x, inverse).cast_unsigned() ^ 128;
    }
    u32::from_ne_bytes(bytes)
}

/// The bits of `x` rounded to bfloat16, as those of an f32. Written without a branch, so that it is vectorised.
#[inline(always)]
pub(super) fn round_to_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN must not be carried over into infinity.
    (if x.is_nan() { bits | 0x0040_0000 } else { rounded }) & 0xffff_0000
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::*;
    use half::bf16;

    #[test]
    fn rounding_is_that_of_half() {
        for bits in (0..=u32::MAX).step_by(40_503) {
            let x = f32::from_bits(bits);
            let (ours, theirs) = (round_to_bf16(x) >> 16, u32::from(bf16::from_f32(x).to_bits()));
            assert!(ours == theirs, "{bits:#x}: {ours:#x}, half has {theirs:#x}");
        }
    }

    #[test]
    fn embedding_gives_back_every_part() {
        for (inputs, dtype) in [
            (1, Dtype::F32),
            (7, Dtype::F32),
            (130, Dtype::F32),
            (1, Dtype::Bf16),
            (65, Dtype::Bf16),
        ] {
            let values: Vec<f32> = (0..inputs * 40).map(|i| i as f32 * 0.37 - 3.0).collect();
            let halves: Vec<bf16> = values.iter().map(|x| bf16::from_f32(*x)).collect();
            let (a, b) = (Source::F32(&values[..inputs * 5]), Source::Bf16(&halves[inputs * 5..]));
            let parts = [
                Part { weights: a, bias: None },
                Part {
                    weights: b,
                    bias: Some(&[1.0; 35]),
                },
            ];
            let linear = Linear::pack(inputs, &parts, dtype).unwrap();
            assert_eq!((linear.outputs(), linear.panels()), (40, 2));
            let mut row = vec![0.0; inputs];
            for r in 0..40 {
                linear.embedding(r, &mut row);
                for (i, x) in row.iter().enumerate() {
                    let exact = r < 5 && dtype == Dtype::F32;
                    let at = r * inputs + i;
                    assert_eq!(*x, if exact { values[at] } else { halves[at].to_f32() }, "row {r}, {i}");
                }
            }
        }
    }

    #[test]
    fn an_int8_embedding_is_within_half_a_step() {
        for inputs in [1, 3, 4, 130] {
            let values: Vec<f32> = (0..inputs * 40)
                .map(|i| (i * 7919 % 1000) as f32 * 0.01 - 5.0)
                .collect();
            let part = Part {
                weights: Source::F32(&values),
                bias: None,
            };
            let linear = Linear::pack(inputs, &[part], Dtype::Int8).unwrap();
            // A byte a weight, padded, and a scale for each output, padded.
            assert_eq!(linear.bytes(), 64 * inputs.next_multiple_of(4) + 64 * 4);
            let mut row = vec![0.0; inputs];
            for (r, values) in values.chunks_exact(inputs).enumerate() {
                linear.embedding(r, &mut row);
                let step = values.iter().fold(0.0, |m: f32, x| m.max(x.abs())) / 127.0;
                let near = |(x, y): (&f32, &f32)| (x - y).abs() <= 0.51 * step;
                assert!(row.iter().zip(values).all(near), "row {r} of {inputs}");
            }
        }
    }

    #[test]
    fn wrong_shapes_are_refused() {
        let part = |n: usize| Part {
            weights: Source::F32(&[0.0; 12][..n]),
            bias: None,
        };
        let long = Linear::pack(MOST_BYTES + 1, &[], Dtype::Int8)
            .err()
            .unwrap()
            .to_string();
        assert!(long.contains("131073") && long.contains("another dtype"), "{long}");
        let uneven = Linear::pack_gated(1, 3, &[part(12)], &[part(6), part(3)], Dtype::F32);
        let uneven = uneven.err().unwrap().to_string();
        assert!(uneven.contains("4 gates and 3 up projections"), "{uneven}");
        assert!(Linear::pack_gated(1, 0, &[], &[], Dtype::F32).is_err());
    }
}
