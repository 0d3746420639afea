//! What `sluice study buffer` prints: tables for people, JSON for programs.

use super::report::{Placed, Report, MIN};
use crate::job::columns::aligned;
use crate::metrics::memory::size;
use anyhow::Result;
use serde_json::{json, Value};
use std::fmt::Write;

/// What the trace is, then a table for each placement.
pub fn table(report: &Report) -> String {
    let mut page = String::new();
    about(&mut page, report);
    for placed in &report.placed {
        let _ = writeln!(
            page,
            "\nplacement {}: {} expert uses; experts loaded in % of them",
            placed.placement.name, placed.accesses
        );
        aligned(&mut page, 0, rows(report, placed));
    }
    if let Some(weights) = &report.weights {
        let whose = match weights.dense {
            Some(_) => "dense weights and resident experts of the fullest rank",
            None => "resident experts of the fullest rank",
        };
        let of = weights.dtype.map_or(String::new(), |dtype| format!(", in {dtype}"));
        let _ = writeln!(
            page,
            "\nmemory: {whose}{of}; saved: share that all of its experts would take more"
        );
    }
    if let Some(first) = report.left_out.first() {
        let _ = writeln!(
            page,
            "\n{first} slots and more are left out: a rank has no more experts in a layer"
        );
    }
    page
}

/// `1 step`, `2 steps`.
fn counted(number: u64, what: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{number} {what}{s}")
}

fn about(page: &mut String, report: &Report) {
    let pool = match report.pool {
        "layer" => "each layer has its own",
        _ => "the layers of a rank share them",
    };
    let _ = writeln!(
        page,
        "trace: {} ({}): {}, {} of {} with {} experts, top-{}",
        report.trace.display(),
        report.job,
        counted(report.steps, "step"),
        counted(report.visits, "visit"),
        counted(report.layers.len() as u64, "MoE layer"),
        report.layer_experts,
        report.top_k
    );
    if report.spans > 1 {
        let _ = writeln!(
            page,
            "{} starts and groups, each with empty slots at first",
            report.spans
        );
    }
    let _ = writeln!(
        page,
        "active: a visit needs {:.1} % of the layer's experts",
        100.0 * report.active_share
    );
    let _ = writeln!(page, "ranks: {} ({})", report.ranks, report.ranks_from);
    let _ = writeln!(
        page,
        "slots: for each layer of a rank, {pool}; prefetch: {}",
        report.prefetch
    );
}

fn rows(report: &Report, placed: &Placed) -> Vec<Vec<String>> {
    let columns = &report.columns;
    let ratio = report.column("lookahead").zip(report.column(MIN));
    let mut head = vec!["slots".to_owned()];
    head.extend(columns.iter().map(|column| (*column).to_owned()));
    head.extend(ratio.map(|_| "lookahead/min".to_owned()));
    let saved = placed.experts.as_ref().zip(report.weights.as_ref());
    let saved = saved.map(|(experts, weights)| (experts, weights.dense, experts.saved(weights.dense)));
    if saved.is_some() {
        head.extend(["memory", "saved"].map(str::to_owned));
    }
    let row = |(at, slots): (usize, &usize)| {
        let mut cells = vec![slots.to_string()];
        cells.extend((0..columns.len()).map(|column| format!("{:.2}", 100.0 * placed.share(column, at))));
        cells.extend(ratio.map(|(lookahead, min)| {
            let [lookahead, min] = [lookahead, min].map(|column| placed.cells[column][at].loads as f64);
            format!("{:.3}", lookahead / min.max(1.0))
        }));
        if let Some((experts, dense, saved)) = &saved {
            cells.push(size(dense.unwrap_or(0) + experts.resident[at]));
            cells.push(format!("{:.1} %", 100.0 * saved[at]));
        }
        cells
    };
    let rows = report.slots.iter().enumerate().map(row);
    std::iter::once(head).chain(rows).collect()
}

/// Every figure unrounded.
pub fn json(report: &Report) -> Result<String> {
    let placed = |placed: &Placed| {
        let policy = |(column, name): (usize, &&str)| {
            let cells = &placed.cells[column];
            json!({
                "name": name,
                "loads": cells.iter().map(|cell| cell.loads).collect::<Vec<_>>(),
                "loads_ahead": cells.iter().map(|cell| cell.ahead).collect::<Vec<_>>(),
                "miss_share": (0..cells.len()).map(|slots| placed.share(column, slots)).collect::<Vec<_>>(),
                "loads_by_rank": cells.iter().map(|cell| &cell.by_rank).collect::<Vec<_>>(),
                "loads_by_layer": cells.iter().map(|cell| &cell.by_layer).collect::<Vec<_>>(),
            })
        };
        let memory = placed.experts.as_ref().zip(report.weights.as_ref()).map(|(experts, weights)| {
            json!({
                "all_experts": experts.all, "resident_experts": experts.resident, "saved_share": experts.saved(weights.dense),
            })
        });
        json!({
            "name": placed.placement.name, "accesses": placed.accesses, "accesses_by_rank": placed.accesses_by_rank,
            "accesses_by_layer": placed.accesses_by_layer,
            "policies": report.columns.iter().enumerate().map(policy).collect::<Vec<Value>>(), "memory": memory,
        })
    };
    let weights = report
        .weights
        .as_ref()
        .map(|weights| json!({ "dense": weights.dense, "expert": weights.expert, "dtype": weights.dtype }));
    let page = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "trace": {
            "file": report.trace.display().to_string(), "job": report.job, "model_sha256": report.model_sha256,
            "layers": report.layers, "experts": report.layer_experts, "top_k": report.top_k, "starts_and_groups": report.spans,
            "steps": report.steps, "visits": report.visits, "active_share": report.active_share,
        },
        "ranks": report.ranks, "pool": report.pool, "prefetch": report.prefetch, "slots": report.slots,
        "bytes": weights, "placements": report.placed.iter().map(placed).collect::<Vec<Value>>(),
    });
    Ok(serde_json::to_string_pretty(&page)? + "\n")
}
