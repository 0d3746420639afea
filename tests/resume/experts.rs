//! Experts that are read while the job runs, from a checkpoint that doesn't stay as it was: the job ends with one error that
//! says so and goes on where it was once that is mended.

use super::found::found;
use super::job::{kill, Bench, Start, GENERATE, SCORE, TRANSLATE};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Few experts in memory, and small steps, so that reading never ends.
const FEW: &str = "--expert-slots 1 --prefetch off";

/// A copy of the bench's checkpoint.
fn copy(bench: &Bench, model: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(model);
    let to = bench.path("model");
    fs::create_dir_all(&to).expect("a folder");
    for entry in fs::read_dir(from).expect("a checkpoint").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
    }
    to
}

/// Reading fails on one rank: the others, which get nothing of its experts in that step, keep nothing of it.
#[test]
fn an_expert_that_cannot_be_read_spoils_nothing() {
    // Texts that are scored end in every step, some of them in the one that goes wrong.
    let jobs = [
        (SCORE, "--activation-memory 2M"),
        (TRANSLATE, "--batch-tokens 100"),
        (GENERATE, "--batch-tokens 200"),
    ];
    for (job, flags) in jobs {
        let Some(bench) = Bench::of(job) else { return };
        bench.done(1, "plain.h5", "");
        let plain = found(&bench.path("plain.h5"));
        for (i, moment) in ["expert-read", "expert-read:30", "expert-read:77"]
            .into_iter()
            .enumerate()
        {
            let out = format!("out-{i}.h5");
            let rank = i % 2;
            let start = Start {
                ranks: 2,
                variable: Some(("SLUICE_FAIL_AT", moment, Some(rank))),
                ..Start::default()
            };
            let ended = bench.run(&start, &out, &format!("{flags} {FEW}"));
            let what = format!("{moment} on {rank}: {}", ended.stderr);
            assert_eq!((ended.code, ended.errors().len()), (Some(2), 1), "{what}");
            let error = ended.errors()[0];
            assert!(
                error.contains("SLUICE_FAIL_AT") && error.contains("of MoE layer"),
                "{what}"
            );
            bench.resume(
                1 + i % 3,
                &out,
                &format!("{flags} {}", if i > 0 { FEW } else { "" }),
                &plain,
            );
        }
    }
}

#[test]
fn a_panic_while_an_expert_is_read_ends_all() {
    let Some(bench) = Bench::of(SCORE) else { return };
    let start = Start {
        ranks: 2,
        variable: Some(("SLUICE_PANIC_AT", "expert-read:20", Some(1))),
        ..Start::default()
    };
    let ended = bench.run(&start, "out.h5", FEW);
    assert_eq!((ended.code, ended.errors().len()), (Some(2), 1), "{}", ended.stderr);
    assert!(ended.errors()[0].contains("rank 1 panicked"), "{}", ended.stderr);
}

#[test]
fn a_checkpoint_that_changes_under_the_job_ends_it_until_it_is_mended() {
    let Some(bench) = Bench::of(SCORE.over(700)) else {
        return;
    };
    let model = copy(&bench, "lm");
    let file = model.join("model.safetensors");
    let sound = fs::read(&file).expect("a checkpoint");
    bench.done(2, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let half = sound.len() / 2;
    // Damage, and what the error says of it.
    type Damage<'a> = (&'a str, &'a dyn Fn(), Option<&'a str>);
    let open = || File::options().write(true).open(&file).expect("a file");
    let damages: [Damage; 4] = [
        (
            "cut",
            &|| open().set_len(half as u64).expect("cut"),
            Some("was changed while the job was running"),
        ),
        (
            "written over",
            &|| open().write_all_at(&sound[1000..half], half as u64).expect("written"),
            Some("was changed while the job was running"),
        ),
        (
            "worn",
            &|| {
                // Bits that turn by themselves leave the date as it is.
                let file = open();
                let date = file.metadata().and_then(|m| m.modified()).expect("a date");
                file.write_all_at(&vec![0xff; sound.len() - half], half as u64)
                    .expect("written");
                file.set_modified(date).expect("a date");
            },
            Some("NaN"),
        ),
        (
            "another in its place",
            &|| {
                let other = model.join("other");
                fs::write(&other, vec![0xff; sound.len()]).expect("written");
                fs::rename(other, &file).expect("renamed");
            },
            None,
        ),
    ];
    for (i, (name, damage, says)) in damages.into_iter().enumerate() {
        let out = format!("out-{i}.h5");
        let whole = format!("-m {}", model.display());
        let more = format!("{FEW} --activation-memory 1M -m {}", model.display());
        let start = Start {
            ranks: 2,
            ..Start::default()
        };
        let mut job = bench.start(&start, &out, &more);
        assert!(job.until(|_| bench.kept(&out) > 0), "{name}: over too early");
        // Nobody may look while it is half done.
        let ranks = job.ranks();
        kill("STOP", ranks.iter().copied());
        damage();
        kill("CONT", ranks);
        let ended = job.wait();
        let what = format!("{name}: {}", ended.stderr);
        match says {
            None => assert_eq!(ended.code, Some(0), "{what}"),
            Some(says) => {
                assert_eq!((ended.code, ended.errors().len()), (Some(2), 1), "{what}");
                let error = ended.errors()[0];
                for word in [says, "model.safetensors", "of MoE layer", "tensor `model.layers."] {
                    assert!(error.contains(word), "{word}: {what}");
                }
                assert!(
                    (1..bench.job.rows).contains(&bench.kept(&out)),
                    "{name}: {}",
                    bench.kept(&out)
                );
            }
        }
        fs::write(&file, &sound).expect("mended");
        match says {
            None => bench.same(&out, &plain),
            Some(_) => bench.resume(1 + i, &out, if i == 0 { &more } else { &whole }, &plain),
        }
    }
}

#[test]
fn packed_experts_that_change_under_the_job_end_it_until_they_are_made_anew() {
    let Some(bench) = Bench::of(SCORE.over(700)) else {
        return;
    };
    bench.done(2, "plain.h5", "");
    let plain = found(&bench.path("plain.h5"));
    let cache = bench.path("cache");
    type Damage<'a> = (&'a str, &'a dyn Fn(&File, u64));
    let damages: [Damage; 2] = [
        ("has been cut", &|file, len| file.set_len(len / 2).expect("cut")),
        ("checksum", &|file, len| {
            let half = vec![0x55; (len / 2) as usize];
            file.write_all_at(&half, len - len / 2).expect("written");
        }),
    ];
    for (i, (says, damage)) in damages.into_iter().enumerate() {
        let out = format!("out-{i}.h5");
        let more = format!("{FEW} --activation-memory 1M --cache-dir {}", cache.display());
        let start = Start {
            ranks: 2,
            ..Start::default()
        };
        let mut job = bench.start(&start, &out, &more);
        assert!(job.until(|_| bench.kept(&out) > 0), "{says}: over too early");
        let mut files = fs::read_dir(&cache)
            .expect("a folder")
            .flatten()
            .map(|entry| entry.path());
        let file = files
            .find(|path| path.extension().is_some_and(|e| e == "experts"))
            .expect("experts");
        let ranks = job.ranks();
        kill("STOP", ranks.iter().copied());
        let open = File::options().write(true).open(&file).expect("a file");
        damage(&open, open.metadata().expect("a size").len());
        kill("CONT", ranks);
        let ended = job.wait();
        let what = format!("{says}: {}", ended.stderr);
        assert_eq!((ended.code, ended.errors().len()), (Some(2), 1), "{what}");
        for word in [says, ".experts", "of MoE layer"] {
            assert!(ended.errors()[0].contains(word), "{word}: {what}");
        }
        fs::remove_file(&file).expect("deleted");
        bench.resume(1, &out, &more, &plain);
    }
}
