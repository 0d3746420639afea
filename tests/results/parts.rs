//! The folder of segments: what of it counts at the next start, and what is not taken for it.

use super::datasets::untimed;
use super::job::{folder, identity, layout, open, row, run_split, trace, write, Dice};
use serde_json::json;
use sluicegate::results::{
    merge, parts_path, JobIdentity, Opened, Parts, RoutingLayout, Row, SegmentName, StepCounts, Tally, Timing,
};
use std::fs;
use std::path::{Path, PathBuf};

#[test]
fn resume_keeps_whole_segments_and_drops_torn_ones() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let rows = 50;
    let (parts, done) = open(&out, rows);
    assert_eq!((done.count(), parts.attempt()), (0, 1));
    let paths: Vec<_> = (0..5)
        .map(|part| {
            write(
                &parts,
                part,
                0,
                (0..10).map(|i| row(u64::from(part) * 10 + i)).collect(),
            )
        })
        .collect();
    drop(parts);
    // One segment cut, one changed in the middle, one record cut, one record lost; one stays whole.
    let bytes = fs::read(&paths[0]).expect("bytes");
    fs::write(&paths[0], &bytes[..bytes.len() / 2]).expect("cut");
    let mut bytes = fs::read(&paths[1]).expect("bytes");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&paths[1], &bytes).expect("changed");
    let record = fs::read(paths[2].with_extension("json")).expect("record");
    fs::write(paths[2].with_extension("json"), &record[..record.len() - 9]).expect("cut");
    fs::remove_file(paths[3].with_extension("json")).expect("lost");
    fs::write(paths[4].with_extension("h5.tmp"), b"half").expect("half");

    let refused = merge(&parts_path(&out), &out, &mut Tally::default())
        .expect_err("torn")
        .to_string();
    assert!(refused.contains("run the job's command again"), "{refused}");

    let (parts, done) = open(&out, rows);
    assert_eq!(parts.attempt(), 2);
    assert!(done.ranges().eq(std::iter::once(40..50)));
    assert_eq!(parts.done().expect("records"), done);
    let left: Vec<_> = fs::read_dir(parts.dir())
        .expect("a folder")
        .map(|entry| entry.expect("entry").file_name())
        .collect();
    assert_eq!(left.len(), 4, "{left:?}"); // job.json, lock, one segment and its record
    let joined = Parts::join(&out).expect("another rank");
    assert_eq!(joined.attempt(), 2);
    write(
        &joined,
        0,
        0,
        (0..40).filter(|index| !done.contains(*index)).map(row).collect(),
    );
    parts.merge(&mut Tally::default()).expect("a merge");

    let plain = folder.path().join("plain.h5");
    run_split(&plain, rows, &mut Dice(3));
    assert_eq!(untimed(&out), untimed(&plain));
}

/// Another character in place of one: a digit for a digit, so that the JSON stays one.
fn another(character: u8) -> u8 {
    match character {
        b'0'..=b'8' => character + 1,
        b'9' => b'0',
        _ => character ^ 1,
    }
}

#[test]
fn a_changed_character_of_a_record_costs_its_rows_and_no_more() {
    let folder = folder();
    let plain = folder.path().join("plain.h5");
    let (rows, kept) = (12, [0, 1, 2, 5, 7, 8]);
    run_split(&plain, rows, &mut Dice(3));
    let plain = untimed(&plain);
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, rows);
    let other = write(&parts, 1, 0, vec![row(3), row(11)]);
    let segment = write(&parts, 0, 0, kept.map(row).to_vec());
    let (dir, record) = (parts.dir().to_owned(), segment.with_extension("json"));
    drop(parts);
    let read = |path: &Path| fs::read(path).expect("bytes");
    let job = dir.join("job.json");
    let files: Vec<_> = [&job, &segment, &record, &other, &other.with_extension("json")]
        .map(|path| (path.clone(), read(path)))
        .into();
    let whole = read(&record);
    let text = String::from_utf8(whole.clone()).expect("UTF-8");
    let ranges = text.find("ranges").expect("ranges");
    let digest = text.find("\"digest\"").expect("a digest");
    for place in (ranges..ranges + 32).chain((0..whole.len()).step_by(11)) {
        let _ = fs::remove_file(&out);
        fs::create_dir_all(&dir).expect("a folder");
        files
            .iter()
            .for_each(|(path, bytes)| fs::write(path, bytes).expect("written"));
        let mut changed = whole.clone();
        changed[place] = another(changed[place]);
        fs::write(&record, &changed).expect("changed");
        let what = format!("at {place}: {}", String::from_utf8_lossy(&changed));
        if place < digest {
            let refused = merge(&dir, &out, &mut Tally::default()).expect_err(&what);
            let refused = format!("{refused:#}");
            for part in ["run the job's command again", "a0001-r00000-s000000.json"] {
                assert!(refused.contains(part), "{what}: {refused}");
            }
        }
        let (parts, done) = open(&out, rows);
        let expected = if place < digest { vec![3, 11] } else { vec![] };
        assert!(expected.iter().all(|row| done.contains(*row)), "{what}");
        assert!(place >= digest || done.count() == 2, "{what}");
        let missing = (0..rows).filter(|index| !done.contains(*index)).map(row).collect();
        write(&parts, 0, 0, missing);
        parts.merge(&mut Tally::default()).expect(&what);
        assert!(untimed(&out) == plain, "{what}");
    }
}

#[test]
fn a_damaged_job_is_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 12);
    write(&parts, 0, 0, (0..12).map(row).collect());
    let job = parts.dir().join("job.json");
    drop(parts);
    let whole = fs::read_to_string(&job).expect("a job");
    let refused = |text: &str| {
        fs::write(&job, text).expect("written");
        let merged = merge(&parts_path(&out), &out, &mut Tally::default()).expect_err("merged");
        let opened = Parts::open_or_create(&out, &identity(12), false).expect_err("opened");
        assert!(!out.exists());
        [merged, opened].map(|error| format!("{error:#}"))
    };
    for outputs in ["0", "2", "3", "5"] {
        let changed = whole.replacen("\"outputs\":1", &format!("\"outputs\":{outputs}"), 1);
        assert_ne!(changed, whole);
        for message in refused(&changed) {
            let said = message.contains("job.json is damaged") && message.contains("SHA-256");
            assert!(said, "{outputs}: {message}");
        }
        // As earlier versions wrote it.
        let (plain, _) = changed.split_once(",\n\"digest\"").expect("a digest");
        if ["0", "5"].contains(&outputs) {
            for message in refused(&format!("{plain}}}")) {
                let said = message.contains("job.json is damaged") && message.contains("multiple of outputs");
                assert!(said, "{outputs}: {message}");
            }
        }
    }
    let (plain, _) = whole.split_once(",\n\"digest\"").expect("a digest");
    fs::write(&job, format!("{plain}}}")).expect("written");
    let (parts, done) = open(&out, 12);
    assert_eq!((parts.attempt(), done.count()), (2, 12));
}

#[test]
fn segments_that_make_no_sense_are_refused() {
    let folder = folder();
    let (parts, _) = open(&folder.path().join("out.h5"), 5);
    let refuse = |rows: &mut [Row], layout: Option<&RoutingLayout>, steps: &[StepCounts]| {
        let name = SegmentName {
            attempt: 1,
            rank: 0,
            seq: 0,
        };
        let error = parts
            .write_segment(name, rows, layout, steps, &Timing::default())
            .expect_err("refused");
        format!("{error:#}")
    };
    let all = layout();
    assert!(refuse(&mut [row(1), row(1)], Some(&all), &[]).contains("row 1 is twice"));
    assert!(refuse(&mut [row(5)], Some(&all), &[]).contains("row 5 is beyond the job's 5 rows"));
    assert!(refuse(&mut [row(0)], None, &[]).contains("without the layers"));
    let mut uneven = row(1);
    uneven.routes.as_mut().expect("routes").encoder_ids.pop();
    assert!(refuse(&mut [uneven], Some(&all), &[]).contains("row 1: 7 expert ids and 8 weights"));
    let mut steps = trace(1);
    steps[0].counts.pop();
    assert!(refuse(&mut [row(1)], Some(&all), &steps).contains("7 expert counts, expected 2 layers x 4 experts"));
    let left = fs::read_dir(parts.dir()).expect("a folder").count();
    assert_eq!(left, 2, "only job.json and lock");
    write(&parts, 0, 0, vec![row(0)]);
    let again = parts.write_segment(
        SegmentName {
            attempt: 1,
            rank: 0,
            seq: 0,
        },
        &mut [],
        None,
        &[],
        &Timing::default(),
    );
    assert!(again.expect_err("twice").to_string().contains("written only once"));
}

#[test]
fn another_job_is_refused_unless_overwritten() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let mut other = identity(4);
    other.fields.insert("num_beams".into(), json!(4));
    let refuse = |identity: &JobIdentity| {
        format!(
            "{:#}",
            Parts::open_or_create(&out, identity, false)
                .map(drop)
                .expect_err("refused")
        )
    };
    let (parts, _) = open(&out, 4);
    write(&parts, 0, 0, (0..4).map(row).collect());
    drop(parts);
    let message = refuse(&other);
    assert!(
        message.contains("num_beams: 1 there, 4 now") && message.contains("--overwrite"),
        "{message}"
    );

    let (parts, done) = open(&out, 4);
    assert_eq!(done.count(), 4);
    parts.merge(&mut Tally::default()).expect("a merge");
    assert!(refuse(&other).contains("num_beams: 1 there, 4 now"));
    assert!(!parts_path(&out).exists());
    // As a kill leaves it in the very act of clearing away.
    let leftover = PathBuf::from(format!("{}.merged", parts_path(&out).display()));
    fs::create_dir(&leftover).expect("a folder");
    let again = Parts::open_or_create(&out, &identity(4), false).expect("open");
    assert!(matches!(again, Opened::AlreadyFinished));
    assert!(!parts_path(&out).exists() && !leftover.exists());

    match Parts::open_or_create(&out, &other, true).expect("overwritten") {
        Opened::Ready {
            parts,
            attempt,
            kept_rows,
            ..
        } => {
            assert_eq!((attempt, kept_rows), (1, 0));
            assert!(!out.exists() && parts.dir().exists());
        }
        Opened::AlreadyFinished => panic!("overwrite must start anew"),
    }
}

#[test]
fn outputs_that_are_not_ours_are_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let refuse = |out: &Path| {
        format!(
            "{:#}",
            Parts::open_or_create(out, &identity(1), false)
                .map(drop)
                .expect_err("refused")
        )
    };
    fs::write(&out, "my thesis").expect("a file");
    assert!(refuse(&out).contains("is not an HDF5 file"));
    drop(hdf5::File::create(&out).expect("HDF5"));
    assert!(refuse(&out).contains("not a result of sluice"));
    assert!(!parts_path(&out).exists());
    assert!(refuse(&folder.path().join("none/out.h5")).contains("there is no folder"));
    assert!(refuse(folder.path()).contains("that is a folder"));
    assert!(matches!(
        Parts::open_or_create(&out, &identity(1), true),
        Ok(Opened::Ready { .. })
    ));
}

#[test]
fn left_over_parts_of_a_finished_job_are_removed() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 2);
    write(&parts, 0, 0, vec![row(0), row(1)]);
    let (dir, copy) = (parts.dir().to_owned(), folder.path().join("copy"));
    let copy_to = |from: &Path, to: &Path| {
        fs::create_dir_all(to).expect("a folder");
        for entry in fs::read_dir(from).expect("a folder") {
            let entry = entry.expect("an entry");
            fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
        }
    };
    copy_to(&dir, &copy);
    parts.merge(&mut Tally::default()).expect("a merge");
    copy_to(&copy, &dir); // as after a kill between the rename and the removal
    assert!(matches!(
        Parts::open_or_create(&out, &identity(2), false),
        Ok(Opened::AlreadyFinished)
    ));
    assert!(!dir.exists());
    copy_to(&copy, &dir);
    let summary = merge(&dir, &out, &mut Tally::default()).expect("a merge");
    assert!(summary.already && !dir.exists());
}

#[test]
fn a_second_job_is_refused() {
    let folder = folder();
    let out = folder.path().join("out.h5");
    let (parts, _) = open(&out, 1);
    let message = format!(
        "{:#}",
        Parts::open_or_create(&out, &identity(1), true)
            .map(drop)
            .expect_err("locked")
    );
    assert!(
        message.contains(&format!("pid {} on host ", std::process::id())),
        "{message}"
    );
    let message = format!(
        "{:#}",
        merge(&parts_path(&out), &out, &mut Tally::default()).expect_err("locked")
    );
    assert!(message.contains("another job writes this output"), "{message}");
    drop(parts);
    drop(open(&out, 1));
}
