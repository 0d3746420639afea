//! JSON files of a model folder, and their keys read with errors that name file, key and value.

use std::io::ErrorKind;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail, Error, Result};
use serde_json::{Map, Value};

use super::folder::foreign_format;

/// Reads a JSON file of a model folder.
///
/// # Errors
/// If it isn't there, can't be read, or isn't JSON: line and column are named.
pub fn read_json(dir: &Path, file: &str) -> Result<Value> {
    let path = dir.join(file);
    let text = std::fs::read(&path).map_err(|e| {
        let what = match e.kind() {
            ErrorKind::NotFound => "a model folder needs this file; download it",
            _ => "cannot be read",
        };
        Error::new(e).context(format!("{}: {what}", path.display()))
    })?;
    if let Some(foreign) = foreign_format(&text) {
        bail!("{}: {foreign}", path.display());
    }
    serde_json::from_slice(&text).map_err(|e| anyhow!("{}: this is not valid JSON: {e}", path.display()))
}

/// The keys of one JSON object. A key whose value is `null` counts as absent, but a switch: see [`Fields::switch`].
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: PathBuf,
}

impl<'a> Fields<'a> {
    /// The keys of `value`; `path` is named in errors.
    ///
    /// # Errors
    /// If `value` isn't an object.
    pub fn new(value: &'a Value, path: &Path) -> Result<Fields<'a>> {
        match value.as_object() {
            Some(map) => Ok(Fields {
                map,
                path: path.to_path_buf(),
            }),
            None => bail!("{}: a JSON object is expected; download the file again", path.display()),
        }
    }

    /// The value as it stands.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// A whole number within `range`.
    ///
    /// # Errors
    /// If the value is anything else.
    pub fn whole(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let inside = |value: &Value| {
            value
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .filter(|n| range.contains(n))
        };
        self.typed(
            key,
            &format!("a whole number from {} to {}", range.start(), range.end()),
            inside,
        )
    }

    /// A whole number within `range` that must be there.
    ///
    /// # Errors
    /// If it isn't there, or is anything else.
    pub fn need_whole(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        let missing = || anyhow!("{}: `{key}` is missing; download the file again", self.path.display());
        self.whole(key, range)?.ok_or_else(missing)
    }

    /// A token id.
    ///
    /// # Errors
    /// If the value isn't a whole number that an id can be.
    pub fn token(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a token id", |value| {
            value.as_u64().and_then(|id| u32::try_from(id).ok())
        })
    }

    /// A token id or a list of them, each way as a list.
    ///
    /// # Errors
    /// If the value is anything else.
    pub fn tokens(&self, key: &str) -> Result<Option<Vec<u32>>> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        self.typed(key, "a token id or a list of them", |value| match value {
            // An empty list of ends would mean that no output ever ends: more likely a mistake.
            Value::Array(list) if list.is_empty() => None,
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        })
    }

    /// A number.
    ///
    /// # Errors
    /// If the value isn't a number.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A switch; `null` is off, as it is in Python, whatever a missing one would be.
    ///
    /// # Errors
    /// If the value isn't `true` or `false`.
    pub fn switch(&self, key: &str) -> Result<Option<bool>> {
        if self.map.get(key).is_some_and(Value::is_null) {
            return Ok(Some(false));
        }
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A text.
    ///
    /// # Errors
    /// If the value isn't a string.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// A value that `read` understands; `expected` says in words what that is.
    ///
    /// # Errors
    /// If the key is there and `read` gives `None`.
    pub fn typed<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.refuse(key, expected))
    }

    /// The error for a value that was found where `expected` was called for.
    pub fn refuse(&self, key: &str, expected: &str) -> Error {
        let found = self.map.get(key).map_or("missing".to_string(), Value::to_string);
        anyhow!("{}: `{key}` is {found}, expected {expected}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn null_is_absent_and_a_wrong_type_is_named() {
        let value = json!({"a": 3, "b": null, "c": -1, "d": "x", "e": 1.5, "f": true});
        let fields = Fields::new(&value, Path::new("m/config.json")).unwrap();
        assert_eq!(fields.whole("a", 1..=3).unwrap(), Some(3));
        assert_eq!(fields.whole("b", 1..=3).unwrap(), None);
        assert_eq!(fields.whole("z", 1..=3).unwrap(), None);
        assert_eq!(fields.number("a").unwrap(), Some(3.0));
        assert_eq!(fields.switch("f").unwrap(), Some(true));
        let error = |r: Result<Option<usize>>| format!("{:#}", r.unwrap_err());
        assert_eq!(
            error(fields.whole("a", 4..=5)),
            "m/config.json: `a` is 3, expected a whole number from 4 to 5"
        );
        assert_eq!(
            error(fields.whole("c", 0..=5)),
            "m/config.json: `c` is -1, expected a whole number from 0 to 5"
        );
        assert!(fields.whole("e", 0..=5).is_err());
        assert!(fields.text("f").is_err());
        assert!(fields.switch("d").is_err());
        assert_eq!(
            (fields.switch("b").unwrap(), fields.switch("z").unwrap()),
            (Some(false), None)
        );
        assert!(format!("{:#}", fields.need_whole("b", 0..=1).unwrap_err()).contains("`b` is missing"));
        assert!(Fields::new(&json!([1]), Path::new("x")).is_err());
    }

    #[test]
    fn only_a_file_that_is_not_there_is_to_be_downloaded() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("folder.json")).unwrap();
        let said = |file: &str| format!("{:#}", read_json(dir.path(), file).unwrap_err());
        let missing = said("config.json");
        assert!(missing.contains("config.json: a model folder needs this file; download it"));
        let folder = said("folder.json");
        assert!(
            folder.contains("folder.json: cannot be read: ") && !folder.contains("download"),
            "{folder}"
        );
    }
}
