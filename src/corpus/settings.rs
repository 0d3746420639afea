//! What a row of prompts asks for instead of the job's settings, and what of it is not followed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{json, Value};

use super::jsonl::{first, Object};

/// What a row asks for instead of the job's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSettings {
    /// The most tokens to generate, at least 1: `max_new_tokens`, `max_tokens` or `max_completion_tokens`.
    pub max_new_tokens: Option<u32>,
    /// Where its random numbers begin.
    pub seed: Option<u64>,
    /// Strings that end its text, none of them empty; no strings: the job's.
    pub stop: Vec<String>,
}

/// Something that rows ask for and don't get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotFollowed {
    /// The first row that asks.
    pub row: u64,
    /// What it asks for.
    pub value: Value,
    /// How many rows ask.
    pub rows: u64,
}

/// Whether a value of a setting asks for nothing; none where the name is no setting that outputs change with and that no
/// row has for itself. The names are those of requests to servers (OpenAI's, vLLM's) and transformers' own.
pub(crate) fn asks_nothing(name: &str, value: &Value) -> Option<bool> {
    let is = |neutral: Value| is_same(value, &neutral);
    let asks_nothing = match name {
        "temperature"
        | "do_sample"
        | "num_beams"
        | "early_stopping"
        | "length_penalty"
        | "no_repeat_ngram_size"
        | "max_length"
        | "prompt_logprobs"
        | "truncate_prompt_tokens"
        | "add_special_tokens"
        | "chat_template"
        | "structured_outputs"
        | "guided_json"
        | "guided_regex"
        | "guided_choice"
        | "guided_grammar" => false,
        "top_k" => is(json!(0)) || is(json!(-1)),
        "top_p" | "n" | "best_of" | "num_return_sequences" | "repetition_penalty" => is(json!(1)),
        "min_p" | "min_tokens" | "min_new_tokens" | "min_length" | "top_logprobs" | "presence_penalty"
        | "frequency_penalty" => is(json!(0)),
        "use_beam_search"
        | "logprobs"
        | "echo"
        | "ignore_eos"
        | "include_stop_str_in_output"
        | "continue_final_message" => is(json!(false)),
        "skip_special_tokens" | "spaces_between_special_tokens" | "add_generation_prompt" => is(json!(true)),
        "suffix" | "logit_bias" | "bad_words" | "allowed_token_ids" | "stop_token_ids" | "functions" => is_empty(value),
        "tool_choice" | "function_call" => is(json!("auto")),
        "response_format" => is(json!({"type": "text"})),
        "modalities" => is(json!(["text"])),
        _ => return None,
    };
    Some(asks_nothing || value.is_null())
}

/// Null, or a string, a list or an object with nothing but that in it.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(all) => all.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What the row asks for.
pub(crate) fn settings(object: &Object) -> Result<RowSettings, String> {
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

/// What the row asks for and doesn't get. `job_settings` are by the names that rows have for them: who asks for the same
/// gets it.
pub(crate) fn not_followed(object: &Object, job_settings: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let is_followed = |name: &str, value: &Value| match (asks_nothing(name, value), job_settings.get(name)) {
        (None, _) => true,
        (Some(nothing), None) => nothing,
        (Some(nothing), Some(all)) => {
            value.is_null() || is_same(value, all) || nothing && asks_nothing(name, all) == Some(true)
        }
    };
    let missed = object.iter().filter(|(name, value)| !is_followed(name, value));
    missed.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Equal, numbers as the 32-bit floats that settings are kept in.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a as f32 == b as f32,
        _ => a == b,
    }
}

/// Counts what a row asks for and doesn't get; `row` is its number.
pub(crate) fn count_not_followed(all: &mut BTreeMap<String, NotFollowed>, asked: BTreeMap<String, Value>, row: u64) {
    for (name, value) in asked {
        all.entry(name).or_insert(NotFollowed { row, value, rows: 0 }).rows += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job_settings<const N: usize>(settings: [(&str, Value); N]) -> BTreeMap<String, Value> {
        settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn asked(line: Value, job_settings: &BTreeMap<String, Value>) -> Vec<String> {
        not_followed(line.as_object().unwrap(), job_settings)
            .into_keys()
            .collect()
    }

    #[test]
    fn what_is_not_followed_is_told_from_what_asks_for_nothing() {
        let none = BTreeMap::new();
        let line = json!({"temperature": 0.7, "top_p": 1.0, "n": 2, "logprobs": false, "frequency_penalty": 0.0, "seed": 1,
            "logit_bias": {}, "response_format": {"type": "text"}, "min_p": null, "stop": "a", "user": "me", "model": "m",
            "guided_json": {"type": "object"}});
        assert_eq!(asked(line, &none), ["guided_json", "n", "temperature"]);
        let all = job_settings([
            ("temperature", json!(0.7f32)),
            ("top_p", json!(0.9f32)),
            ("logprobs", json!(true)),
        ]);
        assert_eq!(
            asked(json!({"temperature": 0.7, "top_p": 0.9, "logprobs": true}), &all),
            [""; 0]
        );
        let line = json!({"temperature": 0.8, "top_p": 1, "logprobs": 5});
        assert_eq!(asked(line, &all), ["logprobs", "temperature", "top_p"]);
        assert_eq!(
            asked(json!({"top_k": -1}), &job_settings([("top_k", json!(0))])),
            [""; 0]
        );
        let longest = job_settings([("max_length", Value::Null)]);
        assert_eq!(asked(json!({"max_length": null}), &longest), [""; 0]);
        assert_eq!(
            asked(json!({"max_length": 3, "suffix": "", "stop_token_ids": []}), &longest),
            ["max_length"]
        );
    }

    #[test]
    fn rows_that_ask_are_counted() {
        let mut all = BTreeMap::new();
        for row in [3, 5] {
            count_not_followed(&mut all, job_settings([("n", json!(row))]), row);
        }
        let expected = NotFollowed {
            row: 3,
            value: json!(3),
            rows: 2,
        };
        assert_eq!(all.into_iter().collect::<Vec<_>>(), [("n".to_owned(), expected)]);
    }
}
