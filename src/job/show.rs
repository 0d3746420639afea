//! `sluice show`: a finished file as text, TSV or JSON lines, or summed up.

use crate::results::{MetricValue, Phase, Results, Row, Status};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{BufWriter, ErrorKind, Write};
use std::path::PathBuf;

/// Rows held in memory at a time, at most.
const BLOCK: u64 = 1024;

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShowFormat {
    /// The output text, exactly one line for each input line: whatever breaks lines becomes a space; several target
    /// languages stand side by side with tabs between them. The score where a
    /// job has no output texts.
    #[default]
    Text,
    /// A header, then index, id, status, score, target language, source and output; tabs and line breaks inside become
    /// spaces.
    Tsv,
    /// An object a line with every field.
    Jsonl,
}

/// What `sluice show` is asked.
#[derive(Clone, Debug)]
pub struct ShowOptions {
    /// The finished file.
    pub path: PathBuf,
    /// How rows are written.
    pub format: ShowFormat,
    /// Sum up instead of writing rows.
    pub summary: bool,
}

/// Writes what `options` asks for. A reader that closes the pipe (`| head`) ends it quietly.
///
/// # Errors
/// The file is no finished result (see [`Results::open`]) or damaged, or `to` can't be written.
pub fn run(options: &ShowOptions, to: &mut dyn Write) -> Result<()> {
    let results = Results::open(&options.path)?;
    let mut to = BufWriter::new(to);
    let written = match (options.summary, options.format) {
        (true, _) => write_summary(&results, &mut to),
        (false, format) => write_rows(&results, format, &mut to),
    };
    match written.and_then(|()| Ok(to.flush()?)) {
        Err(error) if is_broken_pipe(&error) => {
            // What is still buffered has nowhere to go; dropping the writer would try again.
            let _ = to.into_parts();
            Ok(())
        }
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(ErrorKind::BrokenPipe)
    })
}

fn write_rows(results: &Results, format: ShowFormat, to: &mut dyn Write) -> Result<()> {
    if format == ShowFormat::Tsv {
        writeln!(to, "index\tid\tstatus\tscore\ttarget_lang\tsource\toutput")?;
    }
    // Several outputs of one input line stand side by side: a line in, a line out.
    let outputs = results.identity().outputs;
    let scored = results.identity().job == "score";
    let mut number = 0;
    for block in results.blocks(BLOCK) {
        for row in block? {
            number += 1;
            match format {
                ShowFormat::Text if scored => writeln!(to, "{}", score_cell(&row))?,
                ShowFormat::Text if outputs == 1 => writeln!(to, "{}", one_line(&row.output))?,
                ShowFormat::Text => {
                    let end = if number % outputs == 0 { '\n' } else { '\t' };
                    write!(to, "{}{end}", one_cell(&row.output))?;
                }
                ShowFormat::Tsv => writeln!(
                    to,
                    "{}\t{}\t{}\t{}\t{}\t{}\t{}",
                    row.index,
                    one_cell(row.id.as_deref().unwrap_or_default()),
                    row.status.name(),
                    score_cell(&row),
                    one_cell(&row.target_lang),
                    one_cell(&row.input),
                    one_cell(&row.output)
                )?,
                ShowFormat::Jsonl => {
                    serde_json::to_writer(&mut *to, &JsonRow::of(&row, results))?;
                    writeln!(to)?;
                }
            }
        }
    }
    Ok(())
}

/// The score of a row, if it was worked on.
fn score_of(row: &Row) -> Option<f32> {
    (!matches!(row.status, Status::Blank | Status::Failed)).then_some(row.score)
}

/// [`score_of`] in digits, or nothing.
fn score_cell(row: &Row) -> String {
    score_of(row).map_or_else(String::new, |score| score.to_string())
}

/// The text with everything that some reader takes for the end of a line as a space: LF, VT, FF, CR, the separators
/// U+001C to U+001E (Python's `splitlines`), U+0085, U+2028, U+2029.
fn one_line(text: &str) -> String {
    let breaks = [
        '\n', '\x0b', '\x0c', '\r', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}',
    ];
    text.replace(breaks, " ")
}

/// One line without tabs.
fn one_cell(text: &str) -> String {
    one_line(text).replace('\t', " ")
}

/// A row as JSON.
#[derive(Serialize)]
struct JsonRow<'a> {
    index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    status: &'static str,
    score: Option<f32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    source_lang: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    target_lang: &'a str,
    input: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a str>,
    ids: &'a [u32],
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    ranks: &'a [u32],
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    top_ids: &'a [u32],
    #[serde(skip_serializing_if = "<[f32]>::is_empty")]
    top_logprobs: &'a [f32],
}

impl<'a> JsonRow<'a> {
    fn of(row: &'a Row, results: &Results) -> Self {
        JsonRow {
            index: row.index,
            id: row.id.as_deref(),
            status: row.status.name(),
            score: score_of(row),
            source_lang: &row.source_lang,
            target_lang: &row.target_lang,
            input: &row.input,
            output: results.has_output().then_some(row.output.as_str()),
            ids: &row.ids,
            logprobs: results.has_logprobs().then_some(row.logprobs.as_slice()),
            ranks: &row.ranks,
            top_ids: &row.top_ids,
            top_logprobs: &row.top_logprobs,
        }
    }
}

fn write_summary(results: &Results, to: &mut dyn Write) -> Result<()> {
    let identity = results.identity();
    writeln!(to, "{}", results.path().display())?;
    writeln!(
        to,
        "  {} by sluice {} (HDF5 {}), {}",
        identity.job,
        results.attribute("creator_version")?,
        results.attribute("HDF5_Version")?,
        results.attribute("file_time")?
    )?;
    writeln!(to, "  command  {}", identity.command)?;
    writeln!(to, "  model    {}", identity.model_sha256)?;
    write_row_counts(results, to)?;
    for metric in results.metrics()? {
        match metric.value {
            MetricValue::Number(value) => writeln!(to, "  {}  {value}", metric.name)?,
            MetricValue::Count(value) => writeln!(to, "  {}  {value}", metric.name)?,
            MetricValue::Text(value) => writeln!(to, "  {}  {value}", metric.name)?,
        }
    }
    write_imbalance(results, to)?;
    write_timing(results, to)?;
    if let Some(config) = identity.config.as_object() {
        writeln!(to, "config")?;
        for (name, value) in config {
            writeln!(to, "  {name} = {value}")?;
        }
    }
    Ok(())
}

fn write_row_counts(results: &Results, to: &mut dyn Write) -> Result<()> {
    let (mut counts, mut scores, mut scored) = ([0u64; Status::ALL.len()], 0.0, 0u64);
    for block in results.blocks(BLOCK) {
        for row in block? {
            counts[row.status as usize] += 1;
            if let Some(score) = score_of(&row).filter(|score| score.is_finite()) {
                scores += f64::from(score);
                scored += 1;
            }
        }
    }
    let by_status: Vec<String> = Status::ALL
        .into_iter()
        .filter(|status| counts[*status as usize] > 0)
        .map(|status| format!("{} {}", counts[status as usize], status.name()))
        .collect();
    let by_status = if by_status.is_empty() {
        String::new()
    } else {
        format!(": {}", by_status.join(", "))
    };
    writeln!(to, "  rows     {}{by_status}", results.rows())?;
    writeln!(to, "  tokens   {}", results.tokens())?;
    if scored > 0 {
        writeln!(to, "  score    {:.4} (mean of {scored} rows)", scores / scored as f64)?;
    }
    Ok(())
}

/// How unevenly experts were used: the largest load over the mean, per layer.
fn write_imbalance(results: &Results, to: &mut dyn Write) -> Result<()> {
    let Some(layout) = results.routing() else { return Ok(()) };
    writeln!(
        to,
        "expert load, largest / mean of {} experts, top-{}",
        layout.experts, layout.top_k
    )?;
    for phase in Phase::ALL {
        let totals = results.expert_totals(phase)?;
        for (name, loads) in layout.layers(phase).iter().zip(totals.chunks_exact(layout.experts)) {
            let sum: u64 = loads.iter().sum();
            let largest = loads.iter().copied().max().unwrap_or(0);
            match sum {
                0 => writeln!(to, "  {:6}  {name}  no tokens", phase.name())?,
                _ => {
                    let ratio = largest as f64 * layout.experts as f64 / sum as f64;
                    writeln!(to, "  {:6}  {name}  {ratio:.2}", phase.name())?;
                }
            }
        }
    }
    Ok(())
}

/// Seconds of each phase over ranks (a rank's attempts added up), in the order in which phases are stored.
fn write_timing(results: &Results, to: &mut dyn Write) -> Result<()> {
    let entries = results.timing()?;
    let mut phases: Vec<String> = Vec::new();
    let mut spent: BTreeMap<(usize, u32), (f64, u64)> = BTreeMap::new();
    for entry in &entries {
        let at = phases
            .iter()
            .position(|phase| *phase == entry.phase)
            .unwrap_or_else(|| {
                phases.push(entry.phase.clone());
                phases.len() - 1
            });
        let sum = spent.entry((at, entry.rank)).or_default();
        sum.0 += entry.seconds;
        sum.1 += entry.bytes;
    }
    if phases.is_empty() {
        return Ok(());
    }
    let width = phases
        .iter()
        .map(|phase| phase.chars().count())
        .max()
        .unwrap_or(0)
        .max(5);
    writeln!(
        to,
        "{:width$}  {:>12}  {:>12}  {:>16}",
        "phase", "mean s/rank", "largest s", "bytes, all ranks"
    )?;
    for (at, phase) in phases.iter().enumerate() {
        let ranks: Vec<_> = spent.range((at, 0)..=(at, u32::MAX)).map(|(_, spent)| *spent).collect();
        let mean = ranks.iter().map(|(seconds, _)| seconds).sum::<f64>() / ranks.len().max(1) as f64;
        let largest = ranks.iter().map(|(seconds, _)| *seconds).fold(0.0, f64::max);
        let bytes: u64 = ranks.iter().map(|(_, bytes)| bytes).sum();
        writeln!(to, "{phase:width$}  {mean:>12.3}  {largest:>12.3}  {bytes:>16}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{one_cell, one_line};

    #[test]
    fn lines_stay_lines() {
        let all = "a\nb\rc\u{2028}d\u{2029}e\u{85}f\x0bg\x0ch\x1ci\x1dj\x1ek\tl";
        assert_eq!(one_line(all), "a b c d e f g h i j k\tl");
        assert_eq!(one_cell(all), "a b c d e f g h i j k l");
    }
}
