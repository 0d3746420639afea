//! Files that are cut off, damaged, changed meanwhile, or no input at all.

use super::input::{gzip, refused, rows, scanned, written, zstd, LIMITS, SMALL};
use sluicegate::corpus::{refuse_overwrite, spool, WindowReader};
use std::fs;
use std::io::Write;
use std::path::Path;
use tempfile::TempDir;

#[test]
fn cut_off_and_damaged_packed_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let text: Vec<u8> = (0..200_000u32)
        .flat_map(|i| format!("{:x}\n", i.wrapping_mul(2_654_435_761)).into_bytes())
        .collect();
    for (name, packed, part) in [("a.gz", gzip(&text), "member"), ("a.zst", zstd(&text), "frame")] {
        for cut in [3, packed.len() / 2, packed.len() - 1] {
            let message = refused(&written(&dir, name, &packed[..cut]));
            assert!(
                message.contains(&format!("ends in the middle of a {part}, at decoded byte")),
                "{cut}: {message}"
            );
        }
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].fill(0x55);
        assert!(
            refused(&written(&dir, name, &damaged)).contains("decoded byte"),
            "{name} damaged"
        );
        assert!(
            refused(&written(&dir, name, b"plain text\n")).contains("begins with"),
            "{name} that is plain"
        );
        assert!(
            refused(&written(&dir, name, b"")).contains("empty file"),
            "{name} of no bytes"
        );
        let garbage = [packed.as_slice(), b"garbage after the end"].concat();
        assert!(
            refused(&written(&dir, name, &garbage)).contains("a."),
            "{name} with something after it"
        );
    }
    assert_eq!(scanned(&written(&dir, "none.gz", &gzip(b"")), LIMITS).rows, 0);
    assert_eq!(scanned(&written(&dir, "none.zst", &zstd(b"")), LIMITS).rows, 0);
}

#[test]
fn what_is_no_text_file_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    for (bytes, cure) in [
        (gzip(b"x"), "name it .gz"),
        (zstd(b"x"), "name it .zst"),
        (b"\xFF\xFEa\0".to_vec(), "iconv -f UTF-16"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
    ] {
        let message = refused(&written(&dir, "input.txt", &bytes));
        assert!(message.contains(cure) && message.contains("input.txt"), "{message}");
    }
    assert!(refused(dir.path()).contains("is a folder"));
    assert!(refused(&dir.path().join("absent.txt")).contains("absent.txt: cannot find"));
    assert!(refused(Path::new("/dev/null")).contains("no regular file"));
    let long = vec![b'a'; (64 << 20) + 1];
    let message = refused(&written(&dir, "long.txt", &[b"short\n", long.as_slice()].concat()));
    assert!(
        message.contains("begins at decoded byte 6 (row 1) has more than 64 MiB"),
        "{message}"
    );
}

#[test]
fn an_input_that_grows_is_read_as_far_as_the_scan_saw() {
    let dir = TempDir::new().unwrap();
    for (name, before, more) in [
        ("a.txt", b"one\ntwo\nthr".to_vec(), b"ee\nfour\n".to_vec()),
        ("a.gz", gzip(b"one\ntwo\nthr"), gzip(b"ee\nfour\n")),
        ("a.zst", zstd(b"one\ntwo\nthr"), zstd(b"ee\nfour\n")),
    ] {
        let path = written(&dir, name, &before);
        let scan = scanned(&path, LIMITS);
        fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&more)
            .unwrap();
        assert_eq!(
            rows(&scan).iter().map(|r| r.text.as_str()).collect::<Vec<_>>(),
            ["one", "two", "thr"],
            "{name}"
        );
    }
}

#[test]
fn an_input_that_shrank_or_changed_is_refused() {
    let dir = TempDir::new().unwrap();
    let text = b"one\ntwo\nthree\nfour\nfive\n";
    for (name, packed) in [("a.txt", text.to_vec()), ("a.gz", gzip(text)), ("a.zst", zstd(text))] {
        let path = written(&dir, name, &packed);
        let scan = scanned(&path, SMALL);
        fs::write(&path, &packed[..packed.len() - 1]).unwrap();
        let message = format!("{:#}", WindowReader::open(&scan).err().expect("shorter"));
        assert!(message.contains("the input shrank"), "{message}");
    }
    let path = written(&dir, "b.txt", text);
    let scan = scanned(&path, SMALL);
    let mut reader = WindowReader::open(&scan).unwrap();
    fs::write(&path, b"one\ntwo\nthree\nfour\nfIve\n").unwrap();
    reader.read(0).unwrap();
    let message = reader.read(1).unwrap_err().to_string();
    assert!(
        message.contains("changed since it was scanned") && message.contains("rows 3 to 4"),
        "{message}"
    );
    fs::write(&path, b"one\ntwo\nthree\n").unwrap();
    assert!(reader.read(1).unwrap_err().to_string().contains("an end before that"));
    fs::remove_file(&path).unwrap();
    assert!(WindowReader::open(&scan).is_err());
}

#[test]
fn standard_input_is_kept_whole_or_not_at_all() {
    struct Breaks(u8);
    impl std::io::Read for Breaks {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.0 += 1;
            match self.0 {
                1 => Err(std::io::ErrorKind::Interrupted.into()),
                2 => {
                    buffer[0] = b'a';
                    Ok(1)
                }
                _ => Err(std::io::ErrorKind::ConnectionReset.into()),
            }
        }
    }
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("stdin.txt");
    assert_eq!(spool(&b"one\ntwo"[..], &path).unwrap(), 7);
    assert_eq!(scanned(&path, LIMITS).rows, 2);
    let broken = dir.path().join("broken.txt");
    let message = spool(Breaks(0), &broken).unwrap_err().to_string();
    assert!(message.contains("reading failed at byte 1"), "{message}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half is left");
    assert!(spool(&b"x"[..], &dir.path().join("no/such/folder.txt")).is_err());
}

#[test]
fn the_output_may_not_be_the_input() {
    let dir = TempDir::new().unwrap();
    let input = written(&dir, "a.txt", b"x\n");
    let other = written(&dir, "b.h5", b"");
    let link = dir.path().join("link.h5");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    refuse_overwrite(&input, &other).unwrap();
    refuse_overwrite(&input, &dir.path().join("new.h5")).unwrap();
    assert!(refuse_overwrite(&input, &link)
        .unwrap_err()
        .to_string()
        .contains("is the input"));
    assert!(refuse_overwrite(&input, &input).is_err());
}
