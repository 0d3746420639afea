//! `sluice study buffer`: what fewer expert slots would have cost a finished run.

use super::count::Plan;
use super::figure;
use super::memory::Weights;
use super::placement::Placement;
use super::print;
use super::recorded::Recorded;
use super::report::{Report, MIN};
use super::store;
use crate::cli::check;
use crate::cli::exit::Exit;
use crate::cli::study::{BufferArgs, Pool, PrefetchName};
use crate::results::Results;
use anyhow::{bail, ensure, Context, Result};
use std::fs;
use std::io::Write;

/// Reads the trace, replays it, writes the file and the figures, and prints tables or JSON.
///
/// # Errors
/// The trace can't be read or is empty; the placement or the checkpoint don't belong to it; the output is there already, or
/// can't be written.
pub fn run(args: &BufferArgs, to: &mut dyn Write) -> Result<Exit> {
    check::study(args)?;
    if let Ok(there) = Results::open(&args.output) {
        bail!(
            "--output {} holds the results of a run (sluice {}), which --overwrite doesn't replace: choose another name",
            args.output.display(),
            there.identity().job
        );
    }
    let (results, recorded) = Recorded::open(&args.trace)?;
    let report = study(args, &results, &recorded)?;
    if let Some(folder) = &args.figures {
        fs::create_dir_all(folder).with_context(|| format!("--figures {}: cannot be made", folder.display()))?;
        figure::write(&report, folder)?;
    }
    store::write(args, &report)?;
    let text = if args.json {
        print::json(&report)?
    } else {
        print::table(&report)
    };
    to.write_all(text.as_bytes())?;
    to.flush()?;
    Ok(Exit::Done)
}

fn study(args: &BufferArgs, results: &Results, recorded: &Recorded) -> Result<Report> {
    let placed = args.placement.as_ref();
    let placed = placed.map(|path| Placement::read(path, &recorded.layers, recorded.experts));
    let placed = placed.transpose()?;
    let (ranks, ranks_from) = match (args.ranks, &placed, recorded.ranks) {
        (Some(ranks), Some(placed), _) => {
            ensure!(
                ranks == placed.ranks,
                "--ranks {ranks}, but --placement is for {}: give the same number, or leave --ranks out",
                placed.ranks
            );
            (ranks, "--ranks")
        }
        (Some(ranks), None, _) => (ranks, "--ranks"),
        (None, Some(placed), _) => (placed.ranks, "of the placement"),
        (None, None, Some(ranks)) => (ranks, "as in the run"),
        (None, None, None) => (1, "the run's number is not known"),
    };
    let blocks = Placement::blocks(recorded.layers.len(), recorded.experts, ranks);
    let placements: Vec<Placement> = [Some(blocks), placed].into_iter().flatten().collect();
    let most = placements.iter().map(Placement::most).max().unwrap_or(0);
    let (slots, left_out): (Vec<usize>, Vec<usize>) = args.slots.numbers().iter().partition(|&&n| n <= most);
    ensure!(
        !slots.is_empty(),
        "--slots: {} and more are above the {most} experts that a rank has in a layer: nothing would ever make room",
        left_out[0]
    );
    let weights = Weights::of(args, results, recorded)?;
    let policies = args.policies();
    let plan = Plan {
        policies: &policies,
        slots: &slots,
        pool: args.pool,
        prefetch: args.prefetch,
    };
    log::info!(
        "replaying {} visits with {} numbers of slots, {} policies and Belady's minimum",
        recorded.visits().count(),
        slots.len(),
        policies.len()
    );
    let mut placed: Vec<_> = placements
        .into_iter()
        .map(|placement| plan.count(recorded, placement))
        .collect();
    if let Some(weights) = &weights {
        for placed in &mut placed {
            placed.experts = Some(weights.experts(&placed.placement, args.pool, &slots));
        }
    }
    let identity = results.identity();
    Ok(Report {
        trace: args.trace.clone(),
        job: identity.job.clone(),
        model_sha256: identity.model_sha256.clone(),
        layers: recorded.layers.clone(),
        layer_experts: recorded.experts,
        top_k: recorded.top_k,
        spans: recorded.spans.len(),
        steps: recorded.spans.iter().map(|span| span.steps).sum(),
        visits: recorded.visits().count() as u64,
        active_share: recorded.active_share(),
        ranks,
        ranks_from,
        pool: match args.pool {
            Pool::Layer => "layer",
            Pool::Rank => "rank",
        },
        prefetch: match args.prefetch {
            PrefetchName::Off => "off",
            PrefetchName::Trace => "trace",
        },
        slots,
        left_out,
        columns: policies.iter().map(|policy| policy.name()).chain([MIN]).collect(),
        weights,
        placed,
    })
}
