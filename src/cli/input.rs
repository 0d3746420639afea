//! Options that say where in an input its texts are.

use clap::Args;
use serde::Serialize;

use crate::corpus::{ColumnChoice, Format, Kind, Reading};

/// Where the texts are.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize)]
pub struct InputArgs {
    /// JSONL: the member that holds the text; a path such as body.text leads into objects. Default: text (of prompts:
    /// prompt, prompt_token_ids or messages; of pairs: source)
    #[arg(long, value_name = "NAME", help_heading = "Input and output")]
    pub field: Option<String>,

    /// TSV: where the columns are, by name or, in files without a header line, by number from 1: text=sentence,id=key or
    /// 2 or text=2,id=1. Default: a header line with the usual names
    #[arg(long, value_name = "COLUMNS", value_parser = columns, help_heading = "Input and output")]
    pub columns: Option<ColumnChoice>,

    /// What all files hold, whatever their names say: lines, tsv or jsonl
    #[arg(long, value_name = "FORMAT", value_parser = format, help_heading = "Input and output")]
    pub format: Option<Format>,
}

impl InputArgs {
    /// What is read from rows of this kind.
    pub fn reading(&self, kind: Kind) -> Reading {
        Reading {
            kind,
            format: self.format,
            field: self.field.clone(),
            columns: self.columns.clone(),
            ..Reading::default()
        }
    }
}

fn columns(text: &str) -> Result<ColumnChoice, String> {
    text.parse().map_err(|error: anyhow::Error| format!("{error:#}"))
}

fn format(text: &str) -> Result<Format, String> {
    text.parse().map_err(|error: anyhow::Error| format!("{error:#}"))
}
