//! Options from file and command line, finished and unmerged outputs, the report, launches that lie, ranks that die.

use crate::datasets::{all, assert_equal};
use crate::place::{read, Place};
use crate::small_model::SmallModel;
use serde_json::Value;
use sluicegate::results::{Phase, Results};
use std::fs;
use std::path::PathBuf;

const FRENCH: &str = "--source eng_Latn --target fra_Latn --max-new-tokens 8";

fn place() -> Option<(Place, PathBuf, PathBuf)> {
    let place = Place::new()?;
    let model = SmallModel::new(4).save(&place, "model");
    let input = place.write("in.txt", "Press any key.\n\nThe file was not found.\nOne more line.\n");
    Some((place, model, input))
}

#[test]
fn the_command_line_wins_over_the_config_file() {
    let Some((place, model, input)) = place() else { return };
    let config = place.write(
        "job.toml",
        format!("model = {:?}\nsource = \"eng_Latn\"\ntarget = [\"deu_Latn\"]\nnum-beams = 2\nmax_new_tokens = 5\nscores = true\n", model),
    );
    let arguments = [
        "translate",
        &place.arg("in.txt"),
        "--config",
        &config.display().to_string(),
        "--output",
        &place.arg("out.h5"),
        "--num-beams",
        "3",
        "--target",
        "fra_Latn",
    ]
    .map(str::to_string);
    place.start(2, &[], None, &arguments).ok();
    let results = Results::open(&place.path("out.h5")).expect("results");
    let fields = &results.identity().fields;
    assert_eq!(fields["num_beams"], 3);
    assert_eq!(fields["max_length"], 6);
    assert_eq!(fields["target"][0], "fra_Latn");
    assert!(results.has_logprobs());
    let wrong = place.write("wrong.toml", "num-beam = 2\n");
    place.refused(
        2,
        &model,
        &input,
        &format!("{FRENCH} --config {}", wrong.display()),
        &["wrong.toml", "num-beam"],
    );
}

#[test]
fn a_finished_output_is_left_alone_and_another_job_is_refused() {
    let Some((place, model, input)) = place() else { return };
    place.rows(2, &model, &input, "out.h5", FRENCH);
    let before = fs::read(place.path("out.h5")).expect("the output");
    let said = place.translate(3, &model, &input, "out.h5", FRENCH).ok();
    assert!(
        said.contains("out.h5 is finished already") && said.contains("--overwrite"),
        "{said}"
    );
    assert_eq!(said.matches("finished already").count(), 1, "{said}");
    // References are for a run; of a finished output another command tells.
    let references = format!("{FRENCH} --references {}", input.display());
    let end = place.translate(1, &model, &input, "out.h5", &references);
    assert_eq!(end.code, 0, "{end:#?}");
    end.says(&["sluice evaluate"]);
    let end = place.translate(2, &model, &input, "out.h5", &format!("{FRENCH} --num-beams 2"));
    end.refused(&["num_beams", "--overwrite"]);
    assert!(
        fs::read(place.path("out.h5")).expect("the output") == before,
        "nothing is changed"
    );
    place
        .translate(
            2,
            &model,
            &input,
            "out.h5",
            &format!("{FRENCH} --num-beams 2 --overwrite"),
        )
        .ok();
    assert_eq!(
        Results::open(&place.path("out.h5")).expect("results").identity().fields["num_beams"],
        2
    );
    let other = place.write("other.h5", "a letter, not a result");
    let end = place.translate(2, &model, &input, "other.h5", FRENCH);
    end.refused(&["other.h5", "--overwrite"]);
    assert_eq!(fs::read(other).expect("the letter"), b"a letter, not a result");
}

#[test]
fn merging_later_gives_the_same_file() {
    let Some((place, model, input)) = place() else { return };
    let flags = format!("{FRENCH} --scores --routing tokens");
    let both = format!("{flags} --references {} --no-merge", place.arg("in.txt"));
    place.refused(1, &model, &input, &both, &["--references", "--no-merge"]);
    place.rows(1, &model, &input, "merged.h5", &flags);
    place
        .translate(1, &model, &input, "later.h5", &format!("{flags} --no-merge"))
        .ok();
    assert!(!place.path("later.h5").exists() && place.path("later.h5.parts").is_dir());
    let end = place.sluice(&[], &["show", &place.arg("later.h5")]);
    end.refused(&["sluice merge"]);
    place.sluice(&[], &["merge", &place.arg("later.h5.parts")]).ok();
    assert!(!place.path("later.h5.parts").exists());
    let without_time = |name: &str| {
        let mut found = all(&place.path(name));
        found.remove("/timing/seconds").expect("timing");
        found.remove("/timing/bytes").expect("timing");
        found
    };
    assert_equal(&without_time("later.h5"), &without_time("merged.h5"), "merged later");
}

#[test]
fn the_report_has_its_documented_keys() {
    let Some((place, model, input)) = place() else { return };
    let report = place.arg("report.json");
    place.rows(2, &model, &input, "out.h5", &format!("{FRENCH} --report {report}"));
    let report: Value = serde_json::from_slice(&fs::read(report).expect("a report")).expect("JSON");
    for key in ["results", "config", "versions", "git_hash", "date", "environment"] {
        assert!(report.get(key).is_some(), "{key} is not in {report}");
    }
    let results = &report["results"];
    for key in [
        "tokens_per_second",
        "rows",
        "tokens",
        "phases",
        "peak_memory_bytes",
        "imbalance",
        "experts",
    ] {
        assert!(!results[key].is_null(), "results.{key} is not in {report}");
    }
    let rows = read(&place.path("out.h5"));
    let tokens: usize = rows.iter().map(|r| r.ids.len()).sum();
    assert_eq!(
        (results["rows"].as_u64(), results["tokens"].as_u64()),
        (Some(4), Some(tokens as u64))
    );
    assert_eq!(results["experts"], 4);
    assert_eq!(results["peak_memory_bytes"].as_array().map(Vec::len), Some(2));
    assert_eq!(results["phases"].as_array().map(Vec::len), Some(2));
    assert_eq!(report["config"]["max_new_tokens"], 8);
    assert!(report["versions"]["mpi"]
        .as_str()
        .is_some_and(|mpi| mpi.contains("MPI")));
}

#[test]
fn chosen_experts_add_up_to_the_counts() {
    let Some((place, model, input)) = place() else { return };
    for (ranks, beams) in [(1, 1), (3, 3)] {
        let out = format!("{ranks}.h5");
        let flags = format!("{FRENCH} --routing tokens --num-beams {beams}");
        let rows = place.rows(ranks, &model, &input, &out, &flags);
        let results = Results::open(&place.path(&out)).expect("results");
        let layout = results.routing().expect("routing").clone();
        for phase in [Phase::Encode, Phase::Decode] {
            let layers = layout.layers(phase).len();
            let mut chosen = vec![0u64; layers * layout.experts];
            for row in &rows {
                let Some(routes) = &row.routes else {
                    assert!(row.ids.is_empty(), "only a blank row has no routes");
                    continue;
                };
                let (ids, weights) = match phase {
                    Phase::Encode => (&routes.encoder_ids, &routes.encoder_weights),
                    Phase::Decode => (&routes.decoder_ids, &routes.decoder_weights),
                };
                assert_eq!(ids.len(), weights.len());
                // The last token is generated, but nothing is computed from it.
                let expected = layers * layout.top_k * row.ids.len();
                assert!(
                    phase == Phase::Encode || ids.len() == expected,
                    "{} for {expected}",
                    ids.len()
                );
                for (i, &id) in ids.iter().enumerate() {
                    chosen[i / layout.top_k % layers * layout.experts + id as usize] += 1;
                }
            }
            let totals = results.expert_totals(phase).expect("totals");
            // Beams that lost were routed too: they are in the counts alone.
            let equal = chosen == totals;
            let within = chosen.iter().zip(&totals).all(|(c, t)| c <= t);
            assert!(
                if beams == 1 || phase == Phase::Encode {
                    equal
                } else {
                    within
                },
                "{chosen:?} {totals:?}"
            );
            let steps = results.read_steps(phase, 0..results.steps(phase)).expect("steps");
            let mut summed = vec![0u64; totals.len()];
            for step in &steps {
                summed
                    .iter_mut()
                    .zip(&step.counts)
                    .for_each(|(sum, &count)| *sum += u64::from(count));
            }
            assert_eq!(summed, totals, "steps add up to the totals");
        }
    }
}

#[test]
fn processes_that_do_not_know_of_each_other_are_refused() {
    let Some((place, model, input)) = place() else { return };
    let job = place.job(&model, &input, "out.h5", FRENCH);
    let arguments: Vec<&str> = job.iter().map(String::as_str).collect();
    for (env, words) in [
        (
            &[("OMPI_COMM_WORLD_SIZE", "4")][..],
            &["4 processes", "rank 0 of 1", "sluice doctor"][..],
        ),
        (&[("PMI_SIZE", "4")], &["4 processes", "rank 0 of 1"]),
        (
            &[
                ("SLURM_NTASKS", "4"),
                ("SLURM_STEP_NUM_TASKS", "4"),
                ("SLURM_STEP_ID", "0"),
            ],
            &["srun started 4 tasks", "--mpi=pmix"],
        ),
    ] {
        place.sluice(env, &arguments).refused(words);
        assert!(!place.left("out.h5"), "{env:?}");
    }
    // In a batch script without a step it is only strange.
    let end = place.sluice(&[("SLURM_NTASKS", "4")], &arguments);
    end.says(&["without srun", "4 tasks"]);
    end.ok();
}

#[test]
fn ranks_that_cannot_form_groups_are_refused() {
    let Some((place, model, input)) = place() else { return };
    place.refused(
        3,
        &model,
        &input,
        &format!("{FRENCH} --expert-parallel 2"),
        &["--expert-parallel 2", "1, 3"],
    );
    place.refused(2, &model, &input, &format!("{FRENCH} --num-beams 0"), &["--num-beams"]);
    place.refused(
        2,
        &model,
        &input,
        &format!("{FRENCH} --references {}", place.arg("none")),
        &["--references"],
    );
    let short = place.write("short.txt", "one line\n");
    let flags = format!("{FRENCH} --references {}", short.display());
    place.refused(2, &model, &input, &flags, &["1 lines for 4 rows"]);
}

#[test]
fn a_rank_that_panics_ends_all_and_the_job_goes_on_later() {
    let Some((place, model, input)) = place() else { return };
    let wanted = place.rows(1, &model, &input, "whole.h5", FRENCH);
    let crash = [("SLUICE_PANIC_AT", "segment-before-rename")];
    let end = place.start(3, &crash, None, &place.job(&model, &input, "out.h5", FRENCH));
    assert_ne!(end.code, 0, "{end:#?}");
    assert!(!place.path("out.h5").exists() && place.path("out.h5.parts").is_dir());
    assert_eq!(place.rows(2, &model, &input, "out.h5", FRENCH), wanted);
}

#[test]
fn the_summary_tells_rows_tokens_and_time() {
    let Some((place, model, input)) = place() else { return };
    let rows = place.rows(2, &model, &input, "out.h5", &format!("{FRENCH} --routing counts"));
    let tokens: usize = rows.iter().map(|r| r.ids.len()).sum();
    let summary = place.show("out.h5", &["--summary"]);
    for part in [
        "rows     4: ",
        "1 blank",
        &format!("tokens   {tokens}\n"),
        "largest s",
        "attention",
        "expert load",
        "num_beams = 1",
    ] {
        assert!(summary.contains(part), "{part:?} is not in {summary}");
    }
}
