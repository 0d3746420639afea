//! Prompts in JSONL: texts, token ids, chats, and OpenAI's batch requests.

use serde_json::Value;

use super::jsonl::{at, first, kind, string, Object};
use super::reading::Reading;
use super::record::{Prompt, Record, RowSettings};

/// Members that a prompt can be in; of `text` only where there is none of the others.
const PROMPTS: [&str; 4] = ["messages", "prompt", "prompt_token_ids", "text"];

/// Reads what to go on from, and how. A request of OpenAI's batch files has both in its `body`.
pub(crate) fn prompt(object: &Object, reading: &Reading) -> Result<Record, String> {
    let there = |object: &Object| -> Vec<&'static str> {
        let mut names = PROMPTS.to_vec();
        names.retain(|name| object.get(*name).is_some_and(|value| !value.is_null()));
        if names.len() > 1 {
            names.retain(|name| *name != "text");
        }
        names
    };
    let body = object.get("body").and_then(Value::as_object);
    let holder = match body {
        Some(body) if there(object).is_empty() => body,
        _ => object,
    };
    let (name, value) = match (&reading.field, &there(holder)[..]) {
        (Some(field), _) => match at(object, field) {
            Some(value) => (field.as_str(), value),
            None => return Err(format!("the object has no field `{field}`")),
        },
        (None, [name]) => (*name, &holder[*name]),
        (None, []) => {
            return Err("the object has no prompt: give `prompt`, `prompt_token_ids` or `messages`".to_owned());
        }
        (None, [one, other, ..]) => return Err(format!("both `{one}` and `{other}`: keep one")),
    };
    let wrong = |wanted: &str| Err(format!("`{name}` is {}, not {wanted}", kind(value)));
    let any = reading.field.is_some() || name == "prompt";
    let prompt = match (name, value) {
        ("messages", Value::Array(messages)) => Prompt::Messages(chat(name, messages)?),
        ("messages", _) => return wrong("a list of {\"role\", \"content\"}"),
        ("prompt_token_ids", Value::Array(ids)) => Prompt::Ids(token_ids(name, ids, reading.id_limit)?),
        ("prompt_token_ids", _) => return wrong("a list of token ids"),
        (_, Value::Array(all)) if any && all.first().is_some_and(Value::is_object) => {
            Prompt::Messages(chat(name, all)?)
        }
        (_, Value::Array(ids)) if any => Prompt::Ids(token_ids(name, ids, reading.id_limit)?),
        _ => Prompt::Text,
    };
    Ok(Record {
        text: match prompt {
            Prompt::Text => string(Some(value), name)?,
            Prompt::Ids(_) | Prompt::Messages(_) => value.to_string(),
        },
        prompt,
        settings: settings(holder)?,
        ..Record::default()
    })
}

/// Messages, each with a role and a content; what else they have is handed to the chat template.
fn chat(name: &str, messages: &[Value]) -> Result<Vec<Value>, String> {
    if messages.is_empty() {
        return Err(format!("`{name}` is empty: give at least one message"));
    }
    for (i, message) in messages.iter().enumerate() {
        let Value::Object(message) = message else {
            return Err(format!("`{name}[{i}]` is {}, not an object", kind(message)));
        };
        for part in ["role", "content"] {
            string(message.get(part), &format!("{name}[{i}].{part}"))?;
        }
    }
    Ok(messages.to_vec())
}

fn token_ids(name: &str, ids: &[Value], limit: Option<u32>) -> Result<Vec<u32>, String> {
    let read = |(i, id): (usize, &Value)| match id.as_u64().and_then(|id| u32::try_from(id).ok()) {
        Some(id) if limit.is_none_or(|limit| id < limit) => Ok(id),
        _ => Err(match limit {
            Some(limit) => format!(
                "`{name}[{i}]` is {id}, not a token id of this model (0 to {})",
                limit - 1
            ),
            None => format!("`{name}[{i}]` is {id}, not a token id"),
        }),
    };
    ids.iter().enumerate().map(read).collect()
}

/// What the row asks for instead of the job's settings.
fn settings(object: &Object) -> Result<RowSettings, String> {
    let limits = ["max_new_tokens", "max_tokens", "max_completion_tokens"];
    let max_new_tokens = first(object, &limits, |name, value| {
        let limit = value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
        limit
            .map(Some)
            .ok_or_else(|| format!("`{name}` is {value}, not a whole number from 1"))
    })?;
    let seed = first(object, &["seed"], |_, value| {
        let wrong = || format!("`seed` is {value}, not a whole number from 0");
        value.as_u64().map(Some).ok_or_else(wrong)
    })?;
    let stop = first(object, &["stop"], |_, value| {
        let strings = match value {
            Value::Array(all) => all.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
            other => other.as_str().map(|one| vec![one]),
        };
        match strings {
            Some(strings) if strings.iter().all(|s| !s.is_empty()) => {
                Ok(Some(strings.into_iter().map(str::to_owned).collect()))
            }
            _ => Err("`stop` is not a string or a list of strings, none of them empty".to_owned()),
        }
    })?;
    Ok(RowSettings {
        max_new_tokens,
        seed,
        stop: stop.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::jsonl::row;
    use super::super::reading::Kind;
    use super::*;

    fn read(line: &str) -> Record {
        row(line, &Reading::of(Kind::Prompts)).unwrap()
    }

    fn problem(line: &str) -> String {
        row(line, &Reading::of(Kind::Prompts)).unwrap_err()
    }

    #[test]
    fn prompts_are_texts_ids_or_messages() {
        for line in [r#"{"prompt": "a", "text": 3}"#, r#"{"text": "a", "prompt": null}"#] {
            let record = read(line);
            assert_eq!((record.text.as_str(), record.prompt), ("a", Prompt::Text));
        }
        for line in [r#"{"prompt_token_ids": [5, 0,7]}"#, r#"{"prompt": [5,0,7]}"#] {
            let record = read(line);
            assert_eq!(
                (record.text.as_str(), record.prompt),
                ("[5,0,7]", Prompt::Ids(vec![5, 0, 7]))
            );
        }
        let empty = read(r#"{"prompt_token_ids": []}"#);
        assert!(empty.is_blank());
        let chat = r#"[{"role":"user","content":"hi","name":"n"}]"#;
        let record = read(&format!(r#"{{"messages": {chat}}}"#));
        assert_eq!(record.text, chat);
        let Prompt::Messages(messages) = record.prompt else {
            panic!("no messages")
        };
        assert_eq!(messages[0]["name"], "n");
        for (bad, what) in [
            (r#"{"id": 3}"#, "no prompt"),
            (r#"{"prompt": "a", "messages": []}"#, "both `messages` and `prompt`"),
            (r#"{"prompt": 3}"#, "`prompt` is a number, not a string"),
            (r#"{"prompt": ["a", "b"]}"#, r#"`prompt[0]` is "a", not a token id"#),
            (r#"{"text": [1]}"#, "`text` is a list, not a string"),
            (
                r#"{"prompt_token_ids": "a"}"#,
                "`prompt_token_ids` is a string, not a list of token ids",
            ),
            (r#"{"prompt_token_ids": [1, -2]}"#, "`prompt_token_ids[1]` is -2"),
            (r#"{"prompt_token_ids": [1.5]}"#, "[0]` is 1.5"),
            (r#"{"prompt_token_ids": [4294967296]}"#, "[0]` is 4294967296"),
            (r#"{"messages": []}"#, "`messages` is empty"),
            (r#"{"messages": "hi"}"#, "`messages` is a string, not a list of"),
            (r#"{"messages": ["hi"]}"#, "`messages[0]` is a string, not an object"),
            (r#"{"messages": [{"role": "user"}]}"#, "no field `messages[0].content`"),
            (
                r#"{"messages": [{"role": 1, "content": "a"}]}"#,
                "`messages[0].role` is a number",
            ),
            (r#"{"messages": [{"role": "user", "content": "a\u0000"}]}"#, "NUL"),
        ] {
            let problem = problem(bad);
            assert!(problem.contains(what), "{bad}: {problem}");
        }
        let limited = Reading {
            id_limit: Some(8),
            ..Reading::of(Kind::Prompts)
        };
        assert!(row(r#"{"prompt": [7]}"#, &limited).is_ok());
        assert!(row(r#"{"prompt": [7, 8]}"#, &limited).unwrap_err().contains("(0 to 7)"));
    }

    #[test]
    fn a_field_can_hold_any_prompt() {
        let reading = Reading {
            field: Some("in.it".to_owned()),
            ..Reading::of(Kind::Prompts)
        };
        let read = |value: &str| {
            row(
                &format!(r#"{{"in": {{"it": {value}}}, "prompt": 3, "seed": 4}}"#),
                &reading,
            )
        };
        assert_eq!(read(r#""a""#).unwrap().text, "a");
        assert_eq!(read("[1]").unwrap().prompt, Prompt::Ids(vec![1]));
        assert_eq!(read("[1]").unwrap().settings.seed, Some(4));
        let chat = read(r#"[{"role": "user", "content": "a"}]"#).unwrap();
        assert!(matches!(chat.prompt, Prompt::Messages(_)));
        assert!(read("3").unwrap_err().contains("`in.it` is a number"));
    }

    #[test]
    fn rows_may_ask_for_settings() {
        let settings = |members: &str| read(&format!(r#"{{"prompt": "a", {members}}}"#)).settings;
        let asked = settings(r#""max_tokens": 5, "max_new_tokens": 7, "seed": 18446744073709551615, "stop": "\n""#);
        let expected = RowSettings {
            max_new_tokens: Some(7),
            seed: Some(u64::MAX),
            stop: vec!["\n".to_owned()],
        };
        assert_eq!(asked, expected);
        assert_eq!(settings(r#""max_tokens": 5"#).max_new_tokens, Some(5));
        assert_eq!(settings(r#""stop": ["a", "b"], "seed": null"#).stop, ["a", "b"]);
        assert_eq!(settings(r#""temperature": "hot""#), RowSettings::default(), "not known");
        for bad in [
            r#""max_tokens": 0"#,
            r#""max_new_tokens": "7""#,
            r#""seed": -1"#,
            r#""seed": 1.5"#,
            r#""stop": 3"#,
            r#""stop": [3]"#,
            r#""stop": """#,
        ] {
            let name = bad.split('"').nth(1).unwrap();
            let problem = problem(&format!(r#"{{"prompt": "a", {bad}}}"#));
            assert!(problem.contains(&format!("`{name}`")), "{bad}: {problem}");
        }
    }

    #[test]
    fn requests_of_batch_files() {
        let record = read(
            r#"{"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions",
                "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}}"#,
        );
        assert_eq!(
            (record.id.as_deref(), record.settings.max_new_tokens),
            (Some("r1"), Some(9))
        );
        assert!(matches!(record.prompt, Prompt::Messages(_)));
        let record = read(r#"{"body": {"prompt": "a", "seed": 3}}"#);
        assert_eq!((record.text.as_str(), record.settings.seed), ("a", Some(3)));
        let record = read(r#"{"body": {"prompt": "a", "seed": 3}, "prompt": "b"}"#);
        assert_eq!(
            (record.text.as_str(), record.settings.seed),
            ("b", None),
            "a member that is only called so"
        );
        assert!(problem(r#"{"body": {}}"#).contains("no prompt"));
    }
}
