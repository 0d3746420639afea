//! `sluice generate`: what a model writes after prompts.

use super::generation::{self, Generating};
use super::run::{self, Done, Figures, Place, Planned, Setup, Taken, Task};
use super::words::{self, Words};
use crate::checkpoint::generation::GenerationDefaults;
use crate::cli::exit::Exit;
use crate::cli::run::OnError;
use crate::cli::GenerateArgs;
use crate::comm::Comm;
use crate::corpus::{is_for_templates, Kind, Prompt, Reading, Record, Scan, Tokenizer};
use crate::decode::batch::{Batch, Finished, Output, Request};
use crate::decode::sample::Sampling;
use crate::decode::search::{EarlyStopping, Settings};
use crate::decode::stop::Stops;
use crate::model::Model;
use crate::results::{Row, Status};
use anyhow::{bail, ensure, Context, Result};
use serde_json::{json, Value};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Tokens of an output at most where neither the command line nor the checkpoint says.
const MAX_NEW_TOKENS: usize = 128;

/// Runs the job; collective over all ranks.
///
/// # Errors
/// What is refused, or went wrong, on this rank; [`crate::comm::ReportedElsewhere`] where it was on another.
pub fn run(args: &GenerateArgs, world: &dyn Comm) -> Result<Exit> {
    run::run(&args.run, &args.inputs, || Generate::open(args), world)
}

/// The job with its checkpoint.
struct Generate<'a> {
    args: &'a GenerateArgs,
    setup: Setup<'a>,
    tokenizer: Arc<Tokenizer>,
    settings: Settings,
    /// Tokens of prompt and output together before which an output may not end; 0 where only the output's count.
    least_with_prompt: usize,
    /// Tokens of an output at most, of rows without a limit of their own.
    new_tokens: usize,
    stops: Arc<Stops>,
}

impl Generate<'_> {
    fn open(args: &GenerateArgs) -> Result<Generate<'_>> {
        let dir = &args.run.model;
        let mut setup = Setup::open("generate", &args.run, &args.inputs, args)?;
        let opened = &setup.opened;
        let family = opened.architecture.family();
        let Words::Plain(tokenizer) = Words::load(dir, opened.architecture.as_ref())? else {
            bail!(
                "{}: {family} writes in a language that it is told: use sluice translate --target",
                dir.display()
            );
        };
        opened.check_vocabulary(dir, tokenizer.vocab_size())?;
        let mut defaults = GenerationDefaults::load(dir)?;
        let mut warnings = generation::not_followed(dir, &defaults);
        let (given, architecture) = (&args.generation, opened.architecture.as_ref());
        let unsaid = given.max_length.is_none() && defaults.max_new_tokens.is_none();
        if unsaid && (defaults.max_length.is_none() || !architecture.shape().encoder) {
            // A length that counts the prompt means little for prompts of all lengths.
            defaults.max_new_tokens = Some(MAX_NEW_TOKENS);
            if let (Some(length), None) = (defaults.max_length, given.max_new_tokens) {
                let what = format!("max_length = {length}, prompts included");
                warnings.push(format!(
                    "{}: outputs have {MAX_NEW_TOKENS} new tokens at most; --max-new-tokens or --max-length says otherwise",
                    generation::not_followed_warning(dir, &what)
                ));
            }
        }
        let least_with_prompt = generation::least_with_prompt(given, &defaults, architecture);
        let mut settings = generation::settings(given, &defaults, architecture)?;
        settings.sampling = sampling(args)?;
        generation::positions(&args.generation, opened.architecture.shape())?;
        let trained = (architecture.shape().positions).filter(|_| !architecture.shape().encoder);
        if let Some((new, end)) = given.max_new_tokens.zip(trained).filter(|(new, end)| new >= end) {
            warnings.push(format!(
                "--max-new-tokens {new}: the model was trained for {end} positions, the prompt's included: outputs end there"
            ));
        }
        ensure!(
            settings.sampling.is_none() || settings.beams == 1,
            "generation_config.json asks for {} beams: beams are searched, not drawn; give --num-beams 1",
            settings.beams
        );
        setup.warnings = warnings;
        let new_tokens = settings.max_length - 1;
        Ok(Generate {
            args,
            setup,
            tokenizer: Arc::new(*tokenizer),
            settings,
            least_with_prompt,
            new_tokens,
            stops: Arc::new(Stops::new(args.stop.clone())?),
        })
    }

    /// Ids of a prompt, and whether it was cut to the model's length, as what an encoder reads is.
    fn tokenize(&self, record: &Record) -> Result<(Vec<u32>, bool)> {
        Ok(match &record.prompt {
            Prompt::Text if self.setup.opened.architecture.shape().encoder => {
                words::cut_source(&self.tokenizer, &record.text)?
            }
            Prompt::Text => (self.tokenizer.encode(&record.text, true)?, false),
            Prompt::Ids(ids) => (ids.clone(), false),
            Prompt::Messages(chat) => (self.tokenizer.encode_chat(chat)?, false),
        })
    }

    /// What all rows have, as [`job_settings`].
    fn job_settings(&self) -> Vec<(&'static str, &'static str, Value)> {
        let (args, s) = (&self.args.generation, &self.settings);
        // As rows know them, lengths count what a decoder-only model is prompted with.
        let (longest, shortest) = match self.setup.opened.architecture.shape().encoder {
            true => (Some(s.max_length), s.min_length),
            false => (
                args.max_length.filter(|_| args.max_new_tokens.is_none()),
                self.least_with_prompt,
            ),
        };
        job_settings(s, [json!(longest), json!(shortest)], args.scores)
    }

    /// Warnings about what rows ask for and don't get, one a name.
    fn warnings(&self, scan: &Scan) -> Vec<String> {
        let flags = self.job_settings();
        let settings = scan.not_followed.iter().map(|(name, asked)| {
            let mut value = asked.value.to_string();
            if value.chars().count() > 40 {
                value = value.chars().take(40).chain("...".chars()).collect();
            }
            let rows = |one: &str, more: &str| match asked.rows {
                1 => format!("1 row {one}"),
                rows => format!("{rows} rows {more}"),
            };
            let why = match flags.iter().find(|(known, ..)| known == name) {
                _ if is_for_templates(name) => {
                    rows("has it", "have it")
                        + " beside a prompt that is no chat: only `messages` go through the chat template"
                }
                Some((_, flag, _)) => rows("asks", "ask") + &format!(" for one of its own; {flag} is for all rows"),
                None => rows("asks", "ask") + " for one of its own",
            };
            let place = scan.place(asked.row);
            format!("{place}: `{name}`: {value} is not followed ({why})")
        });
        let cut = scan
            .most_new_tokens
            .filter(|(most, _)| self.limited() && *most as usize > self.new_tokens);
        let cut = cut.map(|(most, row)| {
            let (flag, most_of_all) = match self.args.generation.max_new_tokens {
                Some(new) => ("--max-new-tokens", new),
                None => ("--max-length", self.new_tokens + 1),
            };
            format!(
                "{}: an output of up to {most} tokens is asked for; {flag} {most_of_all} goes before rows' own limits",
                scan.place(row)
            )
        });
        let template = self.tokenizer.chat_template().ok();
        let unread = scan
            .template_arguments
            .iter()
            .filter(|(name, _)| template.is_some_and(|t| !t.reads(name)));
        let unread =
            unread.map(|(name, row)| format!("{}: the chat template does not read `{name}`", scan.place(*row)));
        settings.chain(cut).chain(unread).collect()
    }

    /// Whether the command line says how long outputs may be.
    fn limited(&self) -> bool {
        let given = &self.args.generation;
        given.max_new_tokens.or(given.max_length).is_some()
    }

    /// The most tokens that may follow a prompt, or why none can.
    fn most(&self, record: &Record, prompt: usize) -> Result<usize, String> {
        let own = record.settings.max_new_tokens.map(|n| n as usize);
        let mut most = own.unwrap_or(self.new_tokens).min(self.settings.max_length - 1);
        if !self.setup.opened.architecture.shape().encoder {
            if prompt == 0 {
                return Err("the prompt has no tokens".into());
            }
            if let (Some(length), None) = (self.args.generation.max_length, self.args.generation.max_new_tokens) {
                most = most.min(length.saturating_sub(prompt));
            }
            let shape = self.setup.opened.architecture.shape();
            let asks = match (own, self.args.generation.max_new_tokens) {
                (Some(own), flag) if flag.is_none_or(|flag| own < flag) => Some("the row's own limit"),
                (_, flag) => flag.map(|_| "--max-new-tokens"),
            };
            if let (Some(asks), Some(end)) = (asks, shape.computed.filter(|end| prompt + most > *end)) {
                return Err(format!(
                    "the prompt has {prompt} tokens and its output up to {most} ({asks}), this model is computed up to {end} \
                     positions only: shorten the prompt, or lower {asks}"
                ));
            }
            if let Some(positions) = shape.positions {
                if prompt >= positions {
                    return Err(format!(
                        "the prompt has {prompt} tokens, the model was trained for {positions} positions: shorten it"
                    ));
                }
                most = most.min(positions - prompt);
            }
            if most == 0 {
                return Err(format!(
                    "the prompt has {prompt} tokens, which leaves none of --max-length for the output"
                ));
            }
        }
        Ok(most)
    }
}

/// What all rows have: the name under which a row may ask for it, the flag, the value. `lengths` are the longest and the
/// shortest as rows know them; null where the job has none.
fn job_settings(s: &Settings, lengths: [Value; 2], scores: bool) -> Vec<(&'static str, &'static str, Value)> {
    let [longest, shortest] = lengths;
    let early_stopping = match s.early_stopping {
        EarlyStopping::True => json!(true),
        EarlyStopping::False => json!(false),
        EarlyStopping::Never => json!("never"),
    };
    let greedy = Sampling {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        seed: 0,
    };
    let drawn = s.sampling.unwrap_or(greedy);
    let least = json!(s.min_length.saturating_sub(1));
    vec![
        ("temperature", "--temperature", json!(drawn.temperature)),
        ("top_k", "--top-k", json!(drawn.top_k)),
        ("top_p", "--top-p", json!(drawn.top_p)),
        ("min_p", "--min-p", json!(drawn.min_p)),
        ("do_sample", "--temperature", json!(s.sampling.is_some())),
        ("num_beams", "--num-beams", json!(s.beams)),
        ("use_beam_search", "--num-beams", json!(s.beams > 1)),
        ("length_penalty", "--length-penalty", json!(s.length_penalty)),
        (
            "no_repeat_ngram_size",
            "--no-repeat-ngram-size",
            json!(s.no_repeat_ngram),
        ),
        ("min_tokens", "--min-new-tokens", least.clone()),
        ("min_new_tokens", "--min-new-tokens", least),
        ("min_length", "--min-new-tokens", shortest),
        ("max_length", "--max-length", longest),
        ("early_stopping", "--early-stopping", early_stopping),
        ("logprobs", "--scores", json!(scores)),
    ]
}

fn sampling(args: &GenerateArgs) -> Result<Option<Sampling>> {
    let draws = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    Sampling {
        temperature: args.temperature.unwrap_or(if draws { 1.0 } else { 0.0 }),
        top_k: args.top_k.unwrap_or(0),
        top_p: args.top_p.unwrap_or(1.0),
        min_p: args.min_p.unwrap_or(0.0),
        seed: args.seed.unwrap_or(0),
    }
    .checked()
}

/// A prompt under way.
struct Pending {
    record: Record,
    stops: Arc<Stops>,
    cut: bool,
}

impl Task for Generate<'_> {
    type Work = Batch;
    type Pending = Pending;

    fn setup(&self) -> &Setup<'_> {
        &self.setup
    }

    fn reading(&self) -> Reading {
        Reading {
            id_limit: Some(self.setup.opened.architecture.shape().vocab_size as u32),
            ..self.args.input.reading(Kind::Prompts)
        }
    }

    fn shared_settings(&self) -> BTreeMap<String, Value> {
        let all = self.job_settings().into_iter();
        all.map(|(name, _, value)| (name.to_owned(), value)).collect()
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = generation::fields(&self.args.generation, &self.settings);
        let sampling = self.settings.sampling.map(|s| {
            json!({
                "temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p, "min_p": s.min_p, "seed": s.seed
            })
        });
        let counts_prompt = self.args.generation.max_new_tokens.is_none() && self.args.generation.max_length.is_some();
        fields.extend([
            ("sampling", json!(sampling)),
            ("stop", json!(self.args.stop)),
            ("max_length_counts_prompt", json!(counts_prompt)),
            ("min_length_with_prompt", json!(self.least_with_prompt)),
        ]);
        if self.setup.opened.architecture.shape().computed.is_some() {
            // Rows that cannot have what was asked for fail; what nobody asked for is cut.
            fields.push(("length_asked_for", json!(self.args.generation.max_new_tokens.is_some())));
        }
        fields
    }

    fn examine(&self, scan: &Scan) -> Result<()> {
        if let Some(row) = scan.chat.filter(|_| self.args.run.on_error == OnError::Fail) {
            let template = self.tokenizer.chat_template();
            let template = template.with_context(|| format!("{}: `messages`", scan.place(row)))?;
            for (name, row) in &scan.template_arguments {
                template.check(name).with_context(|| scan.place(*row).to_string())?;
            }
        }
        self.warnings(scan).iter().for_each(|warning| log::warn!("{warning}"));
        Ok(())
    }

    fn begin(&mut self, scan: &Scan, started: i64) {
        self.tokenizer.set_time(started);
        // A row's own limit goes before one that nobody gave on the command line: caches are to have room for it.
        let own = scan
            .most_new_tokens
            .filter(|_| !self.limited())
            .map_or(0, |(most, _)| most as usize);
        let end = self.setup.opened.architecture.shape().positions.unwrap_or(usize::MAX);
        self.settings.max_length = self.settings.max_length.max(own.min(end) + 1);
    }

    fn workload(&self, net: &dyn Model, place: &Place) -> Result<Planned<Batch>> {
        let planned = Generating {
            settings: &self.settings,
            batch_tokens: self.args.generation.batch_tokens,
            outputs: 1,
            longest: usize::MAX,
        }
        .plan(net, place)?;
        let tokenizer = self.tokenizer.clone();
        Ok(Planned {
            work: planned.work.with_text(Arc::new(move |ids| tokenizer.decode(ids))),
            ..planned
        })
    }

    fn take(&self, record: &Record, _: &[usize], batch: &Batch) -> Result<Taken<Self>> {
        let mut taken = Taken::default();
        let blank = record.problem.is_none() && record.is_blank();
        let finished = |status| Row {
            index: record.index,
            id: record.id.clone(),
            input: record.text.clone(),
            status,
            ..Row::default()
        };
        if record.problem.is_some() || blank {
            taken.why = record.problem.clone();
            let status = if blank { Status::Blank } else { Status::Failed };
            taken.rows.push(finished(status));
            return Ok(taken);
        }
        let asked = self.tokenize(record).map_err(|error| format!("{error:#}"));
        let asked = asked.and_then(|(ids, cut)| {
            generation::room(ids.len(), batch, &self.settings, &self.setup.opened)?;
            Ok((self.most(record, ids.len())?, ids, cut))
        });
        let (most, ids, cut) = match asked {
            Ok(asked) => asked,
            Err(why) => {
                taken.why = Some(self.setup.skip(why)?);
                taken.rows.push(finished(Status::Failed));
                return Ok(taken);
            }
        };
        let stops = match &record.settings.stop[..] {
            [] => self.stops.clone(),
            own => Arc::new(Stops::new(own.to_vec())?),
        };
        let output = Output {
            key: record.index,
            most: Some(most),
            least: self.least_with_prompt.saturating_sub(ids.len()),
            stops: (!stops.is_empty()).then(|| stops.clone()),
            seed: record.settings.seed,
            credits_source: true,
            ..Output::default()
        };
        let record = record.clone();
        taken.pending.push((output.key, Pending { record, stops, cut }));
        taken.request = Some(Request {
            ids,
            outputs: vec![output],
        });
        Ok(taken)
    }

    fn key(&self, finished: &Finished) -> u64 {
        finished.key
    }

    fn finish(&self, pending: Pending, finished: Finished) -> Result<Done> {
        let Pending { record, stops, cut } = pending;
        let text = self.tokenizer.decode(&finished.hypothesis.ids[1..])?;
        let stopped = stops.ends(&text).is_some();
        let row = Row {
            index: finished.key,
            id: record.id,
            input: record.text,
            output: stops.cut(&text).to_string(),
            ..Row::default()
        };
        let keeps_scores = self.args.generation.scores;
        let mut done = generation::done(row, finished, &self.settings, cut, keeps_scores);
        if stopped {
            done.row.status = if cut { Status::InputCut } else { Status::Ok };
        }
        Ok(done)
    }

    fn figures(&self) -> Result<Box<dyn Figures>> {
        Ok(Box::new(run::Counted::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::corpus::asks_nothing;
    use clap::CommandFactory;

    #[test]
    fn rows_may_agree_with_every_flag() {
        let settings = Settings {
            beams: 4,
            max_length: 9,
            min_length: 3,
            length_penalty: 1.0,
            early_stopping: EarlyStopping::Never,
            forced_eos: None,
            no_repeat_ngram: 0,
            start: 0,
            eos: vec![2],
            sampling: None,
        };
        let known = job_settings(&settings, [json!(9), json!(3)], true);
        let command = Cli::command();
        let generate = command.find_subcommand("generate").unwrap();
        let flags: Vec<String> = generate
            .get_arguments()
            .filter_map(|a| Some(format!("--{}", a.get_long()?)))
            .collect();
        for flag in &flags {
            let name = flag[2..].replace('-', "_");
            if asks_nothing(&name, &json!(null)).is_some() {
                let found = known.iter().find(|(known, ..)| *known == name);
                assert_eq!(
                    found.map(|(_, flag, _)| flag.to_string()).as_ref(),
                    Some(flag),
                    "{name}"
                );
            }
        }
        for (name, flag, value) in &known {
            assert!(flags.iter().any(|f| f == flag), "{flag}");
            assert!(asks_nothing(name, value).is_some(), "{name}");
        }
        let value = |name: &str| {
            known
                .iter()
                .find(|(known, ..)| *known == name)
                .map(|(.., value)| value.clone())
        };
        assert_eq!(value("early_stopping"), Some(json!("never")));
        assert_eq!(
            (value("max_length"), value("min_length")),
            (Some(json!(9)), Some(json!(3)))
        );
    }
}
