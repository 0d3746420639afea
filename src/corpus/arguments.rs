//! Arguments of calls as chat templates are given them.
//!
//! A row has them as an object, or, as OpenAI's files do, as a string that holds an object in JSON. Of templates some
//! write an object as JSON or go through its members, others print a string. [`Arguments`] are both.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{DynObject, Enumerator, Object, Serde, ValueKind};
use serde_json::{Map, Value};

/// A string that holds an object in JSON: to a template a mapping that prints as the string, character by character, and
/// that is a string where the template asks. What it is put together with by `+` must be another object: not a string.
#[derive(Debug)]
pub(crate) struct Arguments {
    text: String,
    members: DynObject,
}

impl Arguments {
    /// What a template is given for a string: [`Arguments`], of `{}` where it is empty. The string itself where it holds no
    /// object, or one with integers beyond 64 bits, which would not be the same.
    fn of(text: &str) -> minijinja::Value {
        let parsed: Option<Map<String, Value>> = match text {
            "" => Some(Map::new()),
            json => serde_json::from_str(json).ok().filter(|_| integers_fit(json)),
        };
        let members = parsed.and_then(|members| minijinja::Value::from(Serde(members)).as_object().cloned());
        match members {
            Some(members) => minijinja::Value::from_object(Arguments {
                text: text.to_owned(),
                members,
            }),
            None => text.into(),
        }
    }
}

impl Object for Arguments {
    fn get_value(self: &Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.members.get_value(key)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.members.enumerate()
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The test `string`, which [`Arguments`] pass.
pub(crate) fn is_string(value: &minijinja::Value) -> bool {
    value.kind() == ValueKind::String || value.downcast_object_ref::<Arguments>().is_some()
}

/// A message with the strings of its calls' arguments as [`Arguments`].
pub(crate) fn with_arguments(message: &Value) -> minijinja::Value {
    members_with(message, |name, value| match name {
        "tool_calls" => calls(value),
        _ => Serde(value).into(),
    })
}

/// Calls, each with `arguments` or with a `function` that has them.
fn calls(value: &Value) -> minijinja::Value {
    match value {
        Value::Array(all) => all.iter().map(calls).collect(),
        call => members_with(call, |name, value| match (name, value) {
            ("arguments", Value::String(text)) => Arguments::of(text),
            ("function", function) => calls(function),
            _ => Serde(value).into(),
        }),
    }
}

fn members_with(object: &Value, given: impl Fn(&str, &Value) -> minijinja::Value) -> minijinja::Value {
    match object {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), given(name, value)));
            minijinja::Value::from_pairs(members)
        }
        other => Serde(other).into(),
    }
}

/// Whether all integers of a JSON text fit into 64 bits; of larger ones the parser makes floats.
fn integers_fit(json: &str) -> bool {
    let mut outside = String::new();
    let mut rest = json.chars();
    let mut in_string = false;
    while let Some(c) = rest.next() {
        match c {
            '"' => in_string = !in_string,
            '\\' => drop(rest.next()),
            _ if in_string => {}
            _ => outside.push(c),
        }
    }
    let words = outside.split(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)));
    let mut integers =
        words.filter(|word| word.ends_with(|c: char| c.is_ascii_digit()) && !word.contains(['.', 'e', 'E']));
    integers.all(|word| word.parse::<i64>().is_ok() || word.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_beyond_64_bits_are_told() {
        for fits in [
            "{}",
            r#"{"a":18446744073709551615,"b":[-9223372036854775808,1e30,123456789012345678901234567890.5]}"#,
            r#"{"123456789012345678901234567890": "a\"123456789012345678901234567890", "b": true}"#,
        ] {
            assert!(integers_fit(fits), "{fits}");
        }
        for large in [r#"{"a":18446744073709551616}"#, r#"{"a\\":[1,-9223372036854775809]}"#] {
            assert!(!integers_fit(large), "{large}");
        }
    }
}
