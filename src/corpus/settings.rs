//! What a row of prompts asks for instead of the job's settings, and what of it is not followed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// What is not followed by row, as the row has it.
    pub not_followed: BTreeMap<String, Value>,
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

/// Settings of requests to servers (OpenAI's, vLLM's, and transformers' own names) that change an output and that no row
/// has for itself, each with values that ask for nothing (JSON; null asks for nothing either).
pub(crate) const NOT_BY_ROW: [(&str, &str); 48] = [
    ("temperature", "[]"),
    ("top_p", "[1]"),
    ("top_k", "[0, -1]"),
    ("min_p", "[0]"),
    ("do_sample", "[]"),
    ("num_beams", "[]"),
    ("use_beam_search", "[false]"),
    ("early_stopping", "[]"),
    ("length_penalty", "[]"),
    ("no_repeat_ngram_size", "[]"),
    ("min_tokens", "[0]"),
    ("min_new_tokens", "[0]"),
    ("min_length", "[0]"),
    ("max_length", "[]"),
    ("n", "[1]"),
    ("best_of", "[1]"),
    ("num_return_sequences", "[1]"),
    ("logprobs", "[false]"),
    ("top_logprobs", "[0]"),
    ("prompt_logprobs", "[]"),
    ("echo", "[false]"),
    ("suffix", "[\"\"]"),
    ("presence_penalty", "[0]"),
    ("frequency_penalty", "[0]"),
    ("repetition_penalty", "[1]"),
    ("logit_bias", "[{}]"),
    ("bad_words", "[[]]"),
    ("allowed_token_ids", "[[]]"),
    ("stop_token_ids", "[[]]"),
    ("ignore_eos", "[false]"),
    ("include_stop_str_in_output", "[false]"),
    ("skip_special_tokens", "[true]"),
    ("spaces_between_special_tokens", "[true]"),
    ("truncate_prompt_tokens", "[]"),
    ("add_special_tokens", "[]"),
    ("add_generation_prompt", "[true]"),
    ("continue_final_message", "[false]"),
    ("chat_template", "[]"),
    ("response_format", "[{\"type\": \"text\"}]"),
    ("structured_outputs", "[]"),
    ("guided_json", "[]"),
    ("guided_regex", "[]"),
    ("guided_choice", "[]"),
    ("guided_grammar", "[]"),
    ("tool_choice", "[\"auto\"]"),
    ("functions", "[[]]"),
    ("function_call", "[\"auto\"]"),
    ("modalities", "[[\"text\"]]"),
];

/// What the row asks for. `job_settings` are by the names that rows have for them: who asks for the same gets it.
pub(crate) fn settings(object: &Object, job_settings: &BTreeMap<String, Value>) -> Result<RowSettings, String> {
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
        not_followed: not_followed(object, job_settings),
    })
}

/// What the row asks for and doesn't get.
pub(crate) fn not_followed(object: &Object, job_settings: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let asked = |&(name, neutral): &(&str, &str)| {
        let value = object.get(name).filter(|value| !value.is_null())?;
        let neutral: Vec<Value> = serde_json::from_str(neutral).unwrap_or_default();
        let asks_nothing = |value: &Value| neutral.iter().any(|other| is_same(value, other));
        let followed = match job_settings.get(name) {
            Some(all) => is_same(value, all) || asks_nothing(value) && asks_nothing(all),
            None => asks_nothing(value),
        };
        (!followed).then(|| (name.to_owned(), value.clone()))
    };
    NOT_BY_ROW.iter().filter_map(asked).collect()
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
    use serde_json::json;

    fn job_settings<const N: usize>(settings: [(&str, Value); N]) -> BTreeMap<String, Value> {
        settings
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    }

    fn asked(line: Value, job_settings: &BTreeMap<String, Value>) -> Vec<String> {
        let settings = settings(line.as_object().unwrap(), job_settings).unwrap();
        settings.not_followed.into_keys().collect()
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
        for (_, neutral) in NOT_BY_ROW {
            assert!(serde_json::from_str::<Vec<Value>>(neutral).is_ok(), "{neutral}");
        }
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
