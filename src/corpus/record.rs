//! One row of an input, read from one line.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::format::Format;
use super::jsonl::{self, Object};
use super::reading::{Kind, Reading};
use super::settings::RowSettings;
use super::tsv::{self, Columns};

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// One row of an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The row's number in the input, from 0, counted through all its files. A TSV header is no row.
    pub index: u64,
    /// `custom_id` or `id`, where the input has one.
    pub id: Option<String>,
    /// The text; of a pair the source; of ids and messages their JSON. Of a row with a problem: the line as far as it
    /// can be shown (what is not text as U+FFFD).
    pub text: String,
    /// The target of a pair.
    pub target: Option<String>,
    /// How a prompt is written.
    pub prompt: Prompt,
    /// What the row asks for instead of the job's settings (prompts in JSONL).
    pub settings: RowSettings,
    /// The row's own source language code.
    pub source_lang: Option<String>,
    /// The row's own target language code.
    pub target_lang: Option<String>,
    /// Why the row cannot be used, with the place and the cure.
    pub problem: Option<String>,
}

/// How a prompt is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prompt {
    /// As the record's text.
    #[default]
    Text,
    /// As token ids, `[tokens]`, to which nothing is added.
    Ids(Vec<u32>),
    /// As messages of a chat: see `Tokenizer::encode_chat`.
    Messages(Chat),
}

/// A chat, and what its template is given beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chat {
    /// Objects with `role` and `content`, at least one.
    pub messages: Vec<Value>,
    /// `tools`, `documents`, and what else the template may read, by name.
    pub template_arguments: Map<String, Value>,
}

impl Record {
    /// Whether the row has nothing to work on: no ids, no text (of a pair: no target), or Unicode whitespace only.
    pub fn is_blank(&self) -> bool {
        match (&self.prompt, &self.target) {
            (Prompt::Ids(ids), _) => ids.is_empty(),
            (Prompt::Messages(_), _) => false,
            (Prompt::Text, target) => target.as_ref().unwrap_or(&self.text).chars().all(char::is_whitespace),
        }
    }
}

/// Where a line stands, for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Row number, from 0.
    pub index: u64,
    /// Byte in the decoded file at which the line begins.
    pub offset: u64,
}

/// The line without its line end, and, at the start of a file, without its byte order mark.
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
pub(crate) fn parse(raw: &[u8], place: Place, format: Format, reading: &Reading, columns: Option<&Columns>) -> Record {
    with_object(raw, place, format, reading, columns).0
}

/// As [`parse`], beside the object that a row in JSONL is; an empty one of other rows and of rows with a problem.
pub(crate) fn with_object(
    raw: &[u8],
    place: Place,
    format: Format,
    reading: &Reading,
    columns: Option<&Columns>,
) -> (Record, Object) {
    let mut object = Object::new();
    let content = line_content(raw, place.offset);
    let parsed = text_of(content, raw, place).and_then(|line| match (format, columns) {
        // A blank line stays a blank row: lines in, lines out.
        _ if is_blank_line(line) && !(format == Format::Lines && reading.kind != Kind::Pairs) => Ok(Record::default()),
        (Format::Lines, _) if reading.kind == Kind::Pairs => tsv::pair(line),
        (Format::Lines, _) => Ok(Record {
            text: line.to_owned(),
            ..Record::default()
        }),
        (Format::Tsv, Some(columns)) => columns.row(line, reading.has_header()),
        (Format::Tsv, None) => Err("the file has no header line: start it with the column names".to_owned()),
        (Format::Jsonl, _) => jsonl::row(line, reading).map(|(record, read)| {
            object = read;
            record
        }),
    });
    let mut record = parsed.unwrap_or_else(|problem| Record {
        id: (format == Format::Jsonl)
            .then(|| jsonl::id_of_unusable(content, reading))
            .flatten(),
        text: String::from_utf8_lossy(content).replace('\0', "\u{FFFD}"),
        problem: Some(problem),
        ..Record::default()
    });
    record.index = place.index;
    (record, object)
}

/// Whether a line of columns or members holds nothing at all; a tab divides two empty columns.
pub(crate) fn is_blank_line(line: &str) -> bool {
    line.trim().is_empty() && !line.contains('\t')
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
            "byte {} of the line, byte {} of the file",
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

/// The beginning of a line, short enough for a message.
pub(crate) fn shown(line: &str) -> String {
    let mut short: String = line.chars().take(60).collect::<String>().escape_debug().to_string();
    if line.chars().nth(60).is_some() {
        short.push_str("...");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

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
            &Reading::default(),
            None,
        );
        let problem = record.problem.unwrap();
        assert!(
            problem.contains("0xFF at byte 1 of the line, byte 4 of the file"),
            "{problem}"
        );
        assert_eq!(record.text, "a\u{FFFD}");
    }

    #[test]
    fn blank_lines_are_blank_rows_in_every_format() {
        let columns = Columns::of_header("text\tid", &Reading::default()).unwrap();
        let place = Place { index: 7, offset: 100 };
        for kind in [Kind::Sentences, Kind::Documents, Kind::Prompts, Kind::Pairs] {
            for format in [Format::Lines, Format::Tsv, Format::Jsonl] {
                for line in ["\n", " \u{A0}\r\n"] {
                    let record = parse(line.as_bytes(), place, format, &Reading::of(kind), Some(&columns));
                    assert!(
                        record.is_blank() && record.problem.is_none(),
                        "{kind:?} {format:?} {line:?}"
                    );
                    assert_eq!(record.index, 7);
                }
            }
        }
        let columns = Some(&columns);
        let tabs = parse(b"\t\n", place, Format::Tsv, &Reading::default(), columns);
        assert!(tabs.is_blank() && tabs.problem.is_none());
        let tabs = parse(b"\t\t\n", place, Format::Tsv, &Reading::default(), columns);
        assert!(tabs.problem.unwrap().contains("3 columns"));
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

    #[test]
    fn a_pair_without_a_target_is_blank() {
        for (source, target, blank) in [("a", " ", true), ("", "b", false), ("", "", true)] {
            let record = Record {
                text: source.into(),
                target: Some(target.into()),
                ..Record::default()
            };
            assert_eq!(record.is_blank(), blank, "{source:?} {target:?}");
        }
    }
}
