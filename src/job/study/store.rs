//! The datasets of `STUDY.h5`; `docs/results.md` describes them for users.

use super::report::{Cell, Placed, Report};
use crate::cli::study::BufferArgs;
use crate::results::{write_study, StudyFile, Table, Values};
use anyhow::{Context, Result};

/// Writes what was found.
///
/// # Errors
/// The disk is full, or the folder not writable.
pub fn write(args: &BufferArgs, report: &Report) -> Result<()> {
    let file = StudyFile {
        study: "buffer",
        long_name: "experts loaded with fewer slots than experts",
        command: std::env::args().collect::<Vec<_>>().join(" "),
        config: serde_json::to_value(args).context("the options as JSON")?,
        attributes: vec![
            ("trace", report.trace.display().to_string()),
            ("trace_job", report.job.clone()),
            ("model_sha256", report.model_sha256.clone()),
            ("pool", report.pool.to_owned()),
            ("prefetch", report.prefetch.to_owned()),
        ],
        tables: tables(report),
    };
    write_study(&args.output, &file)
}

/// Values of every placement, policy and number of slots.
fn of_cells(report: &Report, values: impl Fn(&Cell) -> Vec<u64>) -> Values {
    let cells = report.placed.iter().flat_map(|placed| placed.cells.iter().flatten());
    Values::Counts(cells.flat_map(values).collect())
}

/// Values of every placement.
fn of_placed(report: &Report, values: impl Fn(&Placed) -> Vec<u64>) -> Values {
    Values::Counts(report.placed.iter().flat_map(values).collect())
}

fn tables(report: &Report) -> Vec<Table> {
    let (placements, policies, slots) = (report.placed.len(), report.columns.len(), report.slots.len());
    let (ranks, layers) = (report.ranks, report.layers.len());
    let texts = |names: Vec<String>| Values::Texts(names);
    let cube = vec![placements, policies, slots];
    let with = |last: usize| [&cube[..], &[last]].concat();
    let mut tables = vec![
        Table {
            name: "slots",
            long_name: "slots for each MoE layer of a rank",
            units: "experts",
            dimensions: &["slots"],
            shape: vec![slots],
            values: Values::Counts(report.slots.iter().map(|&n| n as u64).collect()),
        },
        Table {
            name: "policies",
            long_name: "policies of eviction, and Belady's minimum",
            units: "UTF-8",
            dimensions: &["policy"],
            shape: vec![policies],
            values: texts(report.columns.iter().map(|name| (*name).to_owned()).collect()),
        },
        Table {
            name: "placements",
            long_name: "placements of experts on ranks",
            units: "UTF-8",
            dimensions: &["placement"],
            shape: vec![placements],
            values: texts(
                report
                    .placed
                    .iter()
                    .map(|placed| placed.placement.name.clone())
                    .collect(),
            ),
        },
        Table {
            name: "layers",
            long_name: "MoE layers, encoder first",
            units: "UTF-8",
            dimensions: &["layer"],
            shape: vec![layers],
            values: texts(report.layers.clone()),
        },
        Table {
            name: "experts_by_rank",
            long_name: "experts of each rank in each layer",
            units: "experts",
            dimensions: &["placement", "rank", "layer"],
            shape: vec![placements, ranks, layers],
            values: of_placed(report, |placed| {
                let experts = placed.placement.experts().concat();
                experts.into_iter().map(|n| n as u64).collect()
            }),
        },
        Table {
            name: "accesses",
            long_name: "experts needed, each once a visit of its layer",
            units: "experts",
            dimensions: &["placement"],
            shape: vec![placements],
            values: of_placed(report, |placed| vec![placed.accesses]),
        },
        Table {
            name: "accesses_by_rank",
            long_name: "experts needed, by rank over all groups",
            units: "experts",
            dimensions: &["placement", "rank"],
            shape: vec![placements, ranks],
            values: of_placed(report, |placed| placed.accesses_by_rank.clone()),
        },
        Table {
            name: "accesses_by_layer",
            long_name: "experts needed, by layer",
            units: "experts",
            dimensions: &["placement", "layer"],
            shape: vec![placements, layers],
            values: of_placed(report, |placed| placed.accesses_by_layer.clone()),
        },
        Table {
            name: "loads",
            long_name: "experts loaded, those ahead of their use included",
            units: "experts",
            dimensions: &["placement", "policy", "slots"],
            shape: cube.clone(),
            values: of_cells(report, |cell| vec![cell.loads]),
        },
        Table {
            name: "loads_ahead",
            long_name: "experts loaded ahead of their use",
            units: "experts",
            dimensions: &["placement", "policy", "slots"],
            shape: cube.clone(),
            values: of_cells(report, |cell| vec![cell.ahead]),
        },
        Table {
            name: "miss_share",
            long_name: "experts loaded for each expert needed",
            units: "1",
            dimensions: &["placement", "policy", "slots"],
            shape: cube.clone(),
            values: {
                let of = |placed: &Placed| -> Vec<f64> {
                    let all = (0..policies).flat_map(|policy| (0..slots).map(move |slots| (policy, slots)));
                    all.map(|(policy, slots)| placed.share(policy, slots)).collect()
                };
                Values::Figures(report.placed.iter().flat_map(of).collect())
            },
        },
        Table {
            name: "loads_by_rank",
            long_name: "experts loaded, by rank over all groups",
            units: "experts",
            dimensions: &["placement", "policy", "slots", "rank"],
            shape: with(ranks),
            values: of_cells(report, |cell| cell.by_rank.clone()),
        },
        Table {
            name: "loads_by_layer",
            long_name: "experts loaded, by layer",
            units: "experts",
            dimensions: &["placement", "policy", "slots", "layer"],
            shape: with(layers),
            values: of_cells(report, |cell| cell.by_layer.clone()),
        },
    ];
    tables.extend(memory(report));
    tables
}

/// Bytes by component, where they are known.
fn memory(report: &Report) -> Vec<Table> {
    let Some(weights) = &report.weights else {
        return Vec::new();
    };
    let (placements, slots) = (report.placed.len(), report.slots.len());
    let experts = || report.placed.iter().filter_map(|placed| placed.experts.as_ref());
    let dense = weights.dense.map(|dense| Table {
        name: "dense_bytes",
        long_name: "weights that every rank holds",
        units: "byte",
        dimensions: &[],
        shape: vec![],
        values: Values::Counts(vec![dense]),
    });
    let tables = [
        Table {
            name: "expert_bytes",
            long_name: "an expert of each layer",
            units: "byte",
            dimensions: &["layer"],
            shape: vec![report.layers.len()],
            values: Values::Counts(weights.expert.clone()),
        },
        Table {
            name: "all_experts_bytes",
            long_name: "all experts of the fullest rank",
            units: "byte",
            dimensions: &["placement"],
            shape: vec![placements],
            values: Values::Counts(experts().map(|experts| experts.all).collect()),
        },
        Table {
            name: "resident_experts_bytes",
            long_name: "experts in slots of the fullest rank",
            units: "byte",
            dimensions: &["placement", "slots"],
            shape: vec![placements, slots],
            values: Values::Counts(experts().flat_map(|experts| experts.resident.clone()).collect()),
        },
        Table {
            name: "saved_share",
            long_name: "share of the fullest rank's weights that is not in memory",
            units: "1",
            dimensions: &["placement", "slots"],
            shape: vec![placements, slots],
            values: Values::Figures(experts().flat_map(|experts| experts.saved(weights.dense)).collect()),
        },
    ];
    dense.into_iter().chain(tables).collect()
}
