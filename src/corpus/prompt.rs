//! Prompts in JSONL: texts, token ids, chats, and OpenAI's batch requests.

use std::collections::BTreeMap;

use serde_json::Value;

use super::jsonl::{at, kind, string, Object};
use super::reading::Reading;
use super::record::{Chat, Prompt, Record};
use super::settings::{self, is_empty, settings};

/// Members that a prompt can be in; of `text` only where there is none of the others.
const PROMPTS: [&str; 4] = ["messages", "prompt", "prompt_token_ids", "text"];

/// Reads what to go on from, and how. A request of OpenAI's batch files has both in its `body`.
pub(crate) fn prompt(object: &Object, reading: &Reading) -> Result<Record, String> {
    let holder = holder(object);
    let (name, value) = match (&reading.field, &prompts(holder)[..]) {
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
        ("messages", Value::Array(messages)) => Prompt::Messages(chat(name, messages, holder)?),
        ("messages", _) => return wrong("a list of {\"role\", \"content\"}"),
        ("prompt_token_ids", Value::Array(ids)) => Prompt::Ids(token_ids(name, ids, reading.id_limit)?),
        ("prompt_token_ids", _) => return wrong("a list of token ids"),
        (_, Value::Array(all)) if any && all.first().is_some_and(Value::is_object) => {
            Prompt::Messages(chat(name, all, holder)?)
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

/// What a row asks for and doesn't get; `prompt` is what was read of it. `job_settings` are by the names that rows have
/// for them: who asks for the same gets it.
pub(crate) fn not_followed(
    object: &Object,
    prompt: &Prompt,
    job_settings: &BTreeMap<String, Value>,
) -> BTreeMap<String, Value> {
    let holder = holder(object);
    let mut all = settings::not_followed(holder, job_settings);
    all.extend(match prompt {
        Prompt::Messages(_) => set_by_the_job(holder, job_settings),
        Prompt::Text | Prompt::Ids(_) => without_template(holder),
    });
    all
}

/// The object with the prompt and what goes with it: the row, or its `body`.
fn holder(object: &Object) -> &Object {
    match object.get("body").and_then(Value::as_object) {
        Some(body) if prompts(object).is_empty() => body,
        _ => object,
    }
}

/// The members that a prompt is in; only one of them is right.
fn prompts(object: &Object) -> Vec<&'static str> {
    let mut names = PROMPTS.to_vec();
    names.retain(|name| object.get(*name).is_some_and(|value| !value.is_null()));
    if names.len() > 1 {
        names.retain(|name| *name != "text");
    }
    names
}

/// Further arguments of a chat template, under their own names.
const TEMPLATE_ARGUMENTS: [&str; 3] = ["tools", "documents", "reasoning_effort"];

/// An object of further arguments, which has any name.
const TEMPLATE_KWARGS: &str = "chat_template_kwargs";

/// Arguments of a chat template that are the job's.
const OF_THE_JOB: [&str; 3] = ["add_generation_prompt", "continue_final_message", "chat_template"];

/// Whether a row may have this for a chat template only.
pub(crate) fn is_for_templates(name: &str) -> bool {
    name == TEMPLATE_KWARGS || TEMPLATE_ARGUMENTS.contains(&name)
}

/// What is there for a chat template, beside a prompt that goes through none.
fn without_template(holder: &Object) -> BTreeMap<String, Value> {
    let there = holder
        .iter()
        .filter(|(name, value)| is_for_templates(name) && !is_empty(value));
    there.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What `chat_template_kwargs` asks for against the job, such as no `add_generation_prompt`.
fn set_by_the_job(holder: &Object, job_settings: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let Some(Value::Object(asked)) = holder.get(TEMPLATE_KWARGS) else {
        return BTreeMap::new();
    };
    let mut asked = settings::not_followed(asked, job_settings);
    asked.retain(|name, _| OF_THE_JOB.contains(&name.as_str()));
    asked
}

/// Messages, each with a role and a content; what else they have is handed to the chat template, with the `tools` and the
/// like of their request.
fn chat(name: &str, messages: &[Value], holder: &Object) -> Result<Chat, String> {
    if messages.is_empty() {
        return Err(format!("`{name}` is empty: give at least one message"));
    }
    let messages = messages.iter().enumerate();
    let messages = messages.map(|(i, message)| self::message(&format!("{name}[{i}]"), message));
    Ok(Chat {
        messages: messages.collect::<Result<_, _>>()?,
        template_arguments: template_arguments(holder)?,
    })
}

/// A message, the text of its parts put together: most templates take strings only.
fn message(name: &str, message: &Value) -> Result<Value, String> {
    let Value::Object(members) = message else {
        return Err(format!("`{name}` is {}, not an object", kind(message)));
    };
    string(members.get("role"), &format!("{name}.role"))?;
    let mut members = members.clone();
    let calls = members.get("tool_calls").and_then(Value::as_array);
    let text = match members.get("content") {
        Some(Value::Array(parts)) => text_of_parts(&format!("{name}.content"), parts)?,
        None | Some(Value::Null) if calls.is_some_and(|calls| !calls.is_empty()) => return Ok(members.into()),
        content => string(content, &format!("{name}.content"))?,
    };
    members.insert("content".to_owned(), text.into());
    Ok(members.into())
}

/// The text of a content that is a list of parts, one behind the other with nothing between them.
fn text_of_parts(name: &str, parts: &[Value]) -> Result<String, String> {
    let text = |(i, part): (usize, &Value)| {
        let Value::Object(members) = part else {
            return string(Some(part), &format!("{name}[{i}]"));
        };
        match members.get("type").and_then(Value::as_str) {
            Some("text" | "input_text" | "output_text") => string(members.get("text"), &format!("{name}[{i}].text")),
            Some(other) => Err(format!(
                "`{name}[{i}]` is of type `{other}`: only text is read; take it out, or give what it says as text"
            )),
            None => Err(format!(
                "`{name}[{i}]` has no `type`: write {{\"type\": \"text\", \"text\": \"...\"}}"
            )),
        }
    };
    parts.iter().enumerate().map(text).collect()
}

/// What a chat's template is given beside the messages; the row's own members go before those of its
/// `chat_template_kwargs`.
fn template_arguments(holder: &Object) -> Result<Object, String> {
    let mut arguments = match holder.get(TEMPLATE_KWARGS) {
        None | Some(Value::Null) => Object::new(),
        Some(Value::Object(arguments)) => asked_for(arguments.iter(), &format!("{TEMPLATE_KWARGS}."))?,
        Some(other) => return Err(format!("`{TEMPLATE_KWARGS}` is {}, not an object", kind(other))),
    };
    if arguments.contains_key("messages") {
        return Err(format!(
            "`{TEMPLATE_KWARGS}` has `messages`: the row's own are the chat; take it out"
        ));
    }
    arguments.retain(|name, _| !OF_THE_JOB.contains(&name.as_str()));
    let own = holder
        .iter()
        .filter(|(name, _)| TEMPLATE_ARGUMENTS.contains(&name.as_str()));
    arguments.extend(asked_for(own, "")?);
    Ok(arguments)
}

/// Arguments without those that ask for nothing. `within` is what they are in, for messages.
fn asked_for<'a>(arguments: impl Iterator<Item = (&'a String, &'a Value)>, within: &str) -> Result<Object, String> {
    let mut asked = Object::new();
    for (name, value) in arguments.filter(|(_, value)| !value.is_null()) {
        match (name.as_str(), value) {
            ("tools" | "documents", Value::Array(all)) if all.is_empty() => continue,
            ("tools" | "documents", Value::Array(all)) if all.iter().all(Value::is_object) => {}
            ("tools" | "documents", _) => return Err(format!("`{within}{name}` is not a list of objects")),
            ("reasoning_effort", other) if within.is_empty() && !other.is_string() => {
                return Err(format!("`{name}` is not a string"));
            }
            _ => {}
        }
        asked.insert(name.clone(), value.clone());
    }
    Ok(asked)
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

#[cfg(test)]
mod tests {
    use super::super::jsonl;
    use super::super::reading::Kind;
    use super::super::settings::RowSettings;
    use super::*;
    use serde_json::json;

    fn row(line: &str, reading: &Reading) -> Result<Record, String> {
        jsonl::row(line, reading).map(|(record, _)| record)
    }

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
        let Prompt::Messages(chat) = record.prompt else {
            panic!("no messages")
        };
        assert_eq!(
            (chat.messages[0]["name"].as_str(), chat.template_arguments.len()),
            (Some("n"), 0)
        );
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
    fn a_content_may_come_in_parts_and_tools_with_it() {
        let chat = |members: &str| -> Result<Chat, String> {
            match row(&format!("{{{members}}}"), &Reading::of(Kind::Prompts))?.prompt {
                Prompt::Messages(chat) => Ok(chat),
                other => panic!("{other:?}"),
            }
        };
        let parts = r#"[{"type": "text", "text": "a b"}, "c", {"type": "input_text", "text": "\n"}]"#;
        let user = |content: &str| format!(r#""messages": [{{"role": "user", "content": {content}}}]"#);
        assert_eq!(chat(&user(parts)).unwrap().messages[0]["content"], "a bc\n");
        assert_eq!(chat(&user("[]")).unwrap().messages[0]["content"], "");
        let called = r#""messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]"#;
        assert_eq!(chat(called).unwrap().messages[0]["tool_calls"][0]["id"], 1);
        let given =
            r#", "tools": [{"type": "function"}], "documents": [], "chat_template_kwargs": {"enable_thinking": false}"#;
        let given = chat(&(user("\"a\"") + given)).unwrap().template_arguments;
        assert_eq!(
            Value::from(given),
            json!({"tools": [{"type": "function"}], "enable_thinking": false})
        );
        let kwargs = |members: &str| {
            let row = format!(r#"{}, "chat_template_kwargs": {{{members}}}"#, user("\"a\""));
            chat(&row).map(|chat| Value::from(chat.template_arguments))
        };
        assert_eq!(
            kwargs(r#""tools": null, "documents": [], "x": null"#).unwrap(),
            json!({})
        );
        let own = kwargs(r#""tools": [{"a": 1}], "x": 0}, "documents": [{}], "reasoning_effort": null, "y": {"#);
        assert_eq!(own.unwrap(), json!({"tools": [{"a": 1}], "x": 0, "documents": [{}]}));
        let own = kwargs(r#""tools": [{"a": 1}]}, "tools": [{"b": 1}], "y": {"#);
        assert_eq!(own.unwrap(), json!({"tools": [{"b": 1}]}));
        for name in ["tools", "documents"] {
            let problem = kwargs(&format!("\"{name}\": [3]")).unwrap_err();
            assert!(
                problem.contains(&format!("`chat_template_kwargs.{name}` is not a list of objects")),
                "{problem}"
            );
        }
        for (bad, what) in [
            (
                user(r#"[{"type": "image_url", "image_url": {"url": "u"}}]"#),
                "`messages[0].content[0]` is of type `image_url`",
            ),
            (
                user(r#"["a", {"text": "b"}]"#),
                "`messages[0].content[1]` has no `type`",
            ),
            (user(r#"[{"type": "text"}]"#), "no field `messages[0].content[0].text`"),
            (user("null"), "`messages[0].content` is null"),
            (
                user("\"a\"") + r#", "tools": "search""#,
                "`tools` is not a list of objects",
            ),
            (
                user("\"a\"") + r#", "chat_template_kwargs": []"#,
                "`chat_template_kwargs` is a list",
            ),
            (
                user("\"a\"") + r#", "chat_template_kwargs": {"messages": []}"#,
                "`chat_template_kwargs` has `messages`",
            ),
            (user(r#"[{"type": "text", "text": "\u0000"}]"#), "NUL"),
        ] {
            let problem = chat(&bad).unwrap_err();
            assert!(problem.contains(what), "{bad}: {problem}");
        }
    }

    #[test]
    fn what_no_template_gets_is_not_followed() {
        let names = |line: &str| {
            let (record, object) = jsonl::row(line, &Reading::of(Kind::Prompts)).unwrap();
            let all = not_followed(&object, &record.prompt, &BTreeMap::new());
            all.into_keys().collect::<Vec<_>>()
        };
        let more = r#""tools": [{"type": "function"}], "documents": [], "reasoning_effort": "low",
            "chat_template_kwargs": {"add_generation_prompt": false, "enable_thinking": false, "x": null}"#;
        for prompt in [r#""prompt": "a""#, r#""prompt": [1]"#, r#""text": "a""#] {
            assert_eq!(
                names(&format!("{{{prompt}, {more}}}")),
                ["chat_template_kwargs", "reasoning_effort", "tools"]
            );
        }
        let chat = format!(r#"{{"messages": [{{"role": "user", "content": "a"}}], {more}}}"#);
        assert_eq!(names(&chat), ["add_generation_prompt"]);
        let Prompt::Messages(read) = read(&chat).prompt else {
            panic!("no chat")
        };
        let arguments: Vec<_> = read.template_arguments.keys().collect();
        assert_eq!(arguments, ["enable_thinking", "tools", "reasoning_effort"]);
        for kwargs in ["{}", r#"{"tools": null, "documents": []}"#] {
            let agreed = format!(r#"{{"prompt": "a", "tools": null, "chat_template_kwargs": {kwargs}}}"#);
            assert_eq!(names(&agreed), [""; 0]);
        }
        assert_eq!(names(r#"{"body": {"prompt": "a", "n": 2}}"#), ["n"]);
        assert_eq!(
            names(&chat.replace("\"add_generation_prompt\": false", "\"add_generation_prompt\": true")),
            [""; 0]
        );
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
