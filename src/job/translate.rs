//! `sluice translate`: sentences from one language into others.

mod quality;

use super::generation::{self, Generating};
use super::languages;
use super::run::{self, Done, Figures, Place, Planned, Setup, Taken, Task};
use crate::checkpoint::generation::GenerationDefaults;
use crate::cli::check;
use crate::cli::exit::Exit;
use crate::cli::TranslateArgs;
use crate::comm::Comm;
use crate::corpus::{Kind, NllbTokenizer, Reading, Record, Scan};
use crate::decode::batch::{Batch, Finished, Output, Request};
use crate::decode::search::Settings;
use crate::model::nllb_moe::FAMILY;
use crate::model::Model;
use crate::results::{Row, Status};
use anyhow::{ensure, Result};
use quality::Quality;
use serde_json::{json, Value};

/// Runs the job; collective over all ranks.
///
/// # Errors
/// What is refused, or went wrong, on this rank; [`crate::comm::ReportedElsewhere`] where it was on another.
pub fn run(args: &TranslateArgs, world: &dyn Comm) -> Result<Exit> {
    run::run(&args.run, &args.inputs, || Translate::open(args), world)
}

/// The job with its checkpoint.
struct Translate<'a> {
    args: &'a TranslateArgs,
    setup: Setup<'a>,
    tokenizer: NllbTokenizer,
    settings: Settings,
}

impl Translate<'_> {
    fn open(args: &TranslateArgs) -> Result<Translate<'_>> {
        let dir = &args.run.model;
        let mut setup = Setup::open("translate", &args.run, &args.inputs, args)?;
        let opened = &setup.opened;
        let family = opened.architecture.family();
        ensure!(
            family == FAMILY,
            "{}: translate is for models that know languages ({FAMILY}), this is {family}; sluice generate takes its prompts, \
             such as \"translate English to German: ...\"",
            dir.display()
        );
        let tokenizer = NllbTokenizer::load(dir)?;
        opened.check_vocabulary(dir, tokenizer.vocab_size())?;
        let defaults = GenerationDefaults::load(dir)?;
        let settings = generation::settings(&args.generation, &defaults, opened.architecture.as_ref())?;
        setup.warnings = generation::not_followed(dir, &defaults);
        for target in args.target.iter().filter(|t| Some(*t) == args.source.as_ref()) {
            setup.warnings.push(format!(
                "--target {target} is also the source language: the model is asked to translate it into itself"
            ));
        }
        Ok(Translate {
            args,
            setup,
            tokenizer,
            settings,
        })
    }
}

/// What is known of an output before it is finished.
struct Pending {
    record: Record,
    source: String,
    target: String,
    cut: bool,
}

impl Task for Translate<'_> {
    type Work = Batch;
    type Pending = Pending;

    fn setup(&self) -> &Setup<'_> {
        &self.setup
    }

    fn reading(&self) -> Reading {
        self.args.input.reading(Kind::Sentences)
    }

    fn outputs(&self) -> u64 {
        self.args.target.len().max(1) as u64
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let mut fields = generation::fields(&self.args.generation, &self.settings);
        fields.extend([("source", json!(self.args.source)), ("target", json!(self.args.target))]);
        fields
    }

    fn check(&self) -> Result<()> {
        check::references(&self.args.references, &self.args.run.output)?;
        languages::of_flags(&self.args.source, &self.args.target, &self.tokenizer)
    }

    fn examine(&self, scan: &Scan) -> Result<()> {
        let args = self.args;
        languages::of_rows(&args.source, &args.target, args.run.on_error, scan, &self.tokenizer)?;
        quality::references(self.args, scan)
    }

    fn workload(&self, net: &dyn Model, place: &Place) -> Result<Planned<Batch>> {
        Generating {
            settings: &self.settings,
            batch_tokens: self.args.generation.batch_tokens,
            outputs: self.outputs() as usize,
            // A sentence longer than 512 tokens is rare, however long a line.
            longest: 512,
        }
        .plan(net, place)
    }

    fn take(&self, record: &Record, wanted: &[usize], batch: &Batch) -> Result<Taken<Self>> {
        let mut taken = Taken::default();
        let source = record.source_lang.clone().or_else(|| self.args.source.clone());
        let blank = record.is_blank() && record.problem.is_none();
        let mut outputs = Vec::new();
        let mut problem = record.problem.clone();
        let unread = problem.is_some() || blank;
        let ids = match &source {
            Some(source) if !unread => {
                let ids = self
                    .tokenizer
                    .source(&record.text, source)
                    .map_err(|e| format!("{e:#}"));
                let ids = ids.and_then(|ids| {
                    generation::room(ids.ids.len(), batch, &self.settings, &self.setup.opened)?;
                    Ok(ids)
                });
                match ids {
                    Ok(ids) => Some(ids),
                    Err(why) => {
                        problem = Some(self.setup.skip(why)?);
                        None
                    }
                }
            }
            _ => None,
        };
        let source = source.unwrap_or_default();
        for &t in wanted {
            let key = record.index * self.outputs() + t as u64;
            let target = record.target_lang.clone().or_else(|| self.args.target.get(t).cloned());
            match (&ids, target) {
                (Some(ids), Some(target)) => {
                    outputs.push(Output {
                        key,
                        forced: Some(self.tokenizer.target_lang_id(&target)?),
                        credits_source: t == 0,
                        ..Output::default()
                    });
                    let pending = Pending {
                        record: record.clone(),
                        source: source.clone(),
                        target,
                        cut: ids.cut,
                    };
                    taken.pending.push((key, pending));
                }
                (_, target) => {
                    let why = || "no language is named for it".to_string();
                    taken.why = problem.clone().or_else(|| (!blank).then(why));
                    taken.rows.push(Row {
                        index: key,
                        id: record.id.clone(),
                        input: record.text.clone(),
                        status: if blank { Status::Blank } else { Status::Failed },
                        source_lang: source.clone(),
                        target_lang: target.unwrap_or_default(),
                        ..Row::default()
                    });
                }
            }
        }
        taken.request = ids
            .filter(|_| !outputs.is_empty())
            .map(|ids| Request { ids: ids.ids, outputs });
        Ok(taken)
    }

    fn key(&self, finished: &Finished) -> u64 {
        finished.key
    }

    fn finish(&self, pending: Pending, finished: Finished) -> Result<Done> {
        let text = self.tokenizer.decode(&finished.hypothesis.ids)?;
        let Pending {
            record,
            source,
            target,
            cut,
        } = pending;
        let row = Row {
            index: finished.key,
            id: record.id,
            input: record.text,
            output: text,
            source_lang: source,
            target_lang: target,
            ..Row::default()
        };
        let keeps_scores = self.args.generation.scores;
        Ok(generation::done(row, finished, &self.settings, cut, keeps_scores))
    }

    fn compares(&self) -> bool {
        !self.args.references.is_empty()
    }

    fn figures(&self) -> Result<Box<dyn Figures>> {
        Ok(Box::new(Quality::new(&self.args.target, &self.args.references)?))
    }
}
