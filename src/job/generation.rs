//! How a job searches: the command line over what the checkpoint says.

use super::run::{Done, Opened, Place, Planned};
use crate::checkpoint::generation::{EarlyStopping as Stored, GenerationDefaults};
use crate::cli::generation::{self as flags, BatchTokens, GenerationArgs};
use crate::decode::batch::{Batch, Finished};
use crate::decode::limits::{Costs, Demand, Limits};
use crate::decode::lockstep::{ENCODE_TOKENS, ENCODE_TOKENS_BUFFERED, PART, PART_BUFFERED};
use crate::decode::search::{EarlyStopping, Settings};
use crate::metrics::memory::size;
use crate::model::cache::{CacheType, Caches};
use crate::model::{Architecture, Model, Shape};
use crate::results::{Row, Status};
use anyhow::{anyhow, ensure, Result};
use serde_json::{json, Value};
use std::path::Path;

/// What `generation_config.json` asks for in vain.
pub fn not_followed(dir: &Path, defaults: &GenerationDefaults) -> Vec<String> {
    defaults
        .not_followed
        .iter()
        .map(|what| not_followed_warning(dir, what))
        .collect()
}

/// The warning about something that `generation_config.json` asks for in vain.
pub fn not_followed_warning(dir: &Path, what: &str) -> String {
    format!(
        "{}: generation_config.json asks for {what}, which is not followed",
        dir.display()
    )
}

/// Below this length, its prompt included, an output of a decoder-only model may not end: `min_length` of
/// `generation_config.json`, where nothing says how many new tokens there are to be.
pub fn least_with_prompt(
    args: &GenerationArgs,
    defaults: &GenerationDefaults,
    architecture: &dyn Architecture,
) -> usize {
    let new = args.min_new_tokens.or(defaults.min_new_tokens);
    let counts_prompt = new.is_none() && !architecture.shape().encoder;
    defaults.min_length.filter(|_| counts_prompt).unwrap_or(0)
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
    let encodes = architecture.shape().encoder;
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
    let (asks, min_length) = match (args.min_new_tokens, defaults.min_new_tokens, defaults.min_length) {
        (Some(new), _, _) => ("--min-new-tokens", new + 1),
        (None, Some(new), _) => ("generation_config.json: min_new_tokens", new + 1),
        (None, None, Some(length)) if encodes => ("generation_config.json: min_length", length),
        (None, None, _) => ("", 0),
    };
    ensure!(
        min_length <= max_length,
        "{asks}: outputs of {} tokens at least, and of {} at most (--max-new-tokens, --max-length, or \
         generation_config.json); give a lower --min-new-tokens, or let outputs be longer",
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
    let start = defaults.decoder_start_token_id.or(special.decoder_start);
    ensure!(
        start.is_some() || !encodes,
        "generation_config.json: `decoder_start_token_id` is missing, and config.json has none: outputs have nothing to \
         begin with; add it as the model was trained with it (Switch: its pad_token_id, 0)"
    );
    let settings = Settings {
        beams: args.num_beams.unwrap_or(defaults.num_beams).max(1),
        max_length,
        min_length,
        length_penalty,
        early_stopping,
        no_repeat_ngram: args.no_repeat_ngram_size.unwrap_or(defaults.no_repeat_ngram_size),
        // A decoder-only model goes on from a prompt's last token.
        start: start.unwrap_or_default(),
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

/// Refuses, of a decoder-only model that is not computed at all positions, outputs that no prompt leaves room for; lengths
/// of the checkpoint's or the program's own choice are cut to what there is instead.
///
/// # Errors
/// Names the option and the positions that there are.
pub fn positions(args: &GenerationArgs, shape: &Shape) -> Result<()> {
    let Some(end) = shape.computed else { return Ok(()) };
    let (flag, asked, most) = match (args.max_new_tokens, args.max_length) {
        (Some(new), _) => ("--max-new-tokens", new, end - 1),
        (None, Some(length)) => ("--max-length", length, end),
        (None, None) => return Ok(()),
    };
    ensure!(
        asked <= most,
        "{flag} {asked}: this model is computed up to {end} positions only, the prompt's included (config.json has a \
         `long_factor` for texts beyond them, which is not computed here); give at most {most}"
    );
    Ok(())
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
        let costs = Costs {
            row: Caches::row_bytes(net.cache_type(), shape),
            activations: shape.activation_bytes(),
            whole: if shape.encoder { shape.activation_bytes() } else { 0 },
        };
        let (portion, part) = match place.buffered {
            true => (ENCODE_TOKENS_BUFFERED, PART_BUFFERED),
            false => (ENCODE_TOKENS, PART),
        };
        let portion = portion.min((place.room / 4 / costs.activations.max(1)) as usize).max(1);
        // The sentence that is begun last in a portion is encoded to its end.
        let over = if shape.encoder { self.longest.min(portion) } else { 0 };
        let room = place.room.saturating_sub((portion + over) as u64 * costs.activations);
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
                let scaled = wanted.scaled(room / 2, settings, costs);
                (wanted, scaled.within(room, settings, costs))
            }
        };
        let limits = allowed.fit(room, settings, costs).map_err(|needed| {
            anyhow!(
                "the least caches (--batch-tokens of source, one sentence of output at full length) come to {}, this rank's \
                 share of the free memory is {}: give a lower --batch-tokens, --max-new-tokens or --num-beams",
                size(needed),
                size(room)
            )
        })?;
        let limits = Limits {
            portion,
            part,
            ..limits
        };
        let caches = limits.cache_bytes(settings, costs.row);
        if (limits.tokens, limits.outputs) != (wanted.tokens, wanted.outputs) && place.speaks {
            let cut = |what: &str, [now, before]: [usize; 2]| match now == before {
                true => None,
                false => Some(format!("{now} {what} in flight instead of {before}")),
            };
            let sentences = [limits.outputs, wanted.outputs].map(|outputs| outputs / limits.per_sentence);
            let changes = [
                cut("sentences", sentences),
                cut("source tokens", [limits.tokens, wanted.tokens]),
            ];
            log::info!(
                "{}: the free memory of a rank is {}, caches take {} of it at most",
                changes.into_iter().flatten().collect::<Vec<_>>().join(", "),
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

/// Refuses a source of `tokens` tokens that this rank has no memory for, even alone.
///
/// # Errors
/// What it would need, and what there is.
pub fn room(tokens: usize, batch: &Batch, settings: &Settings, opened: &Opened) -> Result<(), String> {
    let limits = batch.limits();
    if tokens <= limits.longest {
        return Ok(());
    }
    let shape = opened.architecture.shape();
    let row = Caches::row_bytes(CacheType::of(opened.dtype), shape);
    let read = if shape.encoder { tokens } else { limits.portion } as u64 * shape.activation_bytes();
    Err(format!(
        "its {tokens} tokens, and an output of {} at full length, take {}; a rank's share of the free memory does for \
         {} tokens: shorten it, give a lower --max-new-tokens or --num-beams, or fewer ranks a machine",
        settings.max_length - 1,
        size(limits.alone(tokens).cache_bytes(settings, row) + read),
        limits.longest
    ))
}

/// The row of a finished search: `row` with ids, score and status. `cut` says whether the input was cut to the model's
/// length.
pub fn done(mut row: Row, finished: Finished, settings: &Settings, cut: bool, scores: bool) -> Done {
    let h = finished.hypothesis;
    let ended = h.ids.last().is_some_and(|id| settings.eos.contains(id));
    row.status = match (cut, ended) {
        (_, false) => Status::LengthLimit,
        (true, true) => Status::InputCut,
        (false, true) => Status::Ok,
    };
    row.score = h.score;
    row.ids = h.ids[1..].to_vec();
    let routes = finished.trace.map(|trace| {
        let tokens = trace.tokens(&h.path);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::batch::{Output, Request};
    use crate::model::Loading;

    fn refused_where_memory_ends(model: &str) {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(model);
        let opened = Opened::open(&dir, None).unwrap();
        let loading = Loading {
            checkpoint: &opened.checkpoint,
            dtype: opened.dtype,
            threads: 1,
            rank: 0,
            ranks: 1,
            buffered: false,
            progress: &mut |_, _| (),
        };
        let net = opened.architecture.load(loading).unwrap();
        let settings = Settings::plain(2, 101);
        let shape = net.shape();
        let [row, token] = [Caches::row_bytes(net.cache_type(), shape), shape.activation_bytes()];
        let planned = |room, batch_tokens| {
            let place = Place {
                room,
                ranks: 1,
                mean_tokens: 30,
                buffered: false,
                speaks: false,
            };
            let all = Generating {
                settings: &settings,
                batch_tokens,
                outputs: 1,
                longest: usize::MAX,
            };
            all.plan(net.as_ref(), &place).map(|planned| planned.work)
        };
        for room in [5 << 20, 50 << 20, 1 << 30] {
            for tokens in [BatchTokens::Auto, BatchTokens::Tokens(40)] {
                let batch = planned(room, tokens).unwrap();
                let limits = batch.limits();
                // What is on its way through a layer: a portion of prompts; with an encoder a whole source more.
                let read = |tokens: usize| match shape.encoder {
                    true => 2 * limits.portion + tokens,
                    false => limits.portion,
                };
                // That, and a source with its output's two beams at full length.
                let bytes = |tokens| (tokens + 2 * 100) as u64 * row + (read(tokens) + 2) as u64 * token;
                let longest = limits.longest;
                assert!(
                    bytes(longest) <= room && bytes(longest + 1) > room,
                    "{room}: {limits:?}"
                );
                let outputs = limits.cache_bytes(&settings, row) + (2 * limits.outputs) as u64 * token;
                assert!(outputs + read(0) as u64 * token <= room);
                assert_eq!(super::room(longest, &batch, &settings, &opened), Ok(()));
                // What is allocated for it is what was counted, however many outputs there were before.
                assert_eq!(batch.cache_bytes(), limits.cache_bytes(&settings, row));
                let mut alone = planned(room, tokens).unwrap();
                alone.push(Request {
                    ids: vec![5; longest],
                    outputs: vec![Output::default()],
                });
                let counted = limits.alone(longest).cache_bytes(&settings, row);
                assert!(alone.cache_bytes() <= counted, "{} of {counted}", alone.cache_bytes());
                let why = super::room(longest + 1, &batch, &settings, &opened).unwrap_err();
                for word in [format!("{} tokens", longest + 1), "--max-new-tokens".into()] {
                    assert!(why.contains(&word), "{why}: {word}");
                }
            }
        }
        assert!(planned(1 << 10, BatchTokens::Auto).is_err());
    }

    #[test]
    fn a_prompt_that_no_memory_is_left_for_is_refused_with_what_it_needs() {
        refused_where_memory_ends("lm");
    }

    #[test]
    fn so_is_a_sentence_that_is_encoded_whole() {
        refused_where_memory_ends("en-fr-de");
    }
}
