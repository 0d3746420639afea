//! Whether all ranks were started alike: a launcher can give each its own command line, and each node has its own files.

use super::task::Task;
use crate::comm::Comm;
use crate::results::JobIdentity;
use anyhow::{ensure, Context, Result};
use serde_json::{Map, Value};

/// Options that a rank may have for itself: its own copy of the checkpoint and of the options' file, what its machine gives,
/// and what only rank 0 looks at.
const OWN: [&str; 6] = ["model", "config", "threads", "device", "report", "cache_dir"];

/// Of ranks that differ in one of these, nothing else is worth a word.
const FIRST: [&str; 2] = ["version", "job"];

/// Refuses a rank that was not started as rank 0 was; collective over all ranks, whatever their jobs. `hosts` are those of
/// rank 0 and of this one.
///
/// # Errors
/// What differs, and when the checkpoint cannot be read.
pub fn alike(task: &impl Task, world: &dyn Comm, hosts: [&str; 2]) -> Result<()> {
    let own = told(task).and_then(|told| Ok(serde_json::to_vec(&told)?));
    // Told without an error of this rank's own, so that nobody waits.
    let mut first = own.as_deref().map(<[u8]>::to_vec).unwrap_or_default();
    world.broadcast(0, &mut first);
    let own = own?;
    if first.is_empty() {
        return Ok(());
    }
    // Both as read, so that no number differs by the way it was written.
    let read = |bytes: &[u8]| serde_json::from_slice(bytes).context("what a rank was started with");
    let differences = differences(read(&first)?, read(&own)?);
    ensure!(
        differences.is_empty(),
        "on {} it was not started as rank 0 was on {}: {}; all ranks of a job need the same program, options and checkpoint \
         (a copy of it may lie elsewhere)",
        hosts[1],
        hosts[0],
        differences.join(", ")
    );
    Ok(())
}

/// What must be the same on all ranks.
fn told(task: &impl Task) -> Result<Map<String, Value>> {
    let setup = task.setup();
    let mut told = Map::new();
    told.insert("version".into(), env!("CARGO_PKG_VERSION").into());
    told.insert("job".into(), setup.name.into());
    told.insert("checkpoint".into(), setup.opened.checkpoint.sha256()?.into());
    if let Value::Object(options) = &setup.arguments {
        let shared = options.iter().filter(|(name, _)| !OWN.contains(&name.as_str()));
        let given = shared.filter(|(_, value)| !value.is_null());
        told.extend(given.map(|(name, value)| (name.clone(), value.clone())));
        // A folder of a rank's own, but all have one or none: the file in it is made together.
        if options.get("cache_dir").is_some_and(|dir| !dir.is_null()) {
            told.insert("cache_dir".into(), "given".into());
        }
    }
    Ok(told)
}

/// How a rank differs from rank 0.
fn differences(first: Map<String, Value>, own: Map<String, Value>) -> Vec<String> {
    let both = [first, own];
    let apart = |name: &&str| both[0].get(*name) != both[1].get(*name);
    let only = FIRST.into_iter().find(apart);
    let [first, own] = both.map(|fields| JobIdentity {
        job: String::new(),
        fields: fields
            .into_iter()
            .filter(|(name, _)| only.is_none_or(|only| only == name))
            .collect(),
        config: Value::Null,
        command: String::new(),
        model_sha256: String::new(),
        rows: 0,
        outputs: 0,
    });
    first.differences(&own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranks_that_differ_are_told_in_what() {
        let map = |value: Value| value.as_object().expect("an object").clone();
        let first = json!({"version": "1", "job": "score", "checkpoint": "a", "window": 5, "top": 0});
        let of = |changes: Value| {
            let mut own = map(first.clone());
            own.extend(map(changes));
            own.retain(|_, value| !value.is_null());
            differences(map(first.clone()), own)
        };
        assert!(of(json!({})).is_empty());
        assert_eq!(of(json!({"window": 6})), ["window: 5 there, 6 now"]);
        assert_eq!(
            of(json!({"window": null, "checkpoint": "b", "stride": 2})),
            [
                "checkpoint: \"a\" there, \"b\" now",
                "stride: not set there, 2 now",
                "window: 5 there, not set now"
            ]
        );
        assert_eq!(
            of(json!({"job": "generate", "window": null, "max_new_tokens": 8})),
            ["job: \"score\" there, \"generate\" now"]
        );
        assert_eq!(
            of(json!({"version": "2", "job": "generate", "top": 1})),
            ["version: \"1\" there, \"2\" now"]
        );
    }
}
