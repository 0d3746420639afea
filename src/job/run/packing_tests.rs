use super::*;
use crate::comm::{threads, ReportedElsewhere};
use anyhow::anyhow;
use std::path::PathBuf;
use std::sync::Mutex;

const NAME: &str = "x.experts";
const IDENTITY: &str = "model 1f3a, float32, layout 1";
const LENGTHS: [usize; 9] = [5000, 0, 4096, 1, 70_000, 300, 0, 8192, 12];

fn fill(record: usize, into: &mut [u8]) {
    (into.iter_mut().enumerate()).for_each(|(i, byte)| *byte = (i * 11 + i / 249 + record * 29 + 1) as u8);
}

fn check(file: &PackedFile, lengths: &[usize]) {
    for (record, &length) in lengths.iter().enumerate() {
        let (mut into, mut expected) = (Pages::zeros(padded(length)), vec![0; length]);
        file.read(record, &mut into).unwrap();
        fill(record, &mut expected);
        assert!(into[..length] == expected, "record {record}");
    }
}

/// What a rank did: the records that it packed, and what it heard of progress.
type Deeds = (Vec<usize>, Vec<(usize, usize)>);

/// Ranks that look into the folders `dirs`, each as one of a host of this name.
fn pack(dirs: &[(&str, PathBuf)], lengths: &[usize]) -> Vec<Deeds> {
    threads::run(dirs.len(), |world| {
        let (host, dir) = &dirs[world.rank()];
        let wanted = Wanted {
            dir,
            name: NAME,
            identity: IDENTITY,
            lengths,
        };
        let (mut packed, mut heard) = (Vec::new(), Vec::new());
        let mut pack = |record: usize, into: &mut [u8]| {
            packed.push(record);
            fill(record, into);
            Ok(())
        };
        let file = wanted.ensure(world, host, &mut pack, &mut |done, of| heard.push((done, of)));
        check(&file.unwrap(), lengths);
        (packed, heard)
    })
}

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.map(|n| n.into_string().unwrap()).collect()
}

fn every(first: usize, step: usize) -> Vec<usize> {
    (first..LENGTHS.len()).step_by(step).collect()
}

/// The same file, made by one without any of this.
fn twin(lengths: &[usize]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let maker = Maker::create(dir.path(), NAME, IDENTITY, lengths).unwrap();
    let put = |(record, &length): (usize, &usize)| {
        let mut bytes = vec![0; length];
        fill(record, &mut bytes);
        maker.put(record, &bytes).unwrap()
    };
    let checksums: Vec<u32> = lengths.iter().enumerate().map(put).collect();
    maker.finish(&checksums).unwrap();
    fs::read(dir.path().join(NAME)).unwrap()
}

#[test]
fn ranks_of_a_folder_make_one_file_once() {
    for (ranks, hosts) in [
        (1, ["a"; 4]),
        (2, ["a"; 4]),
        (3, ["a", "b", "a", "b"]),
        (4, ["a", "b", "c", "d"]),
    ] {
        for lengths in [&LENGTHS[..], &LENGTHS[..2], &[]] {
            let root = tempfile::tempdir().unwrap();
            let dir = root.path().join("cache/of/experts");
            let dirs: Vec<_> = hosts[..ranks].iter().map(|&host| (host, dir.clone())).collect();
            let deeds = pack(&dirs, lengths);
            for (rank, (packed, heard)) in deeds.iter().enumerate() {
                let mine: Vec<usize> = (rank..lengths.len()).step_by(ranks).collect();
                assert_eq!(*packed, mine, "rank {rank} of {ranks}");
                assert_eq!(heard.len(), lengths.len().div_ceil(ranks));
                let end = (lengths.len(), lengths.len());
                assert!(heard.last().is_none_or(|&last| last == end) && heard.is_sorted());
            }
            assert_eq!(files(&dir), [NAME]);
            assert!(fs::read(dir.join(NAME)).unwrap() == twin(lengths));
            // Nothing is written the second time.
            let times = || [&dir, &dir.join(NAME)].map(|path| fs::metadata(path).unwrap().modified().unwrap());
            let before = times();
            let again = pack(&dirs, lengths);
            assert!(again
                .iter()
                .all(|(packed, heard)| packed.is_empty() && heard.is_empty()));
            assert_eq!(times(), before);
        }
    }
}

#[test]
fn folders_of_their_own_get_files_of_their_own() {
    let roots = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let [a, b, c] = [0, 1, 2].map(|i| roots[i].path().to_owned());
    let packed = |dirs: &[(&str, &PathBuf)]| -> Vec<Vec<usize>> {
        let dirs: Vec<_> = dirs.iter().map(|&(host, dir)| (host, dir.clone())).collect();
        pack(&dirs, &LENGTHS).into_iter().map(|(packed, _)| packed).collect()
    };
    // One rank on the first machine, three on the second.
    let found = packed(&[("b", &b), ("a", &a), ("b", &b), ("b", &b)]);
    assert_eq!(found, [every(0, 3), every(0, 1), every(1, 3), every(2, 3)]);
    // Those who have theirs look on; containers that share a host's name share no folder.
    let found = packed(&[("b", &b), ("c", &c), ("a", &a), ("c", &c)]);
    assert_eq!(found, [vec![], every(0, 2), vec![], every(1, 2)]);
    for dir in [&a, &b, &c] {
        assert_eq!(files(dir), [NAME]);
        assert!(fs::read(dir.join(NAME)).unwrap() == twin(&LENGTHS));
        fs::remove_file(dir.join(NAME)).unwrap();
    }
    let found = packed(&[("a", &a), ("a", &b), ("a", &c), ("a", &a)]);
    assert_eq!(found, [every(0, 2), every(0, 1), every(0, 1), every(1, 2)]);
    assert!([a, b, c].iter().all(|dir| files(dir) == [NAME]));
}

#[test]
fn two_jobs_at_once_both_end_well() {
    let dir = tempfile::tempdir().unwrap();
    let dirs = vec![("a", dir.path().to_owned()); 2];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| pack(&dirs, &LENGTHS));
        }
    });
    assert_eq!(files(dir.path()), [NAME]);
    assert!(fs::read(dir.path().join(NAME)).unwrap() == twin(&LENGTHS));
}

#[test]
fn another_models_file_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let maker = Maker::create(dir.path(), NAME, "another", &[1]).unwrap();
    let checksum = maker.put(0, b"a").unwrap();
    maker.finish(&[checksum]).unwrap();
    assert_eq!(pack(&vec![("a", dir.path().to_owned()); 3], &LENGTHS).len(), 3);
    assert_eq!(files(dir.path()), [NAME]);
}

/// Runs ranks that all must end with an error, and returns the one that is told.
fn refused(dirs: &[&Path], fails: &(dyn Fn(usize, usize) -> Result<()> + Sync)) -> String {
    let told = Mutex::new(Vec::new());
    threads::run(dirs.len(), |world| {
        let wanted = Wanted {
            dir: dirs[world.rank()],
            name: NAME,
            identity: IDENTITY,
            lengths: &LENGTHS,
        };
        let mut packed = 0;
        let mut pack = |record: usize, into: &mut [u8]| {
            packed += 1;
            fill(record, into);
            fails(world.rank(), record)
        };
        let error = wanted.ensure(world, "a", &mut pack, &mut |_, _| ()).unwrap_err();
        if !error.is::<ReportedElsewhere>() {
            told.lock().unwrap().push(format!("{error:#}"));
        }
    });
    let told = told.into_inner().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    told.concat()
}

#[test]
fn an_error_ends_all_ranks() {
    let dir = tempfile::tempdir().unwrap();
    let (path, fine) = (dir.path(), |_: usize, _: usize| Ok(()));
    for (rank, record) in [(0, 0), (1, 1), (2, 2), (2, 8), (0, 6)] {
        let seen = Mutex::new(0);
        let told = refused(&[path; 3], &|own, packed| {
            *seen.lock().unwrap() += 1;
            match (own, packed) == (rank, record) {
                true => Err(anyhow!("torn tensor")),
                false => Ok(()),
            }
        });
        assert_eq!(told, "torn tensor");
        // The others stop in the same round, and nothing is left.
        assert_eq!(seen.into_inner().unwrap(), 3 * (record / 3 + 1));
        assert!(files(path).is_empty());
    }
    // Two at once: one of them tells.
    let told = refused(&[path; 3], &|own, _| {
        if own > 0 {
            Err(anyhow!("rank {own}"))
        } else {
            Ok(())
        }
    });
    assert_eq!(told, "rank 1");
    // Folders that can't be: a file in the way, and one where nobody writes, also if only one rank's is such.
    let own = tempfile::tempdir().unwrap();
    let file = own.path().join("file");
    fs::write(&file, b"").unwrap();
    for bad in [file.clone(), file.join("in"), "/sys/experts".into()] {
        let told = refused(&[path, &bad], &fine);
        assert!(
            told.starts_with(&format!("cannot make the folder {}", bad.display())),
            "{told}"
        );
    }
    let told = refused(&["/sys".as_ref(); 2], &fine);
    assert!(
        told.contains("cannot write /sys/x.experts.") && told.contains("--cache-dir"),
        "{told}"
    );
    // A file damaged on one machine of two.
    fs::write(own.path().join(NAME), b"version https://git-lfs.github.com/spec/v1\n").unwrap();
    let told = refused(&[path, path, own.path()], &fine);
    assert!(
        told.contains("no file of packed experts") && told.ends_with("it will be made again"),
        "{told}"
    );
    assert!(files(path).is_empty());
}
