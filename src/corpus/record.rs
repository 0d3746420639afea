//! One row of an input, read from one line.

use anyhow::{bail, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::format::Format;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One row of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The row's number in the input, from 0. A TSV header is no row.
    pub index: u64,
    /// `custom_id` or `id`, where the input has one.
    pub id: Option<String>,
    /// The text. Of a row with a problem: the line as far as it can be shown (what is not text as U+FFFD).
    pub text: String,
    /// The row's own source language code.
    pub source_lang: Option<String>,
    /// The row's own target language code.
    pub target_lang: Option<String>,
    /// Why the row cannot be used, with the place and the cure.
    pub problem: Option<String>,
}

impl Record {
    /// Whether the row has nothing to work on: no text, or Unicode whitespace only.
    pub fn is_blank(&self) -> bool {
        self.text.chars().all(char::is_whitespace)
    }
}

/// Where the columns of a TSV file lie, counted from 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// How many columns the header has.
    pub count: usize,
    /// The column `text`, or the first one.
    pub text: usize,
    /// The column `custom_id` or `id`.
    pub id: Option<usize>,
    /// The column `source_lang`.
    pub source_lang: Option<usize>,
    /// The column `target_lang`.
    pub target_lang: Option<usize>,
}

impl Columns {
    /// Reads a TSV header (without its line end).
    ///
    /// Without a `text` column the first one is the text; but one name must be known, else the "header" is most
    /// likely a sentence, which would be lost without a word.
    ///
    /// # Errors
    /// A name twice; no known name; no `text` while the first column is known as something else.
    pub(crate) fn of_header(header: &str) -> Result<Columns> {
        let names: Vec<&str> = header.split('\t').map(str::trim).collect();
        let find = |name: &str| -> Result<Option<usize>> {
            let mut found = names.iter().enumerate().filter(|(_, n)| **n == name).map(|(i, _)| i);
            let first = found.next();
            if found.next().is_some() {
                bail!("the header (line 1) has the column `{name}` twice: keep one");
            }
            Ok(first)
        };
        let id = match find("custom_id")? {
            Some(column) => Some(column),
            None => find("id")?,
        };
        let (text, source_lang, target_lang) = (find("text")?, find("source_lang")?, find("target_lang")?);
        let others = [id, source_lang, target_lang];
        let text = match text {
            Some(column) => column,
            None if others.contains(&Some(0)) || others.iter().all(Option::is_none) => bail!(
                "the header (line 1) is `{}`, which has no column `text`: a .tsv file starts with a line of column \
                 names (text, and if wanted id, source_lang, target_lang); without a header, name the file .txt",
                shown(header)
            ),
            None => 0,
        };
        Ok(Columns {
            count: names.len(),
            text,
            id,
            source_lang,
            target_lang,
        })
    }
}

/// Where a line stands, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Row number, from 0.
    pub index: u64,
    /// Byte in the decoded input at which the line begins.
    pub offset: u64,
}

/// The line without its line end, and, at the start of the input, without its byte order mark.
///
/// Only `\n` ends a line and only a `\r` right before it belongs to the line end.
pub(crate) fn line_content(raw: &[u8], offset: u64) -> &[u8] {
    let content = match raw.strip_suffix(b"\n") {
        Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
        None => raw,
    };
    match content.strip_prefix(BOM) {
        Some(rest) if offset == 0 => rest,
        _ => content,
    }
}

/// Reads one raw line (with its line end) as a row. Never fails: what is wrong becomes the row's `problem`.
pub(crate) fn parse(raw: &[u8], place: Place, format: Format, columns: Option<&Columns>) -> Record {
    let content = line_content(raw, place.offset);
    let parsed = text_of(content, raw, place).and_then(|line| match (format, columns) {
        (Format::Lines, _) => Ok(Record {
            text: line.to_owned(),
            ..Record::default()
        }),
        // A blank line stays a blank row: lines in, lines out.
        _ if line.trim().is_empty() && !line.contains('\t') => Ok(Record::default()),
        (Format::Tsv, Some(columns)) => of_tsv(line, columns),
        (Format::Tsv, None) => Err("the file has no header line: start it with the column names".to_owned()),
        (Format::Jsonl, _) => of_json(line),
    });
    let mut record = parsed.unwrap_or_else(|problem| Record {
        text: String::from_utf8_lossy(content).replace('\0', "\u{FFFD}"),
        problem: Some(problem),
        ..Record::default()
    });
    record.index = place.index;
    record
}

/// The line as text, or what keeps it from being text.
fn text_of<'a>(content: &'a [u8], raw: &'a [u8], place: Place) -> Result<&'a str, String> {
    let mark = if place.offset == 0 && raw.starts_with(BOM) {
        BOM.len()
    } else {
        0
    };
    let at = |byte: usize| {
        format!(
            "byte {} of the line, byte {} of the input",
            byte,
            place.offset + (mark + byte) as u64
        )
    };
    let text = std::str::from_utf8(content).map_err(|e| {
        let byte = e.valid_up_to();
        format!(
            "not UTF-8: 0x{:02X} at {}; convert the file, for instance with `iconv -f WINDOWS-1252 -t UTF-8`",
            content[byte],
            at(byte)
        )
    })?;
    match content.iter().position(|b| *b == 0) {
        None => Ok(text),
        Some(byte) => Err(format!(
            "a NUL at {}; if the file is UTF-16 convert it with `iconv -f UTF-16 -t UTF-8`, else remove it with \
             `tr -d '\\000'`",
            at(byte)
        )),
    }
}

fn of_tsv(line: &str, columns: &Columns) -> Result<Record, String> {
    let cells: Vec<&str> = line.split('\t').collect();
    if cells.len() != columns.count {
        return Err(format!(
            "{} columns, while the header has {}: a tab inside the text must be replaced",
            cells.len(),
            columns.count
        ));
    }
    let cell = |column: Option<usize>| {
        column
            .map(|c| cells[c].trim())
            .filter(|c| !c.is_empty())
            .map(str::to_owned)
    };
    Ok(Record {
        id: cell(columns.id),
        text: cells[columns.text].to_owned(),
        source_lang: cell(columns.source_lang),
        target_lang: cell(columns.target_lang),
        ..Record::default()
    })
}

fn of_json(line: &str) -> Result<Record, String> {
    let value: Value = serde_json::from_str(line)
        .map_err(|e| format!("not JSON: {}", e.to_string().replace(" at line 1 column", " at column")))?;
    let Value::Object(object) = value else {
        return Err(format!(
            "`{}` is not a JSON object: write {{\"text\": \"...\"}}",
            shown(line)
        ));
    };
    let text = match object.get("text") {
        Some(Value::String(text)) => text.clone(),
        None => return Err("the object has no field `text`".to_owned()),
        Some(other) => return Err(format!("`text` is {}, not a string", kind(other))),
    };
    let id = match string_field(&object, "custom_id")? {
        Some(id) => Some(id),
        None => string_field(&object, "id")?,
    };
    let record = Record {
        id,
        text,
        source_lang: string_field(&object, "source_lang")?,
        target_lang: string_field(&object, "target_lang")?,
        ..Record::default()
    };
    // The escape \u0000 is legal JSON; the strings of the results end at a NUL.
    let fields = [
        Some(&record.text),
        record.id.as_ref(),
        record.source_lang.as_ref(),
        record.target_lang.as_ref(),
    ];
    if fields.into_iter().flatten().any(|f| f.contains('\0')) {
        return Err("a NUL (\\u0000) in a string: remove it".to_owned());
    }
    Ok(record)
}

/// An optional field that is a string; a number is taken as it is written, null as absent.
fn string_field(object: &Map<String, Value>, name: &str) -> Result<Option<String>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) if s.is_empty() => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(Value::Number(n)) if name.ends_with("id") => Ok(Some(n.to_string())),
        Some(other) => Err(format!("`{name}` is {}, not a string", kind(other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The beginning of a line, short enough for a message.
fn shown(line: &str) -> String {
    let mut short: String = line.chars().take(60).collect::<String>().escape_debug().to_string();
    if line.chars().nth(60).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(raw: &[u8], format: Format, columns: Option<&Columns>) -> Record {
        parse(raw, Place { index: 7, offset: 100 }, format, columns)
    }

    #[test]
    fn only_newline_and_one_cr_before_it_end_a_line() {
        assert_eq!(line_content(b"a\r\n", 9), b"a");
        assert_eq!(line_content(b"a\r\r\n", 9), b"a\r");
        assert_eq!(line_content(b"a\rb\n", 9), b"a\rb");
        assert_eq!(line_content(b"a\r", 9), b"a\r");
        assert_eq!(line_content(b"\xEF\xBB\xBFa\n", 0), b"a");
        assert_eq!(line_content(b"\xEF\xBB\xBFa\n", 9), b"\xEF\xBB\xBFa");
    }

    #[test]
    fn places_count_the_byte_order_mark() {
        let record = parse(
            b"\xEF\xBB\xBFa\xFF\n",
            Place { index: 0, offset: 0 },
            Format::Lines,
            None,
        );
        let problem = record.problem.unwrap();
        assert!(
            problem.contains("0xFF at byte 1 of the line, byte 4 of the input"),
            "{problem}"
        );
        assert_eq!(record.text, "a\u{FFFD}");
    }

    #[test]
    fn headers() {
        let columns = Columns::of_header("id\ttext\ttarget_lang").unwrap();
        assert_eq!(
            (columns.text, columns.id, columns.target_lang, columns.source_lang),
            (1, Some(0), Some(2), None)
        );
        assert_eq!(Columns::of_header("sentence\tid").unwrap().text, 0);
        for bad in ["Good morning.", "id\tsource_lang", "text\ttext", ""] {
            assert!(Columns::of_header(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn tsv_rows() {
        let columns = Columns::of_header("custom_id\ttext\tsource_lang\ttarget_lang").unwrap();
        let record = row(b"x1\t a b \teng_Latn\t\n", Format::Tsv, Some(&columns));
        assert_eq!(record.index, 7);
        assert_eq!(record.id.as_deref(), Some("x1"));
        assert_eq!(record.text, " a b ");
        assert_eq!(
            (record.source_lang.as_deref(), record.target_lang),
            (Some("eng_Latn"), None)
        );
        assert!(row(b"x1\ta\tb\n", Format::Tsv, Some(&columns))
            .problem
            .unwrap()
            .contains("3 columns"));
        let blank = row(b"\n", Format::Tsv, Some(&columns));
        assert!(blank.is_blank() && blank.problem.is_none());
    }

    #[test]
    fn json_rows() {
        let good = row(
            br#"{"custom_id": 12, "id": "z", "text": "a\nb", "target_lang": "fra_Latn", "x": [1]}"#,
            Format::Jsonl,
            None,
        );
        assert_eq!((good.id.as_deref(), good.text.as_str()), (Some("12"), "a\nb"));
        assert_eq!(good.problem, None);
        assert!(row(b"  \n", Format::Jsonl, None).is_blank());
        for (bad, what) in [
            (
                &br#"{"text": "a""#[..],
                "not JSON: EOF while parsing an object at column",
            ),
            (br#"["a"]"#, "not a JSON object"),
            (br#"{"id": "a"}"#, "no field `text`"),
            (br#"{"text": null}"#, "`text` is null"),
            (br#"{"text": "a", "source_lang": 3}"#, "`source_lang` is a number"),
            (br#"{"text": "a\u0000"}"#, "NUL"),
            (br#"{"text": "\ud800"}"#, "not JSON"),
        ] {
            let problem = row(bad, Format::Jsonl, None).problem.expect("a problem");
            assert!(problem.contains(what), "{problem}");
        }
        let deep = "[".repeat(100_000);
        assert!(row(deep.as_bytes(), Format::Jsonl, None).problem.is_some());
    }

    #[test]
    fn blank_means_unicode_whitespace() {
        for (text, blank) in [
            ("", true),
            (" \t\u{A0}\u{2028}\u{85}\u{3000}\r", true),
            ("\u{200B}", false),
            (" a", false),
        ] {
            assert_eq!(
                Record {
                    text: text.into(),
                    ..Record::default()
                }
                .is_blank(),
                blank,
                "{text:?}"
            );
        }
    }
}
