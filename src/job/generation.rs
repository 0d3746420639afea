//! How a job searches: the command line over what the checkpoint says.

use super::run::{size, Done, Opened, Place, Planned};
use crate::checkpoint::generation::{EarlyStopping as Stored, GenerationDefaults};
use crate::cli::generation::{self as flags, BatchTokens, GenerationArgs};
use crate::decode::batch::{Batch, Finished};
use crate::decode::limits::{Demand, Limits};
use crate::decode::search::{EarlyStopping, Settings};
use crate::model::cache::Caches;
use crate::model::{Architecture, Model};
use crate::results::{Row, Status};
use anyhow::{anyhow, ensure, Result};
use serde_json::{json, Value};
use std::path::Path;

/// What `generation_config.json` asks for in vain.
pub fn not_followed(dir: &Path, defaults: &GenerationDefaults) -> Vec<String> {
    let warn = |what: &String| {
        format!(
            "{}: generation_config.json asks for {what}, which is not followed",
            dir.display()
        )
    };
    defaults.not_followed.iter().map(warn).collect()
}

/// The command line over the checkpoint's defaults. Lengths count the decoder's start token.
///
/// # Errors
/// Names the option, or the key of `generation_config.json`, that doesn't fit.
pub fn settings(
    args: &GenerationArgs,
    defaults: &GenerationDefaults,
    architecture: &dyn Architecture,
) -> Result<Settings> {
    let (special, vocab_size) = (architecture.special_tokens(), architecture.shape().vocab_size);
    let max_length = match (args.max_new_tokens, args.max_length) {
        (Some(new), _) => new + 1,
        (None, Some(length)) => length,
        (None, None) => defaults.length_limit(1),
    };
    ensure!(
        max_length >= 2,
        "generation_config.json: max_length {max_length} leaves no room for a token behind the start token; give --max-new-tokens"
    );
    let length_penalty = args.length_penalty.unwrap_or(defaults.length_penalty);
    ensure!(
        length_penalty.abs() <= 100.0,
        "length penalty {length_penalty} (--length-penalty, or generation_config.json): expected -100 to 100"
    );
    let least_new = args.min_new_tokens.or(defaults.min_new_tokens).map_or(0, |n| n + 1);
    let min_length = defaults.min_length.unwrap_or(0).max(least_new);
    ensure!(
        min_length <= max_length,
        "--min-new-tokens: outputs of {} tokens at least and {} at most; lower one or raise --max-new-tokens",
        min_length.saturating_sub(1),
        max_length - 1
    );
    let early_stopping = match (args.early_stopping, defaults.early_stopping) {
        (Some(flags::EarlyStopping::True), _) | (None, Stored::True) => EarlyStopping::True,
        (Some(flags::EarlyStopping::False), _) | (None, Stored::False) => EarlyStopping::False,
        (Some(flags::EarlyStopping::Never), _) | (None, Stored::Never) => EarlyStopping::Never,
    };
    let eos = if defaults.eos_token_ids.is_empty() {
        special.eos.clone()
    } else {
        defaults.eos_token_ids.clone()
    };
    let settings = Settings {
        beams: args.num_beams.unwrap_or(defaults.num_beams).max(1),
        max_length,
        min_length,
        length_penalty,
        early_stopping,
        no_repeat_ngram: args.no_repeat_ngram_size.unwrap_or(defaults.no_repeat_ngram_size),
        start: defaults
            .decoder_start_token_id
            .or(special.decoder_start)
            .unwrap_or_default(),
        eos,
        forced_eos: defaults.forced_eos_token_id,
        sampling: None,
    };
    for id in settings.eos.iter().chain(&settings.forced_eos).chain([&settings.start]) {
        ensure!(
            (*id as usize) < vocab_size,
            "generation_config.json: token {id} is outside the vocabulary of {} (decoder_start_token_id, eos_token_id, \
             forced_eos_token_id)",
            vocab_size
        );
    }
    ensure!(
        settings.candidates() <= vocab_size,
        "--num-beams: {} beams need {} candidates a step, the vocabulary has {}",
        settings.beams,
        settings.candidates(),
        vocab_size
    );
    Ok(settings)
}

/// What results depend on.
pub fn fields(args: &GenerationArgs, s: &Settings) -> Vec<(&'static str, Value)> {
    vec![
        ("num_beams", json!(s.beams)),
        ("max_length", json!(s.max_length)),
        ("min_length", json!(s.min_length)),
        ("length_penalty", json!(s.length_penalty)),
        (
            "early_stopping",
            json!(format!("{:?}", s.early_stopping).to_lowercase()),
        ),
        ("no_repeat_ngram_size", json!(s.no_repeat_ngram)),
        ("forced_eos_token_id", json!(s.forced_eos)),
        ("scores", json!(args.scores)),
    ]
}

/// A job that searches, about to be given room.
pub struct Generating<'a> {
    /// How it searches.
    pub settings: &'a Settings,
    /// Source tokens at once.
    pub batch_tokens: BatchTokens,
    /// Outputs of each row.
    pub outputs: usize,
    /// Tokens above which a source's length is more likely a slip of the corpus than what the others have.
    pub longest: usize,
}

impl Generating<'_> {
    /// What a rank takes on at once, cut to its share of the memory that is left.
    ///
    /// # Errors
    /// When not even one row fits.
    pub fn plan(&self, net: &dyn Model, place: &Place) -> Result<Planned<Batch>> {
        let (settings, shape) = (self.settings, net.shape());
        let row = Caches::row_bytes(net.cache_type(), shape);
        let demand = Demand {
            experts: shape.experts,
            top_k: shape.top_k,
            ranks: place.ranks,
            outputs: self.outputs,
            mean_tokens: place.mean_tokens.min(self.longest),
        };
        let (wanted, allowed) = match self.batch_tokens {
            BatchTokens::Tokens(tokens) => {
                let wanted = Limits::of(tokens, self.outputs);
                (wanted, wanted)
            }
            BatchTokens::Auto => {
                let wanted = demand.limits(settings.beams);
                (wanted, wanted.scaled(place.room / 2, settings, row))
            }
        };
        let limits = allowed.fit(place.room, settings, row).map_err(|needed| {
            anyhow!(
                "the least caches (--batch-tokens of source, one sentence of output at full length) come to {}, this rank's \
                 share of the free memory is {}: give a lower --batch-tokens, --max-new-tokens or --num-beams",
                size(needed),
                size(place.room)
            )
        })?;
        let caches = limits.cache_bytes(settings, row);
        if limits != wanted && place.speaks {
            let [n, all] = [limits.outputs, wanted.outputs].map(|outputs| outputs / limits.per_sentence);
            log::info!(
                "{n} sentences in flight instead of {all}: the free memory of a rank is {}, caches take {} of it at most",
                size(place.room),
                size(caches)
            );
        }
        Ok(Planned {
            work: Batch::new(settings.clone(), limits, net).with_mean(demand.mean_tokens),
            held: caches,
            in_flight: format!("{} outputs and {} source tokens", limits.outputs, limits.tokens),
        })
    }
}

/// The row of a finished search: `row` with ids, score and status. `cut` says whether the input was cut to the model's
/// length.
pub fn done(mut row: Row, finished: Finished, settings: &Settings, cut: bool, scores: bool, opened: &Opened) -> Done {
    let h = finished.hypothesis;
    let ended = h.ids.last().is_some_and(|id| settings.eos.contains(id));
    row.status = match (cut, ended) {
        (_, false) => Status::LengthLimit,
        (true, true) => Status::InputCut,
        (false, true) => Status::Ok,
    };
    row.score = h.score;
    row.ids = h.ids[1..].to_vec();
    let top_k = opened.architecture.shape().top_k;
    let routes = finished.trace.map(|trace| {
        let tokens = trace.tokens(top_k, &h.path);
        (trace, tokens)
    });
    if scores {
        row.logprobs = h.logprobs;
    }
    Done {
        tokens: row.ids.len() as u64,
        row,
        routes,
    }
}
