//! Experts that come to four times the memory that the kernel lets a job have, its part of the page cache counted.

use crate::datasets::{assert_equal, invariant};
use crate::place::Place;
use crate::small_model::SmallModel;
use std::fs;
use std::path::{Path, PathBuf};

/// A memory control group of version 1 or 2 that is taken away with this.
struct Group(PathBuf);

impl Group {
    /// One that holds at most so many bytes; nothing where this process may make none.
    fn new(bytes: u64) -> Option<Group> {
        let name = format!("sluice-test-{}", std::process::id());
        let made = |root: &str, limit: &str| {
            let group = Group(Path::new(root).join(&name));
            fs::create_dir(&group.0).ok()?;
            fs::write(group.0.join(limit), bytes.to_string()).ok()?;
            Some(group)
        };
        made("/sys/fs/cgroup/memory", "memory.limit_in_bytes").or_else(|| made("/sys/fs/cgroup", "memory.max"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn experts_of_four_times_the_memory_give_the_same_bits() {
    let Some(place) = Place::new() else { return };
    let limit = 128 << 20;
    let Some(group) = Group::new(limit) else {
        eprintln!("skipped: no memory control group can be made here");
        return;
    };
    // 4 layers of 32 experts of 4 MiB in float32.
    let mut config = SmallModel::of_experts().config;
    for (key, value) in [("encoder_layers", 4), ("decoder_layers", 4), ("num_experts", 32)] {
        config[key] = value.into();
    }
    let model = SmallModel::of(config).save(&place, "model");
    let text: String = (0..40).map(|i| format!("Press any key {i} times.\n")).collect();
    let pairs: String = text.lines().map(|line| format!("{line}\t{line}\n")).collect();
    let (text, pairs) = (
        place.write("in.txt", &text),
        place.write("in.tsv", format!("source\ttarget\n{pairs}")),
    );
    let languages = "--source eng_Latn --target fra_Latn --dtype f32";
    for (job, input, flags) in [
        (
            "translate",
            &text,
            format!("{languages} --max-new-tokens 8 --batch-tokens 200"),
        ),
        ("score", &pairs, format!("{languages} --pairs --activation-memory 4M")),
    ] {
        let all = format!("{job}.h5");
        place.run_job(job, 1, &model, input, &all, &flags).ok();
        for (i, below) in ["", "--cache-dir CACHE"].into_iter().enumerate() {
            let below = below.replace("CACHE", &place.arg("cache"));
            let out = format!("{job}-{i}.h5");
            let arguments = place.job_of(
                job,
                &model,
                input,
                &out,
                &format!("{flags} --expert-memory 40M {below}"),
            );
            let end = place.grouped(&group.0, &arguments);
            assert_eq!(end.code, 0, "{job} {below}: {end:#?}");
            assert_equal(
                &invariant(&place.path(&out)),
                &invariant(&place.path(&all)),
                &format!("{job} {below}"),
            );
        }
    }
}
