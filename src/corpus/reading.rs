//! What a job reads from the rows of its input, and where in a row it is written.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};

use super::format::Format;

/// What a row is to the job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A sentence to translate, with languages of its own if it names them.
    #[default]
    Sentences,
    /// A text to score.
    Documents,
    /// A text, token ids or a chat to go on from, with settings of its own if it names them.
    Prompts,
    /// A source and a target to score after it. In plain lines a tab stands between them.
    Pairs,
}

/// What a job reads from its input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reading {
    /// What a row is.
    pub kind: Kind,
    /// The format of all files, whatever their names say.
    pub format: Option<Format>,
    /// JSONL: the member that holds the text (source, prompt); a path such as `a.b` leads into objects.
    pub field: Option<String>,
    /// TSV: where the columns are.
    pub columns: Option<ColumnChoice>,
    /// Token ids from here on are in no vocabulary: rows with them cannot be used.
    pub id_limit: Option<u32>,
}

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// The text, or prompt, or source of a pair.
    Text,
    /// The target of a pair.
    Target,
    /// The row's id.
    Id,
    /// The source language.
    SourceLang,
    /// The target language.
    TargetLang,
}

/// The columns of TSV files as a user gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ColumnChoice {
    /// By name: the files have a header. What is not named is looked for under its usual name.
    Names(BTreeMap<Role, String>),
    /// By number, from 1: the files have no header. What has no number is not read.
    Numbers(BTreeMap<Role, usize>),
}

impl Kind {
    /// Whether a row may have what such a column holds.
    pub(crate) fn has(self, role: Role) -> bool {
        match role {
            Role::Text | Role::Id => true,
            Role::Target => self == Kind::Pairs,
            Role::SourceLang | Role::TargetLang => matches!(self, Kind::Sentences | Kind::Pairs),
        }
    }
}

impl Role {
    /// Columns or members that hold this, the best name first.
    pub(crate) fn names(self, kind: Kind) -> &'static [&'static str] {
        match (self, kind) {
            (Role::Text, Kind::Sentences | Kind::Documents) => &["text"],
            (Role::Text, Kind::Prompts) => &["prompt", "text"],
            (Role::Text, Kind::Pairs) => &["source", "text"],
            (Role::Target, _) => &["target"],
            (Role::Id, _) => &["custom_id", "id"],
            (Role::SourceLang, _) => &["source_lang"],
            (Role::TargetLang, _) => &["target_lang"],
        }
    }
}

impl FromStr for Role {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Role> {
        Ok(match name {
            "text" | "source" | "prompt" => Role::Text,
            "target" => Role::Target,
            "id" | "custom_id" => Role::Id,
            "source_lang" => Role::SourceLang,
            "target_lang" => Role::TargetLang,
            _ => bail!(
                "`{name}` is nothing that a column can hold: text (or source, prompt), target, id, source_lang, target_lang"
            ),
        })
    }
}

impl FromStr for ColumnChoice {
    type Err = anyhow::Error;

    /// Reads `text=2,id=1`, `text=sentence`, `2`, or `1,2` (the first bare one is the text or source, the second the
    /// target).
    fn from_str(list: &str) -> Result<ColumnChoice> {
        let mut names: BTreeMap<Role, String> = BTreeMap::new();
        for (i, entry) in list.split(',').map(str::trim).enumerate() {
            let (role, column) = match (entry.split_once('='), i) {
                (Some((role, column)), _) => (role.trim().parse()?, column.trim()),
                (None, 0) => (Role::Text, entry),
                (None, 1) => (Role::Target, entry),
                (None, _) => bail!("`{entry}`: say what the column holds, e.g. id={entry}"),
            };
            if column.is_empty() {
                bail!("`{list}`: a column is missing; write e.g. text=2,id=1 or text=sentence");
            }
            if names.insert(role, column.to_owned()).is_some() {
                bail!("`{list}`: two columns for the same thing; keep one");
            }
        }
        let numbers: Vec<(Role, usize)> = names
            .iter()
            .filter_map(|(role, column)| Some((*role, column.parse().ok()?)))
            .collect();
        if numbers.is_empty() {
            return Ok(ColumnChoice::Names(names));
        }
        if numbers.len() < names.len() {
            bail!("`{list}`: names (files with a header) and numbers (files without one) don't go together");
        }
        if numbers.iter().any(|(_, number)| *number == 0) {
            bail!("`{list}`: columns are numbered from 1");
        }
        Ok(ColumnChoice::Numbers(numbers.into_iter().collect()))
    }
}

impl ColumnChoice {
    /// The roles that have a column.
    fn roles(&self) -> Vec<Role> {
        match self {
            ColumnChoice::Names(names) => names.keys().copied().collect(),
            ColumnChoice::Numbers(numbers) => numbers.keys().copied().collect(),
        }
    }
}

impl Reading {
    /// A reading of rows of a kind, all else by the names of files, members and columns.
    pub fn of(kind: Kind) -> Reading {
        Reading {
            kind,
            ..Reading::default()
        }
    }

    /// Whether TSV files begin with a header line.
    pub(crate) fn has_header(&self) -> bool {
        !matches!(self.columns, Some(ColumnChoice::Numbers(_)))
    }

    /// Compares what was asked for with the formats of the input's files.
    ///
    /// # Errors
    /// A field or columns without a file that has them; columns that the kind of row has no use for, or that lack
    /// the text.
    pub(crate) fn check(&self, formats: &[Format]) -> Result<()> {
        if self.field.is_some() && !formats.contains(&Format::Jsonl) {
            bail!("--field is for JSONL, and no input is .jsonl (--format jsonl says so where names don't)");
        }
        let Some(columns) = &self.columns else {
            return Ok(());
        };
        if !formats.contains(&Format::Tsv) {
            bail!("--columns is for TSV, and no input is .tsv (--format tsv says so where names don't)");
        }
        let roles = columns.roles();
        if let Some(role) = roles.iter().find(|role| !self.kind.has(**role)) {
            bail!(
                "--columns: this job has no use for a column `{}`",
                role.names(self.kind)[0]
            );
        }
        let needed = match self.kind {
            Kind::Pairs => &[Role::Text, Role::Target][..],
            _ => &[Role::Text],
        };
        match needed.iter().find(|role| !roles.contains(role)) {
            Some(role) if !self.has_header() => bail!(
                "--columns gives no number for `{}`: in files without a header each column needs one",
                role.names(self.kind)[0]
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_named_or_numbered() {
        let numbers = |list: &str| match list.parse().unwrap() {
            ColumnChoice::Numbers(numbers) => numbers.into_iter().collect::<Vec<_>>(),
            names => panic!("{names:?}"),
        };
        assert_eq!(numbers("2"), [(Role::Text, 2)]);
        assert_eq!(numbers("text=2, id=1"), [(Role::Text, 2), (Role::Id, 1)]);
        assert_eq!(numbers("3,1,id=2"), [(Role::Text, 3), (Role::Target, 1), (Role::Id, 2)]);
        assert_eq!(numbers("source=1,target=2"), [(Role::Text, 1), (Role::Target, 2)]);
        let names = BTreeMap::from([(Role::Text, "my text".to_owned()), (Role::Id, "key".to_owned())]);
        assert_eq!(
            "text=my text,custom_id=key".parse::<ColumnChoice>().unwrap(),
            ColumnChoice::Names(names)
        );
        for (bad, what) in [
            ("0", "from 1"),
            ("", "missing"),
            ("text=", "missing"),
            ("2,target=x", "don't go together"),
            ("1,2,3", "id=3"),
            ("text=1,source=2", "same thing"),
            ("size=3", "`size`"),
        ] {
            let message = bad.parse::<ColumnChoice>().unwrap_err().to_string();
            assert!(message.contains(what), "{bad}: {message}");
        }
    }

    #[test]
    fn what_no_file_can_follow_is_refused() {
        let reading = |kind, columns: &str, field: &str| Reading {
            columns: (!columns.is_empty()).then(|| columns.parse().unwrap()),
            field: (!field.is_empty()).then(|| field.to_owned()),
            ..Reading::of(kind)
        };
        let all = [Format::Lines, Format::Tsv, Format::Jsonl];
        for (kind, columns, field, formats, refused) in [
            (Kind::Documents, "2", "a.b", &all[..], ""),
            (Kind::Documents, "2", "", &[Format::Lines], "--columns is for TSV"),
            (Kind::Documents, "", "a", &[Format::Tsv], "--field is for JSONL"),
            (Kind::Documents, "2,target=1", "", &all, "no use for a column `target`"),
            (Kind::Prompts, "text=a,source_lang=b", "", &all, "`source_lang`"),
            (Kind::Prompts, "id=1", "", &all, "no number for `prompt`"),
            (Kind::Prompts, "id=key", "", &all, ""),
            (Kind::Pairs, "1", "", &all, "no number for `target`"),
            (Kind::Pairs, "1,2", "", &all, ""),
            (Kind::Sentences, "1,source_lang=2", "", &all, ""),
        ] {
            let found = reading(kind, columns, field).check(formats);
            match found {
                Ok(()) => assert_eq!(refused, "", "{columns}"),
                Err(e) => assert!(!refused.is_empty() && e.to_string().contains(refused), "{e}"),
            }
        }
    }
}
