//! Rows of tab-separated columns.

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};

use super::reading::{ColumnChoice, Kind, Reading, Role};
use super::record::{shown, Record};

/// Where the columns of a TSV file lie, counted from 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// How many columns the header, or without one the first row, has.
    pub count: usize,
    /// The text, prompt or source.
    pub text: usize,
    /// The target of a pair.
    pub target: Option<usize>,
    /// The row's id.
    pub id: Option<usize>,
    /// The source language.
    pub source_lang: Option<usize>,
    /// The target language.
    pub target_lang: Option<usize>,
}

impl Columns {
    /// Reads a TSV header (without its line end).
    ///
    /// Without a `text` column the first one is the text; but one name must be known, else the "header" is most
    /// likely a sentence, which would be lost without a word. Pairs need both names.
    ///
    /// # Errors
    /// A name twice; no known name; no `text` while the first column is known as something else; a column that was
    /// asked for by a name that is not there.
    pub(crate) fn of_header(header: &str, reading: &Reading) -> Result<Columns> {
        let names: Vec<&str> = header.split('\t').map(str::trim).collect();
        let column = |name: &str| -> Result<Option<usize>> {
            let mut found = names.iter().enumerate().filter(|(_, n)| **n == name).map(|(i, _)| i);
            let first = found.next();
            if found.next().is_some() {
                bail!("the header (line 1) has the column `{name}` twice: keep one");
            }
            Ok(first)
        };
        let asked = |role: Role| match &reading.columns {
            Some(ColumnChoice::Names(names)) => names.get(&role),
            _ => None,
        };
        let find = |role: Role| -> Result<Option<usize>> {
            if let Some(name) = asked(role) {
                return match column(name)? {
                    Some(column) => Ok(Some(column)),
                    None => bail!(
                        "the header (line 1) is `{}`, which has no column `{name}`",
                        shown(header)
                    ),
                };
            }
            if reading.kind.has(role) {
                for name in role.names(reading.kind) {
                    if let Some(column) = column(name)? {
                        return Ok(Some(column));
                    }
                }
            }
            Ok(None)
        };
        let (text, target, id) = (find(Role::Text)?, find(Role::Target)?, find(Role::Id)?);
        let (source_lang, target_lang) = (find(Role::SourceLang)?, find(Role::TargetLang)?);
        let others = [id, source_lang, target_lang];
        let unknown = others.contains(&Some(0)) || others.iter().all(Option::is_none);
        let text = match (reading.kind, text, target) {
            (Kind::Pairs, Some(text), Some(_)) => text,
            (Kind::Pairs, _, _) => bail!(
                "the header (line 1) is `{}`, which has no columns `source` and `target`: a .tsv file starts with a line \
                 of column names; name others with --columns source=NAME,target=NAME; without a header give numbers: \
                 --columns 1,2",
                shown(header)
            ),
            (_, Some(text), _) => text,
            (kind, None, _) if unknown => bail!(
                "the header (line 1) is `{}`, which has no column `{}`: a .tsv file starts with a line of column \
                 names (text, and if wanted id{}); name another with --columns text=NAME; without a header give numbers \
                 (--columns 1), or name the file .txt",
                shown(header),
                Role::Text.names(kind).join("` or `"),
                if kind.has(Role::SourceLang) { ", source_lang, target_lang" } else { "" }
            ),
            _ => 0,
        };
        Ok(Columns {
            count: names.len(),
            text,
            target,
            id,
            source_lang,
            target_lang,
        })
    }

    /// The columns of a file without a header, given by number; `first` is its first line that is not blank.
    ///
    /// # Errors
    /// The line has fewer columns, or looks like a header.
    pub(crate) fn of_numbers(first: &[u8], reading: &Reading) -> Result<Columns> {
        let Some(ColumnChoice::Numbers(numbers)) = &reading.columns else {
            bail!("no columns are given by number");
        };
        let cells: Vec<&[u8]> = first.split(|byte| *byte == b'\t').collect();
        for (role, number) in numbers {
            let Some(cell) = cells.get(number - 1) else {
                bail!(
                    "its first row has {} columns, and --columns asks for column {number}",
                    cells.len()
                );
            };
            if let Some(name) = role.names(reading.kind).iter().find(|name| name.as_bytes() == *cell) {
                bail!(
                    "begins with a header (`{name}` in column {number}), which would be read as a row: give the columns \
                     by name, e.g. --columns text={name}"
                );
            }
        }
        let column = |role: Role| numbers.get(&role).map(|number| number - 1);
        Ok(Columns {
            count: cells.len(),
            text: column(Role::Text).unwrap_or_default(),
            target: column(Role::Target),
            id: column(Role::Id),
            source_lang: column(Role::SourceLang),
            target_lang: column(Role::TargetLang),
        })
    }

    /// Reads a line (without its line end) as a row, or says what keeps it from being one.
    pub(crate) fn row(&self, line: &str, has_header: bool) -> Result<Record, String> {
        let cells: Vec<&str> = line.split('\t').collect();
        if cells.len() != self.count {
            return Err(format!(
                "{} columns, while the {} has {}: a tab inside the text must be replaced",
                cells.len(),
                if has_header { "header" } else { "first row" },
                self.count
            ));
        }
        let cell = |column: Option<usize>| {
            column
                .map(|c| cells[c].trim())
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
        };
        Ok(Record {
            id: cell(self.id),
            text: cells[self.text].to_owned(),
            target: self.target.map(|column| cells[column].to_owned()),
            source_lang: cell(self.source_lang),
            target_lang: cell(self.target_lang),
            ..Record::default()
        })
    }
}

/// Reads a plain line as a pair: a source, a tab, a target.
pub(crate) fn pair(line: &str) -> Result<Record, String> {
    match line.split('\t').collect::<Vec<_>>()[..] {
        [source, target] => Ok(Record {
            text: source.to_owned(),
            target: Some(target.to_owned()),
            ..Record::default()
        }),
        [_] => Err("no tab: a pair is a source, a tab and a target".to_owned()),
        ref cells => Err(format!(
            "{} tabs: a pair is a source, one tab and a target",
            cells.len() - 1
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(kind: Kind, columns: &str) -> Reading {
        Reading {
            columns: (!columns.is_empty()).then(|| columns.parse().unwrap()),
            ..Reading::of(kind)
        }
    }

    #[test]
    fn headers() {
        let plain = Reading::default();
        let columns = Columns::of_header("id\ttext\ttarget_lang", &plain).unwrap();
        assert_eq!(
            (columns.text, columns.id, columns.target_lang, columns.source_lang),
            (1, Some(0), Some(2), None)
        );
        assert_eq!(Columns::of_header("sentence\tid", &plain).unwrap().text, 0);
        for bad in ["Good morning.", "id\tsource_lang", "text\ttext", ""] {
            assert!(Columns::of_header(bad, &plain).is_err(), "{bad:?}");
        }
        let pairs = Columns::of_header("target\tid\tsource\tsource_lang", &Reading::of(Kind::Pairs)).unwrap();
        assert_eq!(
            (pairs.text, pairs.target, pairs.id, pairs.source_lang),
            (2, Some(0), Some(1), Some(3))
        );
        assert_eq!(
            Columns::of_header("text\ttarget", &Reading::of(Kind::Pairs))
                .unwrap()
                .text,
            0
        );
        assert!(Columns::of_header("text\tid", &Reading::of(Kind::Pairs)).is_err());
        let prompts = Columns::of_header("text\tprompt\tsource_lang", &Reading::of(Kind::Prompts)).unwrap();
        assert_eq!(
            (prompts.text, prompts.source_lang),
            (1, None),
            "a job reads what it has use for"
        );
    }

    #[test]
    fn columns_by_name() {
        let asked = reading(Kind::Documents, "text=sentence,id=key");
        let columns = Columns::of_header("key\ttext\tsentence", &asked).unwrap();
        assert_eq!((columns.text, columns.id), (2, Some(0)));
        let message = Columns::of_header("key\ttext", &asked).unwrap_err().to_string();
        assert!(message.contains("no column `sentence`"), "{message}");
        let columns = Columns::of_header("id\tsentence", &reading(Kind::Documents, "sentence")).unwrap();
        assert_eq!(
            (columns.text, columns.id),
            (1, Some(0)),
            "the others by their usual names"
        );
    }

    #[test]
    fn columns_by_number() {
        let asked = reading(Kind::Pairs, "3,1,id=2");
        let columns = Columns::of_numbers(b"a\tb\tc\td\xFF", &asked).unwrap();
        assert_eq!(
            (columns.count, columns.text, columns.target, columns.id),
            (4, 2, Some(0), Some(1))
        );
        let message = Columns::of_numbers(b"a\tb", &asked).unwrap_err().to_string();
        assert!(
            message.contains("has 2 columns") && message.contains("column 3"),
            "{message}"
        );
        let message = Columns::of_numbers(b"target\tid\tsource", &asked)
            .unwrap_err()
            .to_string();
        assert!(message.contains("begins with a header"), "{message}");
    }

    #[test]
    fn rows() {
        let columns = Columns::of_header("custom_id\ttext\tsource_lang\ttarget_lang", &Reading::default()).unwrap();
        let record = columns.row("x1\t a b \teng_Latn\t", true).unwrap();
        assert_eq!((record.id.as_deref(), record.text.as_str()), (Some("x1"), " a b "));
        assert_eq!(
            (record.source_lang.as_deref(), record.target_lang),
            (Some("eng_Latn"), None)
        );
        assert!(columns
            .row("x1\ta\tb", true)
            .unwrap_err()
            .contains("3 columns, while the header has 4"));
        assert!(columns
            .row("x1\ta\tb", false)
            .unwrap_err()
            .contains("the first row has 4"));
    }

    #[test]
    fn pairs_in_plain_lines() {
        let record = pair("a b\t c").unwrap();
        assert_eq!((record.text.as_str(), record.target.as_deref()), ("a b", Some(" c")));
        assert!(pair("a b").unwrap_err().contains("no tab"));
        assert!(pair("a\tb\tc").unwrap_err().contains("2 tabs"));
        assert_eq!(pair("a\t").unwrap().target.as_deref(), Some(""));
    }
}
