//! Languages that flags and rows name, before any work.

use crate::cli::run::OnError;
use crate::corpus::{NllbTokenizer, Scan};
use anyhow::{bail, ensure, Context, Result};
use std::collections::BTreeMap;

/// Every language code that flags name must be one of the tokenizer's.
///
/// # Errors
/// Names the flag and the code.
pub fn of_flags(source: &Option<String>, targets: &[String], tokenizer: &NllbTokenizer) -> Result<()> {
    for (flag, code) in source
        .iter()
        .map(|c| ("--source", c))
        .chain(targets.iter().map(|c| ("--target", c)))
    {
        tokenizer
            .target_lang_id(code)
            .with_context(|| format!("{flag} {code}"))?;
    }
    Ok(())
}

/// Every language code that rows name must be one of the tokenizer's.
///
/// # Errors
/// Names the line and the code, or the flag that is missing.
pub fn of_rows(
    source: &Option<String>,
    targets: &[String],
    on_error: OnError,
    scan: &Scan,
    tokenizer: &NllbTokenizer,
) -> Result<()> {
    for (column, codes) in [("source_lang", &scan.source_langs), ("target_lang", &scan.target_langs)] {
        for (code, row) in codes {
            let place = || format!("{}: {column} {code}", scan.place(*row));
            tokenizer.target_lang_id(code).with_context(place)?;
        }
    }
    let rows = scan.rows > scan.blank;
    let missing =
        |flag: &Option<String>, line: Option<u64>| line.filter(|_| flag.is_none() && on_error == OnError::Fail);
    let nobody = |named: &BTreeMap<String, u64>| named.is_empty() && rows;
    if let Some(row) = missing(source, scan.without_source)
        .or(nobody(&scan.source_langs).then_some(0))
        .filter(|_| source.is_none())
    {
        bail!(
            "--source is missing: the language of the input, e.g. --source eng_Latn; {}, names no source_lang \
             of its own (a column in TSV and JSONL)",
            scan.place(row)
        );
    }
    let target = targets.first().cloned();
    if let Some(row) = missing(&target, scan.without_target)
        .or(nobody(&scan.target_langs).then_some(0))
        .filter(|_| target.is_none())
    {
        bail!(
            "--target is missing: the language to translate to, e.g. --target fra_Latn; {}, names no \
             target_lang of its own (a column in TSV and JSONL)",
            scan.place(row)
        );
    }
    ensure!(
        targets.len() < 2 || scan.target_langs.is_empty(),
        "--target names {} languages, and rows of {} name their own: leave one of them out",
        targets.len(),
        scan.name()
    );
    Ok(())
}
