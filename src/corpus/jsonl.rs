//! Rows of one JSON object a line.

use std::collections::HashMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::prompt::prompt;
use super::reading::{Kind, Reading, Role};
use super::record::{shown, Prompt, Record};

pub(crate) type Object = Map<String, Value>;

/// Reads a line (without its line end) as a row, beside the object that it is, or says what keeps it from being one.
pub(crate) fn row(line: &str, reading: &Reading) -> Result<(Record, Object), String> {
    let value: Value = serde_json::from_str(line)
        .map_err(|e| format!("not JSON: {}", e.to_string().replace(" at line 1 column", " at column")))?;
    let Value::Object(object) = value else {
        let name = Role::Text.names(reading.kind)[0];
        return Err(format!(
            "`{}` is not a JSON object: write {{\"{name}\": \"...\"}}",
            shown(line)
        ));
    };
    let mut record = match reading.kind {
        Kind::Prompts => prompt(&object, reading)?,
        Kind::Sentences | Kind::Documents | Kind::Pairs => Record {
            text: text(&object, reading)?,
            ..Record::default()
        },
    };
    if reading.kind == Kind::Pairs {
        record.target = Some(string(object.get("target"), "target")?);
    }
    record.id = id(&object, line, reading)?;
    if reading.kind.has(Role::SourceLang) {
        let code = |name: &str, value: &Value| string(Some(value), name).map(|c| Some(c).filter(|c| !c.is_empty()));
        record.source_lang = first(&object, &["source_lang"], code)?;
        record.target_lang = first(&object, &["target_lang"], code)?;
    }
    refuse_nul(&record)?;
    Ok((record, object))
}

/// The id of a line that is no usable row, where it has one all the same.
pub(crate) fn id_of_unusable(line: &[u8], reading: &Reading) -> Option<String> {
    let line = std::str::from_utf8(line).ok()?;
    let object: Object = serde_json::from_str(line).ok()?;
    id(&object, line, reading).ok()?.filter(|id| !id.contains('\0'))
}

fn id(object: &Object, line: &str, reading: &Reading) -> Result<Option<String>, String> {
    first(object, Role::Id.names(reading.kind), |name, value| match value {
        Value::String(id) if id.is_empty() => Ok(None),
        Value::Number(id) if id.is_f64() => Ok(Some(as_written(line, name))),
        Value::Number(id) => Ok(Some(id.to_string())),
        value => string(Some(value), name).map(Some),
    })
}

/// A number member of a row as it is written there: digits beyond what a number in memory has are part of a name.
fn as_written(line: &str, name: &str) -> String {
    let members: HashMap<String, &RawValue> = serde_json::from_str(line).unwrap_or_default();
    members
        .get(name)
        .map(|value| value.get().to_owned())
        .unwrap_or_default()
}

/// The text of a row that is no prompt.
fn text(object: &Object, reading: &Reading) -> Result<String, String> {
    if let Some(field) = &reading.field {
        return string(at(object, field), field);
    }
    let names = Role::Text.names(reading.kind);
    let name = names
        .iter()
        .find(|name| object.contains_key(**name))
        .unwrap_or(&names[0]);
    match object.get(*name) {
        None => Err(absent(object, name, reading)),
        value => string(value, name),
    }
}

/// What to say of a row without its text.
fn absent(object: &Object, name: &str, reading: &Reading) -> String {
    let known = [Role::Id, Role::SourceLang, Role::TargetLang, Role::Target].map(|role| role.names(reading.kind));
    let known = known.concat();
    let others = object.iter().filter(|(other, _)| !known.contains(&other.as_str()));
    let longest = others.max_by_key(|(_, value)| value.as_str().map(str::len));
    match longest.filter(|(_, value)| value.is_string()) {
        Some((other, _)) => format!("the object has no field `{name}`; --field NAME takes another, such as `{other}`"),
        None => format!("the object has no field `{name}`"),
    }
}

/// The member at a path: `a.b` is the member of this name, else member `b` of the object `a`.
pub(crate) fn at<'a>(object: &'a Object, path: &str) -> Option<&'a Value> {
    if let Some(value) = object.get(path) {
        return Some(value);
    }
    let (first, rest) = path.split_once('.')?;
    at(object.get(first)?.as_object()?, rest)
}

pub(crate) fn string(value: Option<&Value>, name: &str) -> Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        None => Err(format!("the object has no field `{name}`")),
        Some(other) => Err(format!("`{name}` is {}, not a string", kind(other))),
    }
}

/// The first of these optional members that is there, not null, and not nothing to `read`.
pub(crate) fn first<T>(
    object: &Object,
    names: &[&str],
    read: impl Fn(&str, &Value) -> Result<Option<T>, String>,
) -> Result<Option<T>, String> {
    for name in names {
        match object.get(*name) {
            None | Some(Value::Null) => {}
            Some(value) => match read(name, value)? {
                None => {}
                found => return Ok(found),
            },
        }
    }
    Ok(None)
}

/// The escape `\u0000` is legal JSON; the strings of the results end at a NUL.
fn refuse_nul(record: &Record) -> Result<(), String> {
    let in_chat = match &record.prompt {
        Prompt::Messages(chat) => chat
            .messages
            .iter()
            .chain(chat.template_arguments.values())
            .any(has_nul),
        Prompt::Text | Prompt::Ids(_) => false,
    };
    let fields = [&record.id, &record.target, &record.source_lang, &record.target_lang];
    let mut strings = fields
        .into_iter()
        .flatten()
        .chain([&record.text])
        .chain(&record.settings.stop);
    if in_chat || strings.any(|s| s.contains('\0')) {
        return Err("a NUL (\\u0000) in a string: remove it".to_owned());
    }
    Ok(())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(s) => s.contains('\0'),
        Value::Array(all) => all.iter().any(has_nul),
        Value::Object(members) => members
            .iter()
            .any(|(name, value)| name.contains('\0') || has_nul(value)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str, kind: Kind) -> Record {
        row(line, &Reading::of(kind)).unwrap().0
    }

    fn problem(line: &str, kind: Kind) -> String {
        row(line, &Reading::of(kind)).unwrap_err()
    }

    #[test]
    fn sentences() {
        let good = read(
            r#"{"custom_id": 12, "id": "z", "text": "a\nb", "target_lang": "fra_Latn", "x": [1], "seed": "s"}"#,
            Kind::Sentences,
        );
        assert_eq!((good.id.as_deref(), good.text.as_str()), (Some("12"), "a\nb"));
        assert_eq!(
            (good.source_lang, good.target_lang.as_deref()),
            (None, Some("fra_Latn"))
        );
        let id = |line: &str| read(line, Kind::Sentences).id;
        assert_eq!(id(r#"{"text": "a", "custom_id": "", "id": "z"}"#).as_deref(), Some("z"));
        assert_eq!(id(r#"{"text": "a", "custom_id": null}"#), None);
        for number in [
            "7",
            "-3",
            "123456789012345678901234567890",
            "1e5",
            "-0",
            "0.30000000000000000000004",
            "18446744073709551616",
        ] {
            let row = format!(r#"{{"text": "a", "custom_id": {number}}}"#);
            assert_eq!(id(&row).as_deref(), Some(number));
        }
        for (bad, what) in [
            (r#"{"text": "a""#, "not JSON: EOF while parsing an object at column"),
            (r#"["a"]"#, "not a JSON object"),
            (r#"{"id": 3}"#, "no field `text`"),
            (
                r#"{"id": 3, "prompt": "a"}"#,
                "no field `text`; --field NAME takes another, such as `prompt`",
            ),
            (r#"{"text": null}"#, "`text` is null"),
            (r#"{"text": "a", "source_lang": 3}"#, "`source_lang` is a number"),
            (r#"{"text": "a", "id": [3]}"#, "`id` is a list"),
            (r#"{"text": "a\u0000"}"#, "NUL"),
            (r#"{"text": "\ud800"}"#, "not JSON"),
        ] {
            let problem = problem(bad, Kind::Sentences);
            assert!(problem.contains(what), "{problem}");
        }
        assert!(problem(&"[".repeat(100_000), Kind::Sentences).contains("not JSON"));
    }

    #[test]
    fn documents_and_pairs() {
        let line = r#"{"text": "a", "source_lang": 3, "target": 4}"#;
        assert_eq!(
            read(line, Kind::Documents).source_lang,
            None,
            "a job reads what it has use for"
        );
        let pair = read(
            r#"{"source": "a", "target": "", "text": "c", "source_lang": "eng_Latn"}"#,
            Kind::Pairs,
        );
        assert_eq!((pair.text.as_str(), pair.target.as_deref()), ("a", Some("")));
        assert_eq!(pair.source_lang.as_deref(), Some("eng_Latn"));
        assert_eq!(read(r#"{"text": "a", "target": "b"}"#, Kind::Pairs).text, "a");
        assert!(problem(r#"{"target": "b"}"#, Kind::Pairs).contains("no field `source`"));
        assert!(problem(r#"{"source": "b"}"#, Kind::Pairs).contains("no field `target`"));
        assert!(problem(line, Kind::Pairs).contains("`target` is a number"));
    }

    #[test]
    fn fields_are_found_by_path() {
        let line = r#"{"a": {"b": "deep", "c": {"d": 1}}, "a.c": "flat", "text": "t"}"#;
        let read = |field: &str| {
            let reading = Reading {
                field: Some(field.to_owned()),
                ..Reading::of(Kind::Documents)
            };
            row(line, &reading).map(|(record, _)| record.text)
        };
        assert_eq!(read("a.b").unwrap(), "deep");
        assert_eq!(read("a.c").unwrap(), "flat", "a member's whole name first");
        assert!(read("a.c.d").unwrap_err().contains("`a.c.d` is a number"));
        assert!(read("a").unwrap_err().contains("`a` is an object"));
        for absent in ["b", "a.x", "text.b", "a.b.", ""] {
            assert!(read(absent).unwrap_err().contains("no field"), "{absent}");
        }
    }
}
