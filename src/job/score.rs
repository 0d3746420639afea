//! `sluice score`: log-probabilities of given texts, and perplexity.

use super::run::{self, Done, Figures, Opened, Place, Planned, Setup, Taken, Task};
use super::words::Words;
use crate::cli::exit::Exit;
use crate::cli::score::Prefix as Before;
use crate::cli::{Memory, ScoreArgs};
use crate::comm::Comm;
use crate::corpus::{Kind, Reading, Record, Scan};
use crate::decode::score::{Costs, Finished, Plan, Request, Scorer, Scores, Settings, PORTION, PORTION_BUFFERED};
use crate::decode::windows::{Cut, Prefix};
use crate::device::Want;
use crate::metrics::memory::size;
use crate::metrics::perplexity::Sums;
use crate::model::cache::Caches;
use crate::model::Model;
use crate::results::{Judge, Metric, MetricValue, Row, Status, Tally};
use anyhow::{anyhow, bail, ensure, Context, Result};
use serde_json::{json, Value};

/// Tokens of a window where nothing else is said.
const WINDOW: usize = 2048;

/// Runs the job; collective over all ranks.
///
/// # Errors
/// What is refused, or went wrong, on this rank; [`crate::comm::ReportedElsewhere`] where it was on another.
pub fn run(args: &ScoreArgs, world: &dyn Comm) -> Result<Exit> {
    run::run(&args.run, &args.inputs, || Score::open(args), world)
}

/// The job with its checkpoint.
struct Score<'a> {
    args: &'a ScoreArgs,
    setup: Setup<'a>,
    words: Words,
    settings: Settings,
}

impl Score<'_> {
    fn open(args: &ScoreArgs) -> Result<Score<'_>> {
        let dir = &args.run.model;
        let mut setup = Setup::open("score", &args.run, &args.inputs, args)?;
        let opened = &setup.opened;
        let words = Words::load(dir, opened.architecture.as_ref())?;
        opened.check_vocabulary(dir, words.vocab_size())?;
        let (shape, family) = (opened.architecture.shape(), opened.architecture.family());
        match (args.pairs, shape.encoder) {
            (false, true) => bail!(
                "{} ({family}) has an encoder: it scores a target after a source; give --pairs and source<TAB>target lines",
                dir.display()
            ),
            (true, false) => bail!(
                "--pairs is for models with an encoder; {} ({family}) has none: score whole texts without it",
                dir.display()
            ),
            _ => {}
        }
        let (settings, warnings) = settings(args, opened, &words)?;
        setup.warnings = warnings;
        Ok(Score {
            args,
            setup,
            words,
            settings,
        })
    }

    /// Ids of a record: the source of a pair, and the text that is scored; and whether one was cut to the model's length.
    /// An error is the row's.
    fn tokenize(&self, record: &Record, languages: &[String; 2]) -> Result<([Vec<u32>; 2], bool)> {
        if let Some(problem) = &record.problem {
            bail!("{problem}");
        }
        if !self.args.pairs {
            let specials = self.settings.prefix == Prefix::None;
            let ids = self.words.plain()?.encode(&record.text, specials)?;
            return Ok(([Vec::new(), ids], false));
        }
        ensure!(self.words.knows(languages), "no language is named for it");
        let (source, source_cut) = self.words.encode(&record.text, Some(&languages[0]))?;
        let text = record.target.as_deref().unwrap_or_default();
        let (target, target_cut) = self.words.encode(text, Some(&languages[1]))?;
        Ok(([source, target], source_cut || target_cut))
    }

    /// Gives back what was read of a record if a rank has room for it: the two of a pair are read in one go, and the scores
    /// of a text are held until it ends.
    fn fits(&self, read: ([Vec<u32>; 2], bool), scorer: &Scorer) -> Result<([Vec<u32>; 2], bool)> {
        let plan = scorer.plan();
        let less = if self.settings.want.top > 0 {
            "give a lower --top, "
        } else {
            ""
        };
        if self.args.pairs {
            let tokens = read.0.iter().map(Vec::len).sum::<usize>();
            ensure!(
                tokens <= plan.longest,
                "source and target have {tokens} tokens, which are read in one go; a rank's share of the free memory does \
                 for {}: {less}shorten them, or give fewer ranks a machine",
                plan.longest
            );
            return Ok(read);
        }
        let scored = read.0[1].len();
        let scores = (scored as u64).saturating_mul(Scores::bytes(self.settings.want));
        let shorter = match plan.is_tight(self.settings.cut.window) {
            true => "give a lower --window, ",
            false => "",
        };
        ensure!(
            scores <= plan.scores,
            "the scores of its {scored} tokens take {} on their way into the file, this rank's share of the free memory leaves \
             {}: {less}{shorter}cut the text into several, or give fewer ranks a machine",
            size(scores),
            size(plan.scores)
        );
        Ok(read)
    }
}

fn settings(args: &ScoreArgs, opened: &Opened, words: &Words) -> Result<(Settings, Vec<String>)> {
    let shape = opened.architecture.shape();
    let want = Want {
        ranks: args.ranks,
        top: args.top.min(shape.vocab_size),
    };
    if args.pairs {
        let start = opened.architecture.special_tokens().decoder_start;
        let start = start.context(
            "config.json: `decoder_start_token_id` is missing: targets have nothing to begin with; add it as the model was \
             trained with it (Switch: its pad_token_id, 0)",
        )?;
        let whole = Cut {
            window: usize::MAX,
            stride: usize::MAX,
        };
        let prefix = Prefix::Token(start);
        return Ok((
            Settings {
                cut: whole,
                prefix,
                want,
            },
            Vec::new(),
        ));
    }
    let most = shape.positions.unwrap_or(usize::MAX);
    let window = args.window.unwrap_or(WINDOW.min(most));
    if let Some(end) = shape.computed {
        ensure!(
            window <= end,
            "--window {window}: this model is computed up to {end} positions only (config.json has a `long_factor` for texts \
             beyond them, which is not computed here); give at most {end}"
        );
    }
    let stride = args.stride.unwrap_or(window);
    ensure!(
        stride <= window,
        "--stride {stride} is above the window of {window} tokens: tokens between two windows would have no score; give at \
         most {window}, or a larger --window"
    );
    let mut warnings = Vec::new();
    if window > most {
        warnings.push(format!(
            "--window {window}: the model was trained for {most} positions; what comes behind is likely to be scored badly"
        ));
    }
    let token = |what: &str, id: Option<u32>| {
        let other = if what == "bos" { "none or eos" } else { "none" };
        let missing = || format!("--prefix {what}: the tokenizer names no such token; give --prefix {other}");
        id.with_context(missing).map(Prefix::Token)
    };
    let prefix = match args.prefix {
        Before::None => Prefix::None,
        Before::Bos => token("bos", words.plain()?.bos())?,
        Before::Eos => token("eos", words.plain()?.eos())?,
    };
    let cut = Cut { window, stride };
    Ok((Settings { cut, prefix, want }, warnings))
}

/// A record under way.
struct Pending {
    record: Record,
    languages: [String; 2],
    cut: bool,
}

impl Task for Score<'_> {
    type Work = Scorer;
    type Pending = Pending;

    fn setup(&self) -> &Setup<'_> {
        &self.setup
    }

    fn tokens(&self) -> &'static str {
        "scored"
    }

    fn held(&self) -> &'static str {
        "activations"
    }

    fn reading(&self) -> Reading {
        let kind = if self.args.pairs { Kind::Pairs } else { Kind::Documents };
        self.args.input.reading(kind)
    }

    fn fields(&self) -> Vec<(&'static str, Value)> {
        let Settings { cut, prefix, want } = self.settings;
        let prefix = match prefix {
            Prefix::None => None,
            Prefix::Token(token) => Some(token),
        };
        vec![
            ("window", json!((!self.args.pairs).then_some(cut.window))),
            ("stride", json!((!self.args.pairs).then_some(cut.stride))),
            ("prefix_token_id", json!(prefix)),
            ("ranks", json!(want.ranks)),
            ("top", json!(want.top)),
            ("source", json!(self.args.source)),
            ("target", json!(self.args.target)),
        ]
    }

    fn examine(&self, scan: &Scan) -> Result<()> {
        let args = self.args;
        match args.pairs {
            true => self
                .words
                .check_languages([&args.source, &args.target], args.run.on_error, scan),
            false => Ok(()),
        }
    }

    fn workload(&self, net: &dyn Model, place: &Place) -> Result<Planned<Scorer>> {
        let shape = net.shape();
        let costs = Costs {
            activations: shape.activation_bytes() + Caches::passing_row_bytes(net.cache_type(), shape),
            scores: Scores::bytes(self.settings.want),
        };
        // A window is read in one go; of a pair the two texts are, each of which is refused by itself if it is too long.
        let window = (!self.args.pairs).then_some(self.settings.cut.window);
        let budget = match self.args.activation_memory {
            Memory::Auto => None,
            Memory::Bytes(bytes) => Some(bytes),
        };
        let usual = if place.buffered { PORTION_BUFFERED } else { PORTION };
        let plan = Plan::new(costs, window, budget, usual, place.room).map_err(|least| {
            let (what, cure) = match (window, self.settings.want.top) {
                (None, _) => ("token", "give fewer ranks a machine"),
                (Some(_), 0) => ("window", "give a lower --window, or fewer ranks a machine"),
                (Some(_), _) => ("window", "give a lower --window or --top, or fewer ranks a machine"),
            };
            anyhow!(
                "a {what} takes {} on its way through the model and into the file, this rank's share of the free memory is \
                 {}: {cure}",
                size(least),
                size(place.room)
            )
        })?;
        if let (Some(window), Some(budget)) = (window, budget) {
            let least = Plan::bytes(costs, window);
            if budget < least && place.speaks {
                log::warn!(
                    "--activation-memory {}: a window of {window} tokens takes {} and is read in one go, alone; a lower --window \
                     would keep to less",
                    size(budget),
                    size(least)
                );
            }
        }
        let portion = plan.portion;
        let (longest, in_flight) = match (window, self.words.longest()) {
            (Some(window), _) => (window, format!("{portion} tokens")),
            (None, Some(text)) => (plan.longest.min(2 * text), format!("{portion} tokens")),
            (None, None) => (1, format!("{portion} tokens, or a pair that is longer,")),
        };
        Ok(Planned {
            work: Scorer::new(self.settings, plan, place.mean_tokens, net),
            held: Plan::bytes(costs, plan.most.max(longest)),
            in_flight,
        })
    }

    fn take(&self, record: &Record, _: &[usize], scorer: &Scorer) -> Result<Taken<Self>> {
        let mut taken = Taken::default();
        let (key, mut row) = (record.index, Row::default());
        let languages = [
            record.source_lang.as_ref().or(self.args.source.as_ref()),
            record.target_lang.as_ref().or(self.args.target.as_ref()),
        ]
        .map(|code| code.cloned().unwrap_or_default());
        if record.problem.is_none() && record.is_blank() {
            row.status = Status::Blank;
        } else {
            match self
                .tokenize(record, &languages)
                .and_then(|read| self.fits(read, scorer))
            {
                Ok(([source, ids], cut)) if self.settings.scores_any(ids.len()) => {
                    taken.request = Some(Request { key, source, ids });
                    let record = record.clone();
                    taken.pending.push((key, Pending { record, languages, cut }));
                    return Ok(taken);
                }
                Ok(([_, ids], _)) => row.ids = ids,
                Err(error) => {
                    taken.why = Some(self.setup.skip(format!("{error:#}"))?);
                    row.status = Status::Failed;
                }
            }
        }
        taken.rows.push(of_record(row, record, &languages));
        Ok(taken)
    }

    fn key(&self, finished: &Finished) -> u64 {
        finished.key
    }

    fn finish(&self, pending: Pending, finished: Finished) -> Result<Done> {
        let Finished { ids, scores, trace, .. } = finished;
        let (top_ids, top_logprobs) = scores.top.into_iter().unzip();
        let row = Row {
            status: if pending.cut { Status::InputCut } else { Status::Ok },
            score: scores.logprobs.iter().map(|p| f64::from(*p)).sum::<f64>() as f32,
            ids,
            logprobs: scores.logprobs,
            ranks: scores.ranks,
            top_ids,
            top_logprobs,
            ..Row::default()
        };
        Ok(Done {
            tokens: row.logprobs.len() as u64,
            row: of_record(row, &pending.record, &pending.languages),
            routes: trace.map(|mut trace| {
                let tokens = trace.all_tokens();
                (trace, tokens)
            }),
        })
    }

    fn figures(&self) -> Result<Box<dyn Figures>> {
        Ok(Box::new(Perplexity::default()))
    }
}

/// A row with what its record says.
fn of_record(row: Row, record: &Record, languages: &[String; 2]) -> Row {
    Row {
        index: record.index,
        id: record.id.clone(),
        input: record.text.clone(),
        output: record.target.clone().unwrap_or_default(),
        source_lang: languages[0].clone(),
        target_lang: languages[1].clone(),
        ..row
    }
}

/// Counts and sums over all rows.
#[derive(Default)]
pub(super) struct Perplexity {
    tally: Tally,
    sums: Sums,
}

impl Judge for Perplexity {
    fn see(&mut self, rows: &[Row]) -> Result<()> {
        self.tally.see(rows)?;
        let used = |row: &&Row| !matches!(row.status, Status::Blank | Status::Failed);
        for row in rows.iter().filter(used) {
            let added = self.sums.add(row.scored_text(), &row.logprobs);
            added.with_context(|| format!("row {}", row.index))?;
        }
        Ok(())
    }

    fn metrics(&mut self) -> Result<Vec<Metric>> {
        let number = |(name, value)| Metric {
            name,
            value: MetricValue::Number(value),
        };
        let count = |(name, value): (&str, u64)| Metric {
            name: name.into(),
            value: MetricValue::Count(value),
        };
        let sums = &self.sums;
        let counts = [
            ("scored_tokens", sums.tokens),
            ("words", sums.words),
            ("bytes", sums.bytes),
            ("impossible_tokens", sums.impossible),
        ];
        let mut all: Vec<Metric> = counts.into_iter().map(count).collect();
        all.push(number(("sum_logprob".to_string(), sums.logprob())));
        all.extend(self.figures().into_iter().map(number));
        all.extend(self.tally.metrics()?);
        Ok(all)
    }
}

impl Figures for Perplexity {
    fn tally(&self) -> &Tally {
        &self.tally
    }

    fn figures(&self) -> Vec<(String, f64)> {
        let all = [
            ("perplexity", self.sums.token_perplexity()),
            ("word_perplexity", self.sums.word_perplexity()),
            ("byte_perplexity", self.sums.byte_perplexity()),
            ("bits_per_byte", self.sums.bits_per_byte()),
        ];
        all.into_iter()
            .filter_map(|(name, value)| Some((name.to_string(), value?)))
            .collect()
    }

    fn judge(&mut self) -> &mut dyn Judge {
        self
    }
}
