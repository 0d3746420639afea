//! What is kept: rows, the routes of their tokens, the trace of expert loads, and timings.

use anyhow::{bail, ensure, Result};
use serde::{Deserialize, Serialize};

/// What became of a row; stored as `/output/status` (u8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Done as asked.
    #[default]
    Ok = 0,
    /// The input was blank, so the output is blank.
    Blank = 1,
    /// The input was cut to the model's length.
    InputCut = 2,
    /// The output reached its length limit before its end.
    LengthLimit = 3,
    /// The row could not be done.
    Failed = 4,
}

impl Status {
    /// Every status, in the order of its number.
    pub const ALL: [Status; 5] = [
        Status::Ok,
        Status::Blank,
        Status::InputCut,
        Status::LengthLimit,
        Status::Failed,
    ];
    /// The dataset's attribute `meaning`.
    pub const MEANING: &'static str =
        "0 ok, 1 blank, 2 input cut to the model's length, 3 output reached its length limit, 4 failed";

    /// A short name, as `sluice show` prints it.
    pub fn name(self) -> &'static str {
        ["ok", "blank", "input-cut", "length-limit", "failed"][self as usize]
    }

    /// The status of a stored number; an error names an unknown one.
    pub fn from_u8(number: u8) -> Result<Self> {
        match Self::ALL.get(number as usize) {
            Some(status) => Ok(*status),
            None => bail!("/output/status holds {number}, expected 0 to 4: was the file written by a newer sluice?"),
        }
    }
}

/// One finished row: input `index` and all that came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Line or record number in the input, from 0.
    pub index: u64,
    /// `custom_id`, where the input has one. An empty id reads back as none.
    pub id: Option<String>,
    /// The source text. A NUL is stored as U+2400 (HDF5 strings end at a NUL).
    pub input: String,
    /// The translation or generated text, or the target of a pair that is scored; NUL as in `input`.
    pub output: String,
    /// What became of the row.
    pub status: Status,
    /// What the decoder ranks by, or the sum of the scored tokens' log-probabilities (nat).
    pub score: f32,
    /// Generated ids after the decoder's start token, or ids of the text that is scored, `[tokens]`.
    pub ids: Vec<u32>,
    /// Log-probability of each token (nat), `[scored]`; empty unless kept.
    pub logprobs: Vec<f32>,
    /// Rank of each of those tokens among all, the likeliest 1, `[scored]`; empty unless kept.
    pub ranks: Vec<u32>,
    /// The likeliest tokens in place of each, `[scored, top]`; empty unless kept.
    pub top_ids: Vec<u32>,
    /// Their log-probabilities (nat), `[scored, top]`.
    pub top_logprobs: Vec<f32>,
    /// Language of the source, empty where the model has none.
    pub source_lang: String,
    /// Language of the target, empty where the model has none.
    pub target_lang: String,
    /// Experts chosen per token; filled with `--routing tokens`.
    pub routes: Option<RowRoutes>,
}

impl Row {
    /// Of a row of a `score` job the text that is scored: the input, or of a pair its target.
    pub fn scored_text(&self) -> &str {
        if self.output.is_empty() {
            &self.input
        } else {
            &self.output
        }
    }

    /// Bytes of its texts: of numbers the tables say how many there are, of texts they don't.
    pub(crate) fn text_bytes(&self) -> u64 {
        let texts = [&self.input, &self.output, &self.source_lang, &self.target_lang];
        let all = texts.into_iter().chain(&self.id).map(String::len);
        all.sum::<usize>() as u64
    }
}

/// The experts that a row's tokens went to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowRoutes {
    /// Chosen experts, `[source tokens, encoder MoE layers, k]`.
    pub encoder_ids: Vec<u16>,
    /// Their weights, same shape.
    pub encoder_weights: Vec<f32>,
    /// Chosen experts, `[generated positions, decoder MoE layers, k]`.
    pub decoder_ids: Vec<u16>,
    /// Their weights, same shape.
    pub decoder_weights: Vec<f32>,
}

impl RowRoutes {
    /// Ids and weights of one phase.
    pub(crate) fn of(&self, phase: Phase) -> (&[u16], &[f32]) {
        match phase {
            Phase::Encode => (&self.encoder_ids, &self.encoder_weights),
            Phase::Decode => (&self.decoder_ids, &self.decoder_weights),
        }
    }

    /// Ids and weights of one phase, to be filled.
    pub(crate) fn of_mut(&mut self, phase: Phase) -> (&mut Vec<u16>, &mut Vec<f32>) {
        match phase {
            Phase::Encode => (&mut self.encoder_ids, &mut self.encoder_weights),
            Phase::Decode => (&mut self.decoder_ids, &mut self.decoder_weights),
        }
    }
}

/// The phases of a group step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Encoding of sources (prefill).
    Encode = 0,
    /// One decoding step.
    Decode = 1,
}

impl Phase {
    /// Both, in order.
    pub const ALL: [Phase; 2] = [Phase::Encode, Phase::Decode];

    /// `encode` or `decode`: the group's name under `/routing`.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Encode => "encode",
            Phase::Decode => "decode",
        }
    }
}

/// Which layers route, over how many experts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoutingLayout {
    /// Names of the MoE layers that run in the encode phase, such as `encoder.layers.1`, in order.
    pub encoder_layers: Vec<String>,
    /// Names of the MoE layers that run in a decoding step, in order.
    pub decoder_layers: Vec<String>,
    /// Experts a layer.
    pub experts: usize,
    /// Experts a token.
    pub top_k: usize,
}

impl RoutingLayout {
    /// The layers that run in `phase`.
    pub fn layers(&self, phase: Phase) -> &[String] {
        match phase {
            Phase::Encode => &self.encoder_layers,
            Phase::Decode => &self.decoder_layers,
        }
    }

    /// Refuses layouts that can't be stored: no experts, no choices, names that HDF5 would read as paths.
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.experts > 0, "a routing layout without experts can't be stored");
        ensure!(self.top_k > 0, "a routing layout with top-k 0 can't be stored");
        for phase in Phase::ALL {
            for (i, name) in self.layers(phase).iter().enumerate() {
                ensure!(
                    !name.is_empty() && name != "." && !name.contains(['/', '\0']),
                    "routing layer name {name:?} can't be stored: it must be non-empty, without '/' and NUL"
                );
                ensure!(
                    !self.layers(phase)[..i].contains(name),
                    "routing layer {name:?} is listed twice"
                );
            }
        }
        Ok(())
    }
}

/// How many tokens each expert got in one group step, as far as they belong to rows of the segment that holds this.
///
/// Counts are credited when their row is finished, so that what a killed run did not keep is counted once, by the run
/// that finishes it. Merging adds up entries of equal (attempt, group, step, phase).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepCounts {
    /// Which start of the job the step belongs to, from 1.
    pub attempt: u32,
    /// Expert-parallel group.
    pub group: u32,
    /// The group's step number within the attempt.
    pub step: u64,
    /// Which part of the step.
    pub phase: Phase,
    /// Tokens, `[layers of that phase, experts]`.
    pub counts: Vec<u32>,
}

/// What one rank spent so far in one attempt: cumulative, so that the last one counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// The rank.
    pub rank: u32,
    /// Which start of the job, from 1.
    pub attempt: u32,
    /// Name, seconds and bytes of each phase.
    pub phases: Vec<(String, f64, u64)>,
}

/// One row of `/timing`.
#[derive(Clone, Debug, PartialEq)]
pub struct TimingEntry {
    /// Which start of the job, from 1.
    pub attempt: u32,
    /// The rank.
    pub rank: u32,
    /// Name of the phase.
    pub phase: String,
    /// Seconds spent.
    pub seconds: f64,
    /// Bytes moved.
    pub bytes: u64,
}
