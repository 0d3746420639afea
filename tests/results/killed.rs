//! `kill -9` while segments are written and merged.

use super::datasets::untimed;
use super::job::{folder_alone, identity, open, row, run_split, write, Dice};
use sluicegate::results::{parts_path, Opened, Parts, Row, Tally};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// Run by `a_kill_leaves_finished_segments` in a process of its own, which crashes on the way.
#[test]
fn crashing_child() {
    let Some(out) = std::env::var_os("SLUICE_TEST_CRASH_OUT").map(PathBuf::from) else {
        return;
    };
    let (parts, done) = open(&out, 30);
    for part in 0..3 {
        let rows: Vec<Row> = (part * 10..part * 10 + 10)
            .filter(|index| !done.contains(*index))
            .map(row)
            .collect();
        if !rows.is_empty() {
            write(&parts, 0, part as u32, rows);
        }
    }
    parts.merge(&mut Tally::default()).expect("a merge");
}

#[test]
fn a_kill_leaves_finished_segments() {
    let folder = folder_alone();
    let plain = folder.path().join("plain.h5");
    run_split(&plain, 30, &mut Dice(2));
    let moments = [
        ("segment-before-rename:2", 10),
        ("segment-after-rename:2", 10),
        ("record-before-rename:3", 20),
        ("record-after-rename:2", 20),
        ("merge-start", 30),
        ("merge-middle", 30),
        ("merge-before-rename", 30),
        ("merge-after-rename", 30),
    ];
    for (moment, kept) in moments {
        let out = folder.path().join(moment.replace(':', "-")).with_extension("h5");
        let child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "killed::crashing_child", "--test-threads=1"])
            .env("SLUICE_TEST_CRASH_OUT", &out)
            .env("SLUICE_CRASH_AT", moment)
            .output()
            .expect("a child");
        assert!(!child.status.success(), "{moment} did not crash");
        if out.exists() {
            assert_eq!(moment, "merge-after-rename");
            assert!(matches!(
                Parts::open_or_create(&out, &identity(30), false),
                Ok(Opened::AlreadyFinished)
            ));
        } else {
            let (parts, done) = open(&out, 30);
            assert_eq!(done.count(), kept, "{moment}");
            write(
                &parts,
                1,
                0,
                (0..30).filter(|index| !done.contains(*index)).map(row).collect(),
            );
            parts.merge(&mut Tally::default()).expect("a merge");
        }
        assert_eq!(untimed(&out), untimed(&plain), "{moment}");
        assert!(!parts_path(&out).exists());
    }
    let left: Vec<_> = fs::read_dir(folder.path())
        .expect("a folder")
        .map(|entry| entry.expect("entry").path())
        .collect();
    assert!(
        left.iter()
            .all(|path| path.extension().is_some_and(|ending| ending == "h5")),
        "{left:?}"
    );
}
