//! Which rank has which expert of each layer: blocks, or as a file says.

use crate::moe::dispatch::Owners;
use anyhow::{ensure, Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Experts of all layers on ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Placement {
    /// What it is called in tables and files.
    pub name: String,
    /// Ranks.
    pub ranks: usize,
    /// By layer.
    pub owners: Vec<Owners>,
}

/// A placement as a file has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    ranks: usize,
    /// Rank of each expert by layer.
    layers: BTreeMap<String, Vec<u32>>,
    /// What a file may say besides, to its reader.
    #[serde(default, rename = "comment")]
    _comment: Value,
}

impl Placement {
    /// Blocks of floor or ceil of `experts / ranks` in each layer, as a run has them.
    pub fn blocks(layers: usize, experts: usize, ranks: usize) -> Placement {
        Placement {
            name: "blocks".to_owned(),
            ranks,
            owners: vec![Owners::blocks(experts, ranks); layers],
        }
    }

    /// Reads `{"ranks": 2, "layers": {"NAME": [rank of expert 0, rank of expert 1, ...], ...}}` for these layers.
    ///
    /// # Errors
    /// Names the file, the layer and the expert: a layer is missing or unknown, has another number of experts, or names a
    /// rank that isn't there.
    pub fn read(path: &Path, layers: &[String], experts: usize) -> Result<Placement> {
        let named = || format!("--placement {}", path.display());
        let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", named()))?;
        let placement = Placement::parse(&text, layers, experts).with_context(named)?;
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        // Two of one name could not be told apart.
        let name = match &*stem {
            "blocks" | "" => "placement".to_owned(),
            stem => stem.to_owned(),
        };
        Ok(Placement { name, ..placement })
    }

    fn parse(text: &str, layers: &[String], experts: usize) -> Result<Placement> {
        const FORM: &str = r#"expected {"ranks": N, "layers": {"NAME": [rank of expert 0, rank of expert 1, ...]}}"#;
        let written: Written = serde_json::from_str(text).context(FORM)?;
        ensure!(
            written.ranks > 0,
            "\"ranks\" is 0: at least one rank must hold the experts"
        );
        if let Some(unknown) = written.layers.keys().find(|name| !layers.contains(name)) {
            anyhow::bail!("layer {unknown:?} is not in the trace, which has {}", layers.join(", "));
        }
        let of_layer = |name: &String| {
            let rank = written
                .layers
                .get(name)
                .with_context(|| format!("layer {name:?} of the trace is missing"))?;
            ensure!(
                rank.len() == experts,
                "layer {name:?} has {} experts, the trace has {experts}",
                rank.len()
            );
            if let Some(expert) = rank.iter().position(|&rank| rank as usize >= written.ranks) {
                anyhow::bail!(
                    "layer {name:?}, expert {expert}: rank {} of {}; ranks count from 0",
                    rank[expert],
                    written.ranks
                );
            }
            Ok(Owners::of(rank.clone(), written.ranks))
        };
        Ok(Placement {
            name: String::new(),
            ranks: written.ranks,
            owners: layers.iter().map(of_layer).collect::<Result<_>>()?,
        })
    }

    /// Experts of each rank in each layer, `[ranks][layers]`.
    pub fn experts(&self) -> Vec<Vec<usize>> {
        let mut experts = vec![vec![0; self.owners.len()]; self.ranks];
        for (layer, owners) in self.owners.iter().enumerate() {
            owners.rank.iter().for_each(|&rank| experts[rank as usize][layer] += 1);
        }
        experts
    }

    /// The most experts that a rank has in a layer: with as many slots nothing is ever evicted.
    pub fn most(&self) -> usize {
        self.experts().into_iter().flatten().max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Placement> {
        Placement::parse(text, &["a".to_owned(), "b".to_owned()], 3)
    }

    #[test]
    fn a_file_says_the_rank_of_each_expert() {
        let placement = parse(r#"{"layers": {"b": [1, 1, 1], "a": [1, 0, 1]}, "ranks": 3}"#).unwrap();
        assert_eq!(placement.owners[0].rank, [1, 0, 1]);
        assert_eq!(placement.owners[0].local, [0, 0, 1]);
        assert_eq!(placement.experts(), [[1, 0], [2, 3], [0, 0]]);
        assert_eq!(placement.most(), 3);
    }

    #[test]
    fn blocks_are_those_of_a_run() {
        let placement = Placement::blocks(2, 5, 2);
        assert_eq!(placement.experts(), [[2, 2], [3, 3]]);
        let placement = Placement::blocks(1, 2, 4);
        assert_eq!(placement.experts().concat().iter().sum::<usize>(), 2);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, parts) in [
            ("", &["expected {\"ranks\""][..]),
            ("[1]", &["expected {\"ranks\""]),
            (r#"{"ranks": 2}"#, &["layers"]),
            (r#"{"ranks": 2, "layers": {"a": [0, 0, -1]}}"#, &["-1"]),
            (r#"{"ranks": 2, "layer": {}}"#, &["unknown field `layer`"]),
            (r#"{"ranks": 0, "layers": {}}"#, &["\"ranks\" is 0"]),
            (r#"{"ranks": 2, "layers": {"a": [0, 0, 1]}}"#, &["\"b\"", "missing"]),
            (r#"{"ranks": 2, "layers": {"c": []}}"#, &["\"c\"", "a, b"]),
            (
                r#"{"ranks": 2, "layers": {"a": [0, 0], "b": [0, 0, 0]}}"#,
                &["\"a\" has 2 experts", "has 3"],
            ),
            (
                r#"{"ranks": 2, "layers": {"a": [0, 0, 1], "b": [0, 2, 0]}}"#,
                &["\"b\", expert 1", "rank 2 of 2"],
            ),
        ] {
            let error = format!("{:#}", parse(text).expect_err(text));
            for part in parts {
                assert!(error.contains(part), "{text}: {part} is not in {error}");
            }
        }
    }
}
