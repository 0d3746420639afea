//! JSON as Python's `json.dumps` writes it, which chat templates call `tojson`.

use std::io::{Result, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::ser::Formatter;

/// The filter `tojson` as transformers has it: Python's `json.dumps`, with no escapes for HTML.
pub(crate) fn to_json(value: &minijinja::Value, arguments: Kwargs) -> std::result::Result<String, Error> {
    let indent: Option<usize> = arguments.get("indent")?;
    if arguments.get::<Option<bool>>("ensure_ascii")? == Some(true) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "tojson with ensure_ascii=true is not supported",
        ));
    }
    arguments.assert_all_used()?;
    written(value, indent).map_err(|e| Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))
}

fn written(value: &impl Serialize, indent: Option<usize>) -> serde_json::Result<String> {
    let mut bytes = Vec::new();
    let layout = Layout {
        indent,
        depth: 0,
        is_empty: true,
    };
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, layout))?;
    String::from_utf8(bytes).map_err(serde::ser::Error::custom)
}

/// Where Python puts blanks and lines, and how it writes floats.
struct Layout {
    /// Blanks a level; none: all on one line.
    indent: Option<usize>,
    depth: usize,
    /// Whether the list or object that was begun last has nothing in it yet.
    is_empty: bool,
}

impl Layout {
    fn begin(&mut self, to: &mut (impl Write + ?Sized), bracket: &[u8]) -> Result<()> {
        self.depth += 1;
        self.is_empty = true;
        to.write_all(bracket)
    }

    fn item(&mut self, to: &mut (impl Write + ?Sized), first: bool) -> Result<()> {
        self.is_empty = false;
        to.write_all(match (first, self.indent) {
            (true, _) => b"",
            (false, None) => b", ",
            (false, Some(_)) => b",",
        })?;
        self.line(to)
    }

    fn end(&mut self, to: &mut (impl Write + ?Sized), bracket: &[u8]) -> Result<()> {
        self.depth -= 1;
        if !self.is_empty {
            self.line(to)?;
        }
        self.is_empty = false;
        to.write_all(bracket)
    }

    fn line(&self, to: &mut (impl Write + ?Sized)) -> Result<()> {
        match self.indent {
            Some(width) => write!(to, "\n{:1$}", "", width * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Layout {
    /// The shortest digits that read as the same number; with an exponent below 1e-4 and from 1e16 on.
    fn write_f64<W: Write + ?Sized>(&mut self, to: &mut W, value: f64) -> Result<()> {
        let scientific = format!("{value:e}");
        match scientific.split_once('e').map(|(digits, e)| (digits, e.parse::<i32>())) {
            Some((digits, Ok(e))) if !(-4..16).contains(&e) => {
                let sign = if e < 0 { '-' } else { '+' };
                write!(to, "{digits}e{sign}{:02}", e.unsigned_abs())
            }
            _ => write!(to, "{value:?}"),
        }
    }

    fn begin_array<W: Write + ?Sized>(&mut self, to: &mut W) -> Result<()> {
        self.begin(to, b"[")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> Result<()> {
        self.item(to, first)
    }

    fn end_array<W: Write + ?Sized>(&mut self, to: &mut W) -> Result<()> {
        self.end(to, b"]")
    }

    fn begin_object<W: Write + ?Sized>(&mut self, to: &mut W) -> Result<()> {
        self.begin(to, b"{")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> Result<()> {
        self.item(to, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, to: &mut W) -> Result<()> {
        to.write_all(b": ")
    }

    fn end_object<W: Write + ?Sized>(&mut self, to: &mut W) -> Result<()> {
        self.end(to, b"}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, Value};

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (value, expected) in [
            (1e-5, "1e-05"),
            (1e-4, "0.0001"),
            (1.25e-4, "0.000125"),
            (9.999e-5, "9.999e-05"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (9007199254740993.0, "9007199254740992.0"),
            (-1.5e300, "-1.5e+300"),
            (5e-324, "5e-324"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1.0, "1.0"),
        ] {
            assert_eq!(written(&json!(value), None).unwrap(), expected);
        }
    }

    #[test]
    fn lists_and_objects_are_laid_out_as_python_does() {
        let value: Value = serde_json::from_str(r#"{"b":[],"a":[{},[1,"é\n"],{"c":null}]}"#).unwrap();
        let line = r#"{"b": [], "a": [{}, [1, "é\n"], {"c": null}]}"#;
        assert_eq!(written(&value, None).unwrap(), line);
        let lines = "{\n  \"b\": [],\n  \"a\": [\n    {},\n    [\n      1,\n      \"é\\n\"\n    ],\n    {\n      \"c\": null\n    }\n  ]\n}";
        assert_eq!(written(&value, Some(2)).unwrap(), lines);
    }
}
