//! `/scores`: log-probabilities of tokens, and what goes with each: its rank, the likeliest tokens in its place.

use super::column::{About, Column, Ragged};
use super::row::Row;
use anyhow::{ensure, Result};
use hdf5::Group;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Which datasets there are besides the log-probabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ScoreContents {
    /// `ranks`.
    pub ranks: bool,
    /// Tokens in `top_ids` and `top_logprobs` for each scored one; 0 without.
    pub top: usize,
}

impl ScoreContents {
    /// What these rows need.
    pub fn of(rows: &[Row]) -> ScoreContents {
        let scored = rows.iter().find(|row| !row.logprobs.is_empty());
        ScoreContents {
            ranks: rows.iter().any(|row| !row.ranks.is_empty()),
            top: scored.map_or(0, |row| row.top_ids.len() / row.logprobs.len()),
        }
    }

    /// What both need.
    pub fn join(&mut self, other: &ScoreContents) -> Result<()> {
        self.ranks |= other.ranks;
        ensure!(
            self.top == 0 || other.top == 0 || self.top == other.top,
            "segments disagree about the likeliest tokens that are kept: {} and {}",
            self.top,
            other.top
        );
        self.top = self.top.max(other.top);
        Ok(())
    }
}

/// The datasets of `/scores`, written or read.
pub(crate) struct ScoreColumns {
    logprobs: Ragged,
    ranks: Option<Column>,
    /// Ids and log-probabilities, `[scored, top]`.
    top: Option<(Column, Column)>,
}

impl ScoreColumns {
    /// Makes the datasets, empty.
    pub fn create(group: &Group, contents: &ScoreContents, expected: u64) -> Result<ScoreColumns> {
        let about = |long_name, units| About { long_name, units };
        let tokens = expected.saturating_mul(32);
        let logprobs = about("log-probability of each token", "nat");
        let ranks = || {
            let ranks = about("rank of each token among all, the likeliest 1", "1");
            Column::numbers::<u32>(group, "ranks", None, tokens, ranks)
        };
        let top = || -> Result<(Column, Column)> {
            let ids = about("the likeliest tokens in place of each", "1");
            let logprobs = about("their log-probabilities", "nat");
            let width = Some(contents.top);
            Ok((
                Column::numbers::<u32>(group, "top_ids", width, tokens, ids)?,
                Column::numbers::<f32>(group, "top_logprobs", width, tokens, logprobs)?,
            ))
        };
        Ok(ScoreColumns {
            logprobs: Ragged::create::<f32>(group, "logprobs", expected, logprobs)?,
            ranks: contents.ranks.then(ranks).transpose()?,
            top: (contents.top > 0).then(top).transpose()?,
        })
    }

    /// Opens the datasets, of `rows` rows.
    ///
    /// # Errors
    /// One is missing, or has another length than the offsets or its twin say.
    pub fn open(group: &Group, rows: usize) -> Result<ScoreColumns> {
        let scores = ScoreColumns {
            logprobs: Ragged::open(group, "logprobs", rows)?,
            ranks: Column::open_if_there(group, "ranks")?,
            top: match Column::open_if_there(group, "top_ids")? {
                Some(ids) => Some((ids, Column::open(group, "top_logprobs")?)),
                None => None,
            },
        };
        let top = scores.top.iter().flat_map(|(ids, logprobs)| [ids, logprobs]);
        for column in scores.ranks.iter().chain(top) {
            scores.logprobs.check(column)?;
        }
        if let Some((ids, logprobs)) = &scores.top {
            let ((name, file), (twin, _)) = (logprobs.place(), ids.place());
            ensure!(
                logprobs.width() == ids.width(),
                "{file} is damaged: {name} has {} numbers a token, {twin} {}",
                logprobs.width(),
                ids.width()
            );
        }
        Ok(scores)
    }

    /// Bytes that are kept of each of `rows`.
    pub fn sizes(&self, rows: Range<usize>) -> Result<Vec<u64>> {
        let top = self.top.as_ref().map_or(0, |(ids, _)| 2 * ids.width());
        let token = 4 * (1 + self.ranks.iter().len() + top) as u64;
        Ok(self
            .logprobs
            .lengths(rows)?
            .iter()
            .map(|scored| scored * token)
            .collect())
    }

    /// Appends rows.
    pub fn append(&mut self, rows: &[Row]) -> Result<()> {
        self.logprobs.append(rows.iter().map(|row| row.logprobs.as_slice()))?;
        if let Some(ranks) = &mut self.ranks {
            ranks.append(rows.iter().flat_map(|row| row.ranks.iter().copied()).collect())?;
        }
        if let Some((ids, logprobs)) = &mut self.top {
            ids.append(rows.iter().flat_map(|row| row.top_ids.iter().copied()).collect())?;
            logprobs.append(rows.iter().flat_map(|row| row.top_logprobs.iter().copied()).collect())?;
        }
        Ok(())
    }

    /// Reads what is kept of `rows` into `into`.
    pub fn fill(&self, rows: Range<usize>, into: &mut [Row]) -> Result<()> {
        let bounds = self.logprobs.bounds(rows.clone())?;
        let scored = bounds[0]..bounds[bounds.len() - 1];
        let part = |i: usize, width: usize| (bounds[i] - bounds[0]) * width..(bounds[i + 1] - bounds[0]) * width;
        for (row, logprobs) in into.iter_mut().zip(self.logprobs.read(rows)?) {
            row.logprobs = logprobs;
        }
        if let Some(ranks) = &self.ranks {
            let all: Vec<u32> = ranks.read(scored.clone())?;
            for (i, row) in into.iter_mut().enumerate() {
                row.ranks = all[part(i, 1)].to_vec();
            }
        }
        if let Some((ids, logprobs)) = &self.top {
            let (width, ids, logprobs): (_, Vec<u32>, Vec<f32>) =
                (ids.width(), ids.read(scored.clone())?, logprobs.read(scored)?);
            for (i, row) in into.iter_mut().enumerate() {
                row.top_ids = ids[part(i, width)].to_vec();
                row.top_logprobs = logprobs[part(i, width)].to_vec();
            }
        }
        Ok(())
    }
}
