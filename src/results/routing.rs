//! What the experts did: `/routing/encode` and `/routing/decode`.
//!
//! A group per phase holds the trace (`attempt`, `group`, `step` and per layer `counts` `[steps, experts]`), its sums
//! (`totals` `[layers, experts]`), and with `--routing tokens` per layer the chosen `ids` and `weights` `[tokens, k]`.

use super::attribute::{get_number, get_texts, set_number, set_text, set_texts};
use super::column::{About, Column, Offsets};
use super::row::{Phase, RoutingLayout, Row, RowRoutes, StepCounts};
use super::writer::make_group;
use anyhow::{ensure, Context, Result};
use hdf5::Group;
use std::ops::Range;

/// Writes `/routing`.
pub(crate) struct RoutingWriter {
    layout: RoutingLayout,
    phases: Vec<PhaseWriter>,
}

struct PhaseWriter {
    phase: Phase,
    attempt: Column,
    group: Column,
    step: Column,
    counts: Vec<Column>,
    totals: Vec<u64>,
    totals_column: Column,
    tokens: Option<TokenWriter>,
}

struct TokenWriter {
    offsets: Offsets,
    ids: Vec<Column>,
    weights: Vec<Column>,
}

impl RoutingWriter {
    /// Makes the datasets, empty; those per token only with `tokens`.
    pub fn create(group: &Group, layout: &RoutingLayout, tokens: bool, expected: u64) -> Result<RoutingWriter> {
        layout.check()?;
        set_number(group, "experts", layout.experts as u64)?;
        set_number(group, "top_k", layout.top_k as u64)?;
        let with_layers = Phase::ALL.into_iter().filter(|phase| !layout.layers(*phase).is_empty());
        let phases = with_layers.map(|phase| PhaseWriter::create(group, layout, phase, tokens, expected));
        Ok(RoutingWriter {
            layout: layout.clone(),
            phases: phases.collect::<Result<_>>()?,
        })
    }

    /// Appends the routes of rows; a row without any has zero tokens.
    pub fn append_rows(&mut self, rows: &[Row]) -> Result<()> {
        for phase in &mut self.phases {
            if let Some(tokens) = &mut phase.tokens {
                tokens.append(phase.phase, self.layout.top_k, rows)?;
            }
        }
        Ok(())
    }

    /// Appends entries of the trace.
    pub fn append_steps(&mut self, steps: &[StepCounts]) -> Result<()> {
        for phase in &mut self.phases {
            let of_phase = phase.phase;
            phase.append_steps(steps.iter().filter(|step| step.phase == of_phase), self.layout.experts)?;
        }
        Ok(())
    }

    /// Writes the sums.
    pub fn finish(self) -> Result<()> {
        self.phases
            .into_iter()
            .try_for_each(|mut phase| phase.totals_column.append(phase.totals))
    }
}

impl PhaseWriter {
    fn create(at: &Group, layout: &RoutingLayout, phase: Phase, tokens: bool, expected: u64) -> Result<PhaseWriter> {
        let at = make_group(at, phase.name(), &format!("the {} phase", phase.name()))?;
        set_text(&at, "phase", phase.name())?;
        set_texts(&at, "layers", layout.layers(phase))?;
        let number = |long_name| About { long_name, units: "1" };
        let counted = |long_name| About {
            long_name,
            units: "tokens",
        };
        let mut made = PhaseWriter {
            phase,
            attempt: Column::numbers::<u32>(&at, "attempt", None, expected, number("start of the job, from 1"))?,
            group: Column::numbers::<u32>(&at, "group", None, expected, number("expert-parallel group"))?,
            step: Column::numbers::<u64>(
                &at,
                "step",
                None,
                expected,
                number("step of the group within the attempt"),
            )?,
            counts: Vec::new(),
            totals: vec![0; layout.layers(phase).len() * layout.experts],
            totals_column: Column::numbers::<u64>(
                &at,
                "totals",
                Some(layout.experts),
                layout.layers(phase).len() as u64,
                counted("tokens to each expert over all steps, a row a layer"),
            )?,
            tokens: None,
        };
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for name in layout.layers(phase) {
            let layer = make_group(&at, name, "one MoE layer")?;
            let about = counted("tokens to each expert, a row a step");
            made.counts.push(Column::numbers::<u32>(
                &layer,
                "counts",
                Some(layout.experts),
                expected,
                about,
            )?);
            if tokens {
                let (k, expected) = (Some(layout.top_k), expected.saturating_mul(32));
                let about = number("experts chosen for each token, in the gate's order");
                ids.push(Column::numbers::<u16>(&layer, "ids", k, expected, about)?);
                let about = number("the gate's weight of each chosen expert");
                weights.push(Column::numbers::<f32>(&layer, "weights", k, expected, about)?);
            }
        }
        if tokens {
            made.tokens = Some(TokenWriter {
                offsets: Offsets::create(&at, expected)?,
                ids,
                weights,
            });
        }
        Ok(made)
    }

    fn append_steps<'a>(&mut self, steps: impl Iterator<Item = &'a StepCounts>, experts: usize) -> Result<()> {
        let steps: Vec<_> = steps.collect();
        for step in &steps {
            ensure!(
                step.counts.len() == self.totals.len(),
                "step {} of group {} has {} expert counts, expected {} layers x {experts} experts",
                step.step,
                step.group,
                step.counts.len(),
                self.counts.len()
            );
            for (total, count) in self.totals.iter_mut().zip(&step.counts) {
                *total += u64::from(*count);
            }
        }
        self.attempt.append(steps.iter().map(|step| step.attempt).collect())?;
        self.group.append(steps.iter().map(|step| step.group).collect())?;
        self.step.append(steps.iter().map(|step| step.step).collect())?;
        for (layer, column) in self.counts.iter_mut().enumerate() {
            let of_layer = |step: &&StepCounts| step.counts[layer * experts..(layer + 1) * experts].to_vec();
            column.append(steps.iter().flat_map(of_layer).collect())?;
        }
        Ok(())
    }
}

impl TokenWriter {
    /// Splits `[tokens, layers, k]` of each row into the layers' datasets.
    fn append(&mut self, phase: Phase, k: usize, rows: &[Row]) -> Result<()> {
        let stride = self.ids.len() * k;
        let none = RowRoutes::default();
        let of_row = |row: &'_ Row| row.routes.as_ref().unwrap_or(&none).of(phase).0.len();
        for row in rows {
            let (ids, weights) = row.routes.as_ref().unwrap_or(&none).of(phase);
            ensure!(
                ids.len() == weights.len() && ids.len() % stride == 0,
                "row {}: {} expert ids and {} weights in the {} phase, expected equal multiples of {stride}",
                row.index,
                ids.len(),
                weights.len(),
                phase.name()
            );
        }
        self.offsets.append(rows.iter().map(|row| of_row(row) / stride))?;
        for layer in 0..self.ids.len() {
            let (mut ids, mut weights) = (Vec::new(), Vec::new());
            for row in rows {
                let (row_ids, row_weights) = row.routes.as_ref().unwrap_or(&none).of(phase);
                for start in (layer * k..row_ids.len()).step_by(stride) {
                    ids.extend_from_slice(&row_ids[start..start + k]);
                    weights.extend_from_slice(&row_weights[start..start + k]);
                }
            }
            self.ids[layer].append(ids)?;
            self.weights[layer].append(weights)?;
        }
        Ok(())
    }
}

/// Reads `/routing`.
pub(crate) struct RoutingReader {
    layout: RoutingLayout,
    phases: Vec<PhaseReader>,
}

struct PhaseReader {
    phase: Phase,
    attempt: Column,
    group: Column,
    step: Column,
    counts: Vec<Column>,
    totals: Column,
    tokens: Option<TokenReader>,
}

struct TokenReader {
    offsets: Offsets,
    ids: Vec<Column>,
    weights: Vec<Column>,
}

impl RoutingReader {
    /// Opens what is there, of `rows` rows.
    pub fn open(at: &Group, rows: usize) -> Result<RoutingReader> {
        let layers = |phase: Phase| match at.link_exists(phase.name()) {
            true => {
                let group = at.group(phase.name()).context("cannot open a group of /routing")?;
                get_texts(&group, "layers")
            }
            false => Ok(Vec::new()),
        };
        let layout = RoutingLayout {
            encoder_layers: layers(Phase::Encode)?,
            decoder_layers: layers(Phase::Decode)?,
            experts: get_number::<u64>(at, "experts")? as usize,
            top_k: get_number::<u64>(at, "top_k")? as usize,
        };
        let with_layers = Phase::ALL.into_iter().filter(|phase| !layout.layers(*phase).is_empty());
        let phases = with_layers
            .map(|phase| PhaseReader::open(at, &layout, phase, rows))
            .collect::<Result<_>>()?;
        Ok(RoutingReader { layout, phases })
    }

    /// Layers and experts.
    pub fn layout(&self) -> &RoutingLayout {
        &self.layout
    }

    fn phase(&self, phase: Phase) -> Option<&PhaseReader> {
        self.phases.iter().find(|reader| reader.phase == phase)
    }

    /// Entries of the trace.
    pub fn steps(&self, phase: Phase) -> usize {
        self.phase(phase).map_or(0, |reader| reader.step.rows())
    }

    /// Tokens to each expert over all steps, `[layers, experts]`.
    pub fn totals(&self, phase: Phase) -> Result<Vec<u64>> {
        self.phase(phase)
            .map_or(Ok(Vec::new()), |reader| reader.totals.read(0..reader.totals.rows()))
    }

    /// Step numbers of entries of the trace.
    pub fn step_numbers(&self, phase: Phase, entries: Range<usize>) -> Result<Vec<u64>> {
        self.phase(phase)
            .map_or(Ok(Vec::new()), |reader| reader.step.read(entries))
    }

    /// Entries of the trace.
    pub fn read_steps(&self, phase: Phase, entries: Range<usize>) -> Result<Vec<StepCounts>> {
        let Some(reader) = self.phase(phase) else {
            return Ok(Vec::new());
        };
        let attempts: Vec<u32> = reader.attempt.read(entries.clone())?;
        let groups: Vec<u32> = reader.group.read(entries.clone())?;
        let numbers: Vec<u64> = reader.step.read(entries.clone())?;
        let experts = self.layout.experts;
        let mut steps: Vec<StepCounts> = attempts
            .into_iter()
            .zip(groups)
            .zip(numbers)
            .map(|((attempt, group), step)| StepCounts {
                attempt,
                group,
                step,
                phase,
                counts: Vec::with_capacity(reader.counts.len() * experts),
            })
            .collect();
        for column in &reader.counts {
            let counts: Vec<u32> = column.read(entries.clone())?;
            for (step, counts) in steps.iter_mut().zip(counts.chunks_exact(experts)) {
                step.counts.extend_from_slice(counts);
            }
        }
        Ok(steps)
    }

    /// Bytes of the routes of each of `rows`.
    pub fn sizes(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        let mut sizes = vec![0; rows.len()];
        for tokens in self.phases.iter().filter_map(|reader| reader.tokens.as_ref()) {
            let token = (6 * self.layout.top_k * tokens.ids.len()) as u64;
            let lengths = tokens.offsets.lengths(rows.clone())?;
            sizes
                .iter_mut()
                .zip(lengths)
                .for_each(|(size, length)| *size += length * token);
        }
        Ok(sizes)
    }

    /// Fills in the routes of `rows`, which are rows `range` of the file; a row without routed tokens has none.
    pub fn fill_routes(&self, range: Range<usize>, rows: &mut [Row]) -> Result<()> {
        for reader in &self.phases {
            if let Some(tokens) = &reader.tokens {
                tokens.fill(reader.phase, self.layout.top_k, range.clone(), rows)?;
            }
        }
        for row in rows {
            row.routes = row.routes.take().filter(|routes| *routes != RowRoutes::default());
        }
        Ok(())
    }
}

impl PhaseReader {
    fn open(at: &Group, layout: &RoutingLayout, phase: Phase, rows: usize) -> Result<PhaseReader> {
        let missing = || format!("{} has no group /routing/{}", at.filename(), phase.name());
        let at = at.group(phase.name()).with_context(missing)?;
        let groups: Vec<Group> = layout
            .layers(phase)
            .iter()
            .map(|name| {
                at.group(name)
                    .with_context(|| format!("{} has no group {}/{name}", at.filename(), at.name()))
            })
            .collect::<Result<_>>()?;
        let of_layers = |name: &str| {
            groups
                .iter()
                .map(|layer| Column::open(layer, name))
                .collect::<Result<Vec<_>>>()
        };
        let tokens = match at.link_exists("offsets") {
            true => {
                let (ids, weights, offsets) = (of_layers("ids")?, of_layers("weights")?, Offsets::open(&at, rows)?);
                ids.iter()
                    .chain(&weights)
                    .try_for_each(|column| offsets.check(column))?;
                Some(TokenReader { offsets, ids, weights })
            }
            false => None,
        };
        Ok(PhaseReader {
            phase,
            attempt: Column::open(&at, "attempt")?,
            group: Column::open(&at, "group")?,
            step: Column::open(&at, "step")?,
            counts: of_layers("counts")?,
            totals: Column::open(&at, "totals")?,
            tokens,
        })
    }
}

impl TokenReader {
    fn fill(&self, phase: Phase, k: usize, range: Range<usize>, rows: &mut [Row]) -> Result<()> {
        let bounds = self.offsets.read(range)?;
        let tokens = bounds[0]..bounds[bounds.len() - 1];
        let (mut ids, mut weights) = (Vec::new(), Vec::new());
        for (of_ids, of_weights) in self.ids.iter().zip(&self.weights) {
            ids.push(of_ids.read::<u16>(tokens.clone())?);
            weights.push(of_weights.read::<f32>(tokens.clone())?);
        }
        for (row, bound) in rows.iter_mut().zip(bounds.windows(2)) {
            let (row_ids, row_weights) = row.routes.get_or_insert_with(RowRoutes::default).of_mut(phase);
            for token in bound[0] - tokens.start..bound[1] - tokens.start {
                for layer in 0..ids.len() {
                    row_ids.extend_from_slice(&ids[layer][token * k..(token + 1) * k]);
                    row_weights.extend_from_slice(&weights[layer][token * k..(token + 1) * k]);
                }
            }
        }
        Ok(())
    }
}
