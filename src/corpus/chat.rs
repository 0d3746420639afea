//! Chat templates: a chat's messages as the text that a checkpoint was trained on.
//!
//! A template is a Jinja program that comes with the checkpoint. What it is given, and what it may call beyond Jinja,
//! is what transformers' `apply_chat_template` gives it, but for strings with the arguments of calls: templates that need
//! an object take them for one ([`Arguments`](super::arguments::Arguments)).

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::Arc;

use super::arguments::{is_string, with_arguments};
use super::python_json::to_json;
use super::record::Chat;
use crate::checkpoint::read_json;
use anyhow::{bail, ensure, Context, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{context, Environment, Error, ErrorKind};
use regex::Regex;
use serde_json::{Map, Value};

const NAME: &str = "chat_template";

/// Names of a message's reasoning; the first is the one that most templates read, the second gpt-oss's.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The chat template of a checkpoint.
pub struct ChatTemplate {
    /// The file that it is from.
    path: PathBuf,
    environment: Environment<'static>,
    /// Names that it takes from what it is given.
    read: HashSet<String>,
    /// The time that it tells, in seconds since 1970; the environment has it too.
    now: Arc<AtomicI64>,
}

impl ChatTemplate {
    /// Finds and reads the template of a checkpoint folder: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (of several the one named `default`), else `chat_template.json`.
    ///
    /// # Errors
    /// A file cannot be read, the template has a mistake, or of several none is the default.
    pub(crate) fn load(dir: &Path, config: &Value) -> Result<Option<ChatTemplate>> {
        let file = dir.join("chat_template.jinja");
        if file.exists() {
            let source = fs::read_to_string(&file).with_context(|| format!("{}: cannot read", file.display()))?;
            return ChatTemplate::new(file, &source).map(Some);
        }
        let beside = dir.join("chat_template.json");
        for path in [dir.join("tokenizer_config.json"), beside.clone()] {
            let stored = match path == beside {
                true if beside.exists() => read_json(dir, "chat_template.json")?.get(NAME).cloned(),
                true => None,
                false => config.get(NAME).cloned(),
            };
            if let Some(source) = stored.and_then(|stored| default_of(stored, &path).transpose()) {
                return ChatTemplate::new(path, &source?).map(Some);
            }
        }
        Ok(None)
    }

    fn new(path: PathBuf, source: &str) -> Result<ChatTemplate> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?;
        environment.set_syntax(syntax);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_test("string", is_string);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        // {% generation %} marks what an assistant said, for training; it changes no text.
        let source = Regex::new(r"\{%([-+]?)\s*generation\s*([-+]?)%\}")?.replace_all(source, "{%$1 if true $2%}");
        let source = Regex::new(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}")?.replace_all(&source, "{%$1 endif $2%}");
        environment
            .add_template_owned(NAME, source.to_string())
            .with_context(|| format!("{}: the chat template has a mistake", path.display()))?;
        let now = Arc::new(AtomicI64::new(jiff::Timestamp::now().as_second()));
        let told = now.clone();
        environment.add_function("strftime_now", move |format: String| {
            let wrong = |e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
            let now = jiff::Timestamp::from_second(told.load(Ordering::Relaxed)).map_err(wrong)?;
            jiff::fmt::strtime::format(&format, now).map_err(wrong)
        });
        Ok(ChatTemplate {
            read: names_read(&environment, &source)?,
            path,
            environment,
            now,
        })
    }

    /// Whether the template reads what it may be given under this name.
    pub fn reads(&self, name: &str) -> bool {
        self.read.contains(name)
    }

    /// Refuses tools and documents, which belong to what is asked, where the template does not read them.
    ///
    /// # Errors
    /// Names them.
    pub fn check(&self, name: &str) -> Result<()> {
        ensure!(
            self.reads(name) || !["tools", "documents"].contains(&name),
            "{}: the chat template does not read `{name}`: leave `{name}` out, or write what it says into the messages",
            self.path.display()
        );
        Ok(())
    }

    /// Sets the time that is told, in seconds since 1970, so that all ranks tell the same.
    pub(crate) fn set_time(&self, seconds: i64) {
        self.now.store(seconds, Ordering::Relaxed);
    }

    /// The text of a chat up to where the answer begins. `named` are the special tokens: `bos_token` to `<s>`.
    ///
    /// # Errors
    /// The template fails, or refuses these messages.
    pub(crate) fn render(&self, chat: &Chat, named: &BTreeMap<String, String>) -> Result<String> {
        chat.template_arguments.keys().try_for_each(|name| self.check(name))?;
        let messages: Vec<Value> = chat.messages.iter().map(as_the_reference_gives_it).collect();
        let render = |messages: minijinja::Value| {
            let variables = context! {
                ..context! { messages => messages, add_generation_prompt => true },
                ..minijinja::Value::from(Serde(&chat.template_arguments)),
                ..context! { tools => (), documents => () },
                ..minijinja::Value::from(Serde(named))
            };
            self.environment
                .get_template(NAME)
                .and_then(|template| template.render(variables))
        };
        let rendered = render(messages.iter().map(with_arguments).collect());
        // What some templates do with strings (DeepSeek V3's: `+`) no object can do.
        let rendered = rendered.or_else(|_| render(Serde(&messages).into()));
        rendered.with_context(|| {
            format!(
                "{}: the chat template does not take these messages",
                self.path.display()
            )
        })
    }
}

/// A stored template: a string, or of several the one named `default`.
fn default_of(stored: Value, path: &Path) -> Result<Option<String>> {
    let named: BTreeMap<String, Value> = match stored {
        Value::Null => return Ok(None),
        Value::String(source) => return Ok(Some(source)),
        Value::Object(named) => named.into_iter().collect(),
        Value::Array(list) => {
            let pair = |item: &Value| Some((item.get("name")?.as_str()?.to_owned(), item.get("template")?.clone()));
            list.iter().filter_map(pair).collect()
        }
        other => bail!("{}: chat_template is {other}, not a string", path.display()),
    };
    match named.get("default") {
        Some(Value::String(source)) => Ok(Some(source.clone())),
        _ => bail!(
            "{}: chat_template has the templates {}, none of them named `default`: keep the one to use as chat_template.jinja",
            path.display(),
            named.into_keys().collect::<Vec<_>>().join(", ")
        ),
    }
}

/// A message without members that are null, and its reasoning under all names that templates know it by.
fn as_the_reference_gives_it(message: &Value) -> Value {
    let Value::Object(members) = message else {
        return message.clone();
    };
    let there = members.iter().filter(|(_, value)| !value.is_null());
    let there = there.map(|(name, value)| (name.clone(), value.clone()));
    let reasoning = REASONING
        .iter()
        .find_map(|name| members.get(*name).filter(|value| !value.is_null()));
    let Some(reasoning) = reasoning else {
        return there.collect::<Map<_, _>>().into();
    };
    let mut all = Map::from_iter([("thinking".to_owned(), reasoning.clone())]);
    all.extend(there);
    all.insert("reasoning_content".to_owned(), reasoning.clone());
    all.into()
}

/// The names that a template reads and has not set itself: in Jinja's scopes, or nearly.
fn names_read(environment: &Environment<'_>, source: &str) -> Result<HashSet<String>> {
    // To minijinja a name is set before its value is looked at: `{% set x = x or 1 %}` would read none.
    let set = Regex::new(r"(?s)\{%([-+]?)\s*set\s+([\w.,\s]+?)\s*=(.*?)[-+]?%\}")?;
    let value_first = set.replace_all(source, "{%${1} set _ =${3} %}{% set ${2} = 0 %}");
    let template = environment.template_from_str(&value_first);
    let names = template.map(|template| template.undeclared_variables(false));
    Ok(match names {
        Ok(names) => names,
        Err(_) => environment.get_template(NAME)?.undeclared_variables(false),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// A chat of the fixture: a list of messages, or an object with what else the template is given.
    fn chat(stored: &Value) -> Chat {
        let mut arguments = stored.as_object().cloned().unwrap_or_default();
        let messages = arguments.remove("messages").unwrap_or(stored.clone());
        Chat {
            messages: messages.as_array().unwrap().clone(),
            template_arguments: arguments,
        }
    }

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(PathBuf::from("config.json"), source).unwrap()
    }

    /// The reference's texts: `tests/fixtures/chat.py`.
    #[test]
    fn texts_are_those_of_the_reference() {
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/chat.json")).unwrap();
        let named: BTreeMap<String, String> = serde_json::from_value(fixture["special_tokens"].clone()).unwrap();
        for case in fixture["cases"].as_array().unwrap() {
            let (family, chat) = (case["template"].as_str().unwrap(), case["chat"].as_str().unwrap());
            let template = template(fixture["templates"][family].as_str().unwrap());
            let found = template.render(&self::chat(&fixture["chats"][chat]), &named);
            match (found, case.get("text")) {
                (Ok(text), Some(expected)) => assert_eq!(text, expected.as_str().unwrap(), "{family}, {chat}"),
                (Err(e), None) => {
                    let (message, expected) = (format!("{e:#}"), case["refused"].as_str().unwrap());
                    assert!(
                        message.starts_with("config.json") && message.contains(expected),
                        "{message}"
                    );
                }
                (found, _) => panic!("{family}, {chat}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_a_template_would_lose_is_refused() {
        let with = |name: &str| Chat {
            template_arguments: Map::from_iter([(name.to_owned(), json!([{"name": "f"}]))]),
            ..Chat::default()
        };
        let render = |source: &str, name: &str| template(source).render(&with(name), &BTreeMap::new());
        assert_eq!(render("{{ tools[0].name }}", "tools").unwrap(), "f");
        assert_eq!(render("a", "enable_thinking").unwrap(), "a");
        for name in ["tools", "documents"] {
            for mentions in [
                "a",
                "{# tools, documents #}",
                "tools documents",
                "{{ 'tools' ~ \"documents\" }}",
                "{{ messages.tools }}{{ messages.documents }}",
                "{% macro m(tools, documents) %}{{ tools }}{{ documents }}{% endmacro %}{{ m(1, 2) }}",
                "{% for tools, documents in [] %}{{ tools }}{{ documents }}{% endfor %}",
                "{% set tools = 1 %}{% set documents = [tools] %}{{ tools }}{{ documents }}",
                "{{ tools_in_user_message }}{{ dict(tools=1, documents=2) }}",
            ] {
                let message = render(mentions, name).unwrap_err().to_string();
                assert!(
                    message.contains(&format!("does not read `{name}`")),
                    "{mentions}: {message}"
                );
            }
        }
    }

    #[test]
    fn what_a_template_reads_is_found_wherever_it_is() {
        for source in [
            "{{ x }}",
            "{% if x is defined %}a{% endif %}",
            "{%- set x = x or 'a' -%}",
            "{% set x = x if x is defined\n else {'%': 1} %}{{ x }}",
            "{% set ns = namespace(a=x) %}",
            "{% set ns = namespace(a=1) %}{% set ns.a = x %}",
            "{% if not x is defined %}{% set x = 1 %}{% endif %}{{ x }}",
            "{% if y %}{% set x = y %}{% endif %}{{ x }}",
            "{% macro m(y) %}{{ y }}{{ x }}{% endmacro %}{{ m(1) }}",
            "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(x) }}",
            "{% for x in x %}{{ x }}{% endfor %}",
            "{% for x in [1] %}{{ x }}{% endfor %}{{ x }}",
            "{% set y = '%}' ~ x %}",
            "{% generation %}{{ x|tojson }}{% endgeneration %}",
            "{{ [1]|map(x) }}",
        ] {
            assert!(template(source).reads("x"), "{source}");
            assert!(!template(source).reads("a"), "{source}");
        }
    }

    #[test]
    fn arguments_in_strings_are_objects_to_templates_that_need_them() {
        let render = |source: &str, arguments: Value, wrapped: bool| {
            let call = json!({"name": "f", "arguments": arguments});
            let call = if wrapped {
                json!({"type": "function", "function": call})
            } else {
                call
            };
            let chat = Chat {
                messages: vec![json!({"role": "assistant", "tool_calls": [call]})],
                ..Chat::default()
            };
            template(source).render(&chat, &BTreeMap::new()).unwrap()
        };
        let text = "{\"b\":1.0,  \"a\":\"é\"}";
        let parsed = r#"{"b": 1.0, "a": "é"}"#;
        for (of, is_wrapped) in [
            ("messages[0].tool_calls[0].function", true),
            ("messages[0].tool_calls[0]", false),
        ] {
            let source = format!("{{{{ {of}.arguments | tojson }}}}");
            for (arguments, expected) in [
                (json!(text), parsed),
                (serde_json::from_str(text).unwrap(), parsed),
                (json!(""), "{}"),
                (json!("[1]"), r#""[1]""#),
                (json!("Oslo"), r#""Oslo""#),
                (json!(3), "3"),
                (json!({"arguments": "{}"}), r#"{"arguments": "{}"}"#),
            ] {
                assert_eq!(render(&source, arguments.clone(), is_wrapped), expected, "{arguments}");
            }
        }
        let arguments = "{% set a = messages[0].tool_calls[0].arguments %}";
        for (source, expected) in [
            ("{{ a }}", text),
            ("{{ '' ~ a }}", text),
            ("{{ '' + a }}", text),
            ("{{ a | string | trim }}", text),
            ("{{ a.strip() }}", text),
            ("{% if a is string %}{{ a }}{% else %}{{ a | tojson }}{% endif %}", text),
            ("{% if a is mapping %}{{ a | tojson }}{% endif %}", parsed),
            ("{% for k, v in a.items() %}{{ k }}={{ v }} {% endfor %}", "b=1.0 a=é "),
            ("{% for k, v in a | items %}{{ k }}={{ v }} {% endfor %}", "b=1.0 a=é "),
            ("{% for k in a %}{{ k }}={{ a[k] }} {% endfor %}", "b=1.0 a=é "),
            ("{{ a.b }}{{ a.get('c', 'none') }}{{ a | length }}", "1.0none2"),
        ] {
            assert_eq!(
                render(&format!("{arguments}{source}"), json!(text), false),
                expected,
                "{source}"
            );
        }
        let whole = "{{ messages[0].tool_calls | tojson }}";
        assert_eq!(render(whole, json!("{}"), false), r#"[{"name": "f", "arguments": {}}]"#);
    }

    #[test]
    fn the_date_can_be_set() {
        let template = template("{{ strftime_now('%Y-%m-%d') }}");
        template.set_time(86_400 * 365);
        assert_eq!(
            template.render(&Chat::default(), &BTreeMap::new()).unwrap(),
            "1971-01-01"
        );
        template.set_time(0);
        assert_eq!(
            template.render(&Chat::default(), &BTreeMap::new()).unwrap(),
            "1970-01-01"
        );
        let bad = self::template("{{ strftime_now('%!') }}");
        assert!(bad.render(&Chat::default(), &BTreeMap::new()).is_err());
    }

    #[test]
    fn of_several_templates_the_default_is_taken() {
        let path = Path::new("config.json");
        for stored in [
            json!("x"),
            json!([{"name": "tools", "template": "y"}, {"name": "default", "template": "x"}]),
            json!({"default": "x", "tools": "y"}),
        ] {
            assert_eq!(default_of(stored, path).unwrap().as_deref(), Some("x"));
        }
        assert_eq!(default_of(Value::Null, path).unwrap(), None);
        let message = default_of(json!([{"name": "tools", "template": "y"}]), path)
            .unwrap_err()
            .to_string();
        assert!(message.contains("the templates tools"), "{message}");
        assert!(default_of(json!(3), path).is_err());
    }

    #[test]
    fn a_template_with_a_mistake_is_refused() {
        let message = format!("{:#}", ChatTemplate::new("a.jinja".into(), "{% for %}").err().unwrap());
        assert!(message.contains("a.jinja") && message.contains("mistake"), "{message}");
    }
}
