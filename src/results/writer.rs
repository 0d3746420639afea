//! Writing rows into the datasets of a segment or of the finished file.

use super::column::{About, Column, Ragged};
use super::routing::RoutingWriter;
use super::row::{RoutingLayout, Row, Status, StepCounts};
use super::scores::{ScoreColumns, ScoreContents};
use anyhow::{anyhow, Context, Result};
use hdf5::{File, Group};
use serde::{Deserialize, Serialize};

/// Which of the optional datasets there are.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// `/output/text`: of a `score` job only where it has pairs.
    pub output: bool,
    /// `/input/id`: where a row has one.
    pub ids: bool,
    /// `/scores`: where a row has log-probabilities.
    pub logprobs: bool,
    /// What else there is of `/scores`.
    #[serde(default)]
    pub scores: ScoreContents,
    /// Chosen experts per token: where a row has routes.
    pub routes: bool,
    /// `/routing`.
    pub layout: Option<RoutingLayout>,
}

impl Contents {
    /// What these rows need.
    pub fn of(rows: &[Row], output: bool, layout: Option<&RoutingLayout>) -> Contents {
        Contents {
            output,
            ids: rows.iter().any(|row| row.id.as_ref().is_some_and(|id| !id.is_empty())),
            logprobs: rows.iter().any(|row| !row.logprobs.is_empty()),
            scores: ScoreContents::of(rows),
            routes: layout.is_some() && rows.iter().any(|row| row.routes.is_some()),
            layout: layout.cloned(),
        }
    }

    /// What both need.
    pub fn join(&mut self, other: &Contents) -> Result<()> {
        self.output |= other.output;
        self.ids |= other.ids;
        self.logprobs |= other.logprobs;
        self.scores.join(&other.scores)?;
        self.routes |= other.routes;
        match (&self.layout, &other.layout) {
            (Some(one), Some(two)) => {
                anyhow::ensure!(
                    one == two,
                    "segments disagree about the MoE layers: {one:?} and {two:?}"
                );
            }
            (None, Some(layout)) => self.layout = Some(layout.clone()),
            (_, None) => {}
        }
        Ok(())
    }
}

/// The tables of a file, growing by blocks of rows.
pub(crate) struct RowWriter {
    index: Column,
    id: Option<Column>,
    input: Column,
    source_lang: Column,
    target_lang: Column,
    output: Option<Column>,
    bytes: Column,
    status: Column,
    score: Column,
    ids: Ragged,
    scores: Option<ScoreColumns>,
    routing: Option<RoutingWriter>,
}

impl RowWriter {
    /// Makes the datasets, empty. `expected` rows decide chunk sizes only.
    pub fn create(file: &File, contents: &Contents, expected: u64) -> Result<RowWriter> {
        let input = make_group(file, "input", "what was read")?;
        let output = make_group(file, "output", "what was made of it")?;
        let tokens = make_group(file, "tokens", "token ids of the outputs")?;
        let text = |group: &Group, name: &str, long_name| {
            Column::texts(
                group,
                name,
                expected,
                About {
                    long_name,
                    units: "UTF-8",
                },
            )
        };
        let status = About {
            long_name: "what became of the row",
            units: "1",
        };
        let status = Column::numbers::<u8>(&output, "status", None, expected, status)?;
        status.attribute("meaning", Status::MEANING)?;
        let bytes = About {
            long_name: "bytes of the row's texts, the input's included",
            units: "byte",
        };
        let index = About {
            long_name: "line or record number in the input, from 0",
            units: "1",
        };
        let score = About {
            long_name: "what the decoder ranks by, from log-probabilities",
            units: "nat",
        };
        let ids = About {
            long_name: "token ids after the decoder's start token",
            units: "1",
        };
        Ok(RowWriter {
            index: Column::numbers::<u64>(&input, "index", None, expected, index)?,
            id: contents
                .ids
                .then(|| text(&input, "id", "custom_id of the input"))
                .transpose()?,
            input: text(&input, "text", "input text")?,
            source_lang: text(&input, "source_lang", "language of the input")?,
            target_lang: text(&input, "target_lang", "language of the output")?,
            output: contents
                .output
                .then(|| text(&output, "text", "translation or generated text"))
                .transpose()?,
            bytes: Column::numbers::<u64>(&output, "bytes", None, expected, bytes)?,
            status,
            score: Column::numbers::<f32>(&output, "score", None, expected, score)?,
            ids: Ragged::create::<u32>(&tokens, "ids", expected, ids)?,
            scores: contents
                .logprobs
                .then(|| {
                    let group = make_group(file, "scores", "how sure the model was")?;
                    ScoreColumns::create(&group, &contents.scores, expected)
                })
                .transpose()?,
            routing: match &contents.layout {
                Some(layout) => {
                    let group = make_group(file, "routing", "what the experts did")?;
                    Some(RoutingWriter::create(&group, layout, contents.routes, expected)?)
                }
                None => None,
            },
        })
    }

    /// Appends rows in the order given.
    pub fn append(&mut self, rows: &[Row]) -> Result<()> {
        self.index.append(rows.iter().map(|row| row.index).collect())?;
        if let Some(id) = &mut self.id {
            id.append_texts(rows.iter().map(|row| row.id.as_deref().unwrap_or("")))?;
        }
        self.input.append_texts(rows.iter().map(|row| row.input.as_str()))?;
        self.source_lang
            .append_texts(rows.iter().map(|row| row.source_lang.as_str()))?;
        self.target_lang
            .append_texts(rows.iter().map(|row| row.target_lang.as_str()))?;
        if let Some(output) = &mut self.output {
            output.append_texts(rows.iter().map(|row| row.output.as_str()))?;
        }
        self.bytes.append(rows.iter().map(Row::text_bytes).collect())?;
        self.status.append(rows.iter().map(|row| row.status as u8).collect())?;
        self.score.append(rows.iter().map(|row| row.score).collect())?;
        self.ids.append(rows.iter().map(|row| row.ids.as_slice()))?;
        if let Some(scores) = &mut self.scores {
            scores.append(rows)?;
        }
        match &mut self.routing {
            Some(routing) => routing.append_rows(rows),
            None => Ok(()),
        }
    }

    /// Appends entries of the trace of expert loads, in order.
    pub fn append_steps(&mut self, steps: &[StepCounts]) -> Result<()> {
        match &mut self.routing {
            Some(routing) => routing.append_steps(steps),
            None => Ok(()),
        }
    }

    /// Ends the tables.
    pub fn finish(self) -> Result<()> {
        match self.routing {
            Some(routing) => routing.finish(),
            None => Ok(()),
        }
    }
}

/// Makes a group with its `long_name`.
pub(crate) fn make_group(at: &Group, name: &str, long_name: &str) -> Result<Group> {
    let group = at
        .create_group(name)
        .with_context(|| format!("cannot make the group {name} in {}", at.filename()))?;
    super::attribute::set_text(&group, "long_name", long_name)?;
    Ok(group)
}

/// Makes an HDF5 file with `fill`, closes it and makes it durable. What HDF5 says at closing (a full disk, say) counts.
pub(crate) fn make_file(path: &std::path::Path, fill: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    let context = || {
        format!(
            "cannot write {}: is the disk full or the folder not writable?",
            path.display()
        )
    };
    let file = File::create(path).with_context(context)?;
    fill(&file)?;
    // HDF5's own messages have line breaks.
    let one_line = |error: hdf5::Error| anyhow!(error.to_string().replace('\n', " "));
    file.flush().map_err(one_line).with_context(context)?;
    file.close().map_err(one_line).with_context(context)?;
    super::durable::sync_file(path)
}
