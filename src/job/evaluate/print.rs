//! What `sluice evaluate` prints: a table for people, JSON for programs.

use super::{Scored, System};
use crate::job::columns::aligned;
use crate::metrics::perplexity::Sums;
use crate::results::Status;
use anyhow::Result;
use serde_json::{json, Map, Value};
use std::fmt::Write;

/// Files that scored with one model and the same windows are shards of one corpus: their sums together. None for fewer than
/// two files.
fn together(scored: &[Scored]) -> Option<Sums> {
    (scored.len() > 1 && apart(scored).is_none()).then(|| {
        let mut all = Sums::default();
        scored.iter().for_each(|file| all.merge(&file.sums));
        all
    })
}

/// What keeps files from being added up.
fn apart(scored: &[Scored]) -> Option<&'static str> {
    let alike = |same: fn(&Scored, &Scored) -> bool| scored.windows(2).all(|pair| same(&pair[0], &pair[1]));
    match (
        alike(|a, b| a.model_sha256 == b.model_sha256),
        alike(|a, b| a.windows == b.windows),
    ) {
        (false, _) => Some("different models"),
        (true, false) => Some("a different --window, --stride or --prefix"),
        (true, true) => None,
    }
}

fn count(statuses: &[u64; Status::ALL.len()], status: Status) -> u64 {
    statuses[status as usize]
}

/// Every figure unrounded; what is not finite is null.
pub(super) fn json(systems: &[System], scored: &[Scored]) -> Result<String> {
    let mut page = Map::new();
    page.insert("version".to_owned(), json!(env!("CARGO_PKG_VERSION")));
    let status = |statuses: &[u64; Status::ALL.len()]| {
        let named = Status::ALL.iter().zip(statuses);
        json!(named
            .map(|(s, n)| (s.name(), *n))
            .collect::<std::collections::BTreeMap<_, _>>())
    };
    let system = |s: &System| {
        let figure = |figure: &crate::metrics::measure::Figure| {
            let mut object = Map::new();
            object.insert("name".to_owned(), json!(figure.name));
            object.insert("score".to_owned(), json!(figure.score));
            object.insert("signature".to_owned(), json!(figure.signature));
            object.extend(figure.parts.clone());
            Value::Object(object)
        };
        json!({
            "file": s.file.display().to_string(), "job": s.job, "model_sha256": s.model_sha256, "target_lang": s.target,
            "references": s.references.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
            "rows": s.statuses.iter().sum::<u64>(), "by_status": status(&s.statuses),
            "metrics": s.figures.iter().map(figure).collect::<Vec<_>>(),
        })
    };
    if !systems.is_empty() {
        page.insert("systems".to_owned(), systems.iter().map(system).collect());
    }
    let sums = |sums: &Sums| {
        json!({
            "tokens": sums.tokens, "words": sums.words, "bytes": sums.bytes, "impossible_tokens": sums.impossible,
            "logprob": sums.logprob(), "token_perplexity": sums.token_perplexity(),
            "word_perplexity": sums.word_perplexity(), "byte_perplexity": sums.byte_perplexity(),
            "bits_per_byte": sums.bits_per_byte(),
        })
    };
    if !scored.is_empty() {
        let file = |s: &Scored| {
            json!({
                "file": s.file.display().to_string(), "model_sha256": s.model_sha256,
                "rows": s.statuses.iter().sum::<u64>(), "by_status": status(&s.statuses), "perplexity": sums(&s.sums),
            })
        };
        page.insert("scored".to_owned(), scored.iter().map(file).collect());
        if let Some(all) = together(scored) {
            page.insert("scored_together".to_owned(), sums(&all));
        }
    }
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}

/// Tables, then signatures and what is to be known of rows.
pub(super) fn table(systems: &[System], scored: &[Scored]) -> String {
    let mut page = String::new();
    if let Some(first) = systems.first() {
        let mut head = vec!["file".to_owned(), "target".to_owned(), "rows".to_owned()];
        head.extend(first.figures.iter().map(|figure| figure.name.clone()));
        let row = |s: &System| {
            let mut cells = vec![
                s.file.display().to_string(),
                s.target.clone().unwrap_or_else(|| "-".to_owned()),
                s.statuses.iter().sum::<u64>().to_string(),
            ];
            cells.extend(s.figures.iter().map(|figure| format!("{:.2}", figure.score)));
            cells
        };
        aligned(
            &mut page,
            2,
            std::iter::once(head).chain(systems.iter().map(row)).collect(),
        );
        page.push('\n');
        signatures(&mut page, systems);
    }
    if !scored.is_empty() {
        if !systems.is_empty() {
            page.push('\n');
        }
        let head = [
            "file",
            "rows",
            "tokens",
            "words",
            "bytes",
            "log-prob",
            "ppl/token",
            "ppl/word",
            "ppl/byte",
            "bits/byte",
        ];
        let row = |name: String, rows: u64, sums: &Sums| {
            let figure = |figure: Option<f64>| figure.map_or("-".to_owned(), |figure| format!("{figure:.4}"));
            let mut cells = vec![name];
            cells.extend([rows, sums.tokens, sums.words, sums.bytes].map(|count| count.to_string()));
            cells.push(format!("{:.4}", sums.logprob()));
            cells.extend(
                [
                    sums.token_perplexity(),
                    sums.word_perplexity(),
                    sums.byte_perplexity(),
                    sums.bits_per_byte(),
                ]
                .map(figure),
            );
            cells
        };
        let rows = |s: &Scored| s.statuses.iter().sum::<u64>();
        let mut cells = vec![head.map(str::to_owned).to_vec()];
        cells.extend(
            scored
                .iter()
                .map(|s| row(s.file.display().to_string(), rows(s), &s.sums)),
        );
        if let Some(all) = together(scored) {
            cells.push(row("all".to_owned(), scored.iter().map(rows).sum(), &all));
        }
        aligned(&mut page, 1, cells);
    }
    notes(&mut page, systems, scored);
    page
}

/// Each signature once, after the figures that it is of.
fn signatures(page: &mut String, systems: &[System]) {
    let mut all: Vec<(&str, Vec<&str>)> = Vec::new();
    for figure in systems.iter().flat_map(|s| &s.figures) {
        match all.iter_mut().find(|(signature, _)| *signature == figure.signature) {
            Some((_, names)) if names.contains(&figure.name.as_str()) => {}
            Some((_, names)) => names.push(&figure.name),
            None => all.push((&figure.signature, vec![&figure.name])),
        }
    }
    for (signature, names) in all {
        let _ = writeln!(page, "{}  {signature}", names.join(", "));
    }
}

/// Rows that are not what they seem.
fn notes(page: &mut String, systems: &[System], scored: &[Scored]) {
    for s in systems {
        let (blank, failed) = (count(&s.statuses, Status::Blank), count(&s.statuses, Status::Failed));
        if blank + failed > 0 {
            let of = s
                .target
                .as_ref()
                .map(|target| format!(", {target}"))
                .unwrap_or_default();
            let file = s.file.display();
            let _ = writeln!(
                page,
                "{file}{of}: {failed} failed and {blank} blank rows count as empty outputs"
            );
        }
    }
    for s in scored {
        let (blank, failed) = (count(&s.statuses, Status::Blank), count(&s.statuses, Status::Failed));
        let file = s.file.display();
        if blank + failed > 0 {
            let _ = writeln!(page, "{file}: {failed} failed and {blank} blank rows are left out");
        }
        let cut = count(&s.statuses, Status::InputCut);
        if cut > 0 {
            let _ = writeln!(
                page,
                "{file}: {cut} rows were cut; all their words and bytes count, so perplexities by word and byte are too low"
            );
        }
        if s.sums.impossible > 0 {
            let impossible = s.sums.impossible;
            let _ = writeln!(page, "{file}: {impossible} tokens have a log-probability of -inf");
        }
    }
    if let Some(what) = apart(scored) {
        let _ = writeln!(page, "the files were scored with {what}, so they are not added up");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(model: &str, prefix: Value) -> Scored {
        let mut sums = Sums::default();
        sums.add("a b", &[-1.0, -2.0]).expect("added");
        Scored {
            file: "s.h5".into(),
            model_sha256: model.to_owned(),
            windows: [json!(8), json!(8), prefix],
            statuses: Default::default(),
            sums,
        }
    }

    #[test]
    fn only_what_was_scored_alike_is_added_up() {
        let alike = [scored("a", json!(3)), scored("a", json!(3))];
        assert_eq!(together(&alike).map(|sums| sums.tokens), Some(4));
        assert_eq!(together(&alike[..1]), None);
        for (other, said) in [
            (scored("a", Value::Null), "--prefix"),
            (scored("b", json!(3)), "different models"),
        ] {
            let files = [scored("a", json!(3)), other];
            assert_eq!(together(&files), None);
            assert!(table(&[], &files).contains(said), "{said}");
        }
    }
}
