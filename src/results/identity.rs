//! Which job a result belongs to, and how two jobs differ.

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A job: what its results depend on, and what is told about it in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobIdentity {
    /// `translate`, `score`, ...
    pub job: String,
    /// Everything that changes results: the input's digest, languages, generation options, dtype, ...
    pub fields: Map<String, Value>,
    /// The configuration as the file shows it. Not compared.
    pub config: Value,
    /// The command line. Not compared.
    pub command: String,
    /// Digest of the checkpoint.
    pub model_sha256: String,
    /// How many rows the job has: records times outputs of each.
    pub rows: u64,
    /// Outputs of each record of the input (several target languages): row `i` belongs to record `i / outputs`.
    pub outputs: u64,
}

impl JobIdentity {
    /// How `now` differs from this job, a line a field: `name: 1 there, 2 now`. Empty if it is the same job. Where it is of
    /// another kind, only that is said.
    pub fn differences(&self, now: &JobIdentity) -> Vec<String> {
        if self.job != now.job {
            return vec![format!("it is of sluice {}, this is sluice {}", self.job, now.job)];
        }
        let (there, now) = (self.compared(), now.compared());
        let names: std::collections::BTreeSet<_> = there.keys().chain(now.keys()).collect();
        names
            .into_iter()
            .filter(|name| there.get(*name) != now.get(*name))
            .map(|name| format!("{name}: {} there, {} now", shown(there.get(name)), shown(now.get(name))))
            .collect()
    }

    /// What is compared, nested fields as dotted names.
    fn compared(&self) -> BTreeMap<String, Value> {
        fn flatten(prefix: &str, fields: &Map<String, Value>, into: &mut BTreeMap<String, Value>) {
            for (name, value) in fields {
                let name = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                match value {
                    Value::Object(inner) if !inner.is_empty() => flatten(&name, inner, into),
                    _ => {
                        into.insert(name, value.clone());
                    }
                }
            }
        }
        let mut all = BTreeMap::new();
        flatten("", &self.fields, &mut all);
        all.insert("model_sha256".to_owned(), self.model_sha256.clone().into());
        all.insert("rows".to_owned(), self.rows.into());
        all.insert("outputs".to_owned(), self.outputs.into());
        all
    }

    /// Refuses numbers of rows that no job has.
    pub(crate) fn check(&self) -> Result<()> {
        let (rows, outputs) = (self.rows, self.outputs);
        ensure!(
            outputs > 0 && rows.is_multiple_of(outputs),
            "the job's identity has {rows} rows and {outputs} outputs of each record: rows must be a multiple of outputs"
        );
        Ok(())
    }

    /// Compact JSON, as it is kept in the parts folder and the finished file.
    pub(crate) fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).context("cannot write the job's identity as JSON")
    }
}

/// A value as it was typed: a number of single precision as 0.8, not as 0.800000011920929.
fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return "not set".to_owned();
    };
    match value.as_f64().filter(|_| value.is_f64()) {
        Some(number) if f64::from(number as f32) == number => (number as f32).to_string(),
        _ => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::JobIdentity;
    use serde_json::json;

    #[test]
    fn names_every_field_that_differs() {
        let job = |fields: serde_json::Value, rows| JobIdentity {
            job: "translate".into(),
            fields: fields.as_object().expect("an object").clone(),
            config: json!({"threads": rows}),
            command: format!("sluice {rows}"),
            model_sha256: "m".into(),
            outputs: 1,
            rows,
        };
        let there = job(
            json!({"source": "eng_Latn", "generation": {"num_beams": 1, "max": 5}, "old": true}),
            3,
        );
        let now = job(
            json!({"source": "fra_Latn", "generation": {"max": 5, "num_beams": 4}}),
            4,
        );
        assert_eq!(
            there.differences(&now),
            [
                "generation.num_beams: 1 there, 4 now",
                "old: true there, not set now",
                "rows: 3 there, 4 now",
                "source: \"eng_Latn\" there, \"fra_Latn\" now",
            ]
        );
        let mut same = there.clone();
        same.command.clear();
        same.config = json!(null);
        assert!(there.differences(&same).is_empty());
        let other = JobIdentity {
            job: "generate".into(),
            ..now
        };
        assert_eq!(
            there.differences(&other),
            ["it is of sluice translate, this is sluice generate"]
        );
    }
}
