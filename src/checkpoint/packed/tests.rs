//! Files that are made, read, damaged, left half made.

use super::direct::{Access, Direct};
use super::header::{encode, Layout};
use super::*;
use anyhow::Result;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const NAME: &str = "x.experts";
const IDENTITY: &str = "model 1f3a, float32, layout 1";
/// Empty first, last and between; one byte, less than a page, one page, many; more records than one page of header lists.
fn lengths() -> Vec<usize> {
    let mut lengths = vec![0, 1, 4095, 4096, 4097, 0, 100_000, 8192];
    lengths.extend((0..400).map(|i| 13 * i));
    lengths.push(0);
    lengths
}

fn bytes(record: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251 + record * 31 + 1) as u8).collect()
}

fn make(dir: &Path) -> PathBuf {
    let maker = Maker::create(dir, NAME, IDENTITY, &lengths()).unwrap();
    let all = lengths().into_iter().enumerate();
    let checksums: Vec<u32> = all.map(|(r, n)| maker.put(r, &bytes(r, n)).unwrap()).collect();
    maker.finish(&checksums).unwrap();
    dir.join(NAME)
}

fn open(path: &Path) -> Result<Option<PackedFile>> {
    PackedFile::open(path, IDENTITY, &lengths())
}

/// Reads everything and compares it with what was written.
fn check(file: &PackedFile) {
    for (record, &length) in lengths().iter().enumerate() {
        let mut into = Pages::zeros(padded(length));
        into.fill(0xff);
        file.read(record, &mut into).unwrap();
        assert_eq!(into[..length], bytes(record, length), "record {record}");
        assert!(into[length..].iter().all(|&byte| byte == 0));
    }
}

fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    names.map(|n| n.into_string().unwrap()).collect()
}

#[test]
fn what_is_put_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    assert_eq!(files(dir.path()), [NAME]);
    let file = open(&path).unwrap().unwrap();
    assert_eq!((lengths().len(), lengths()[4]), (409, 4097));
    check(&file);
    // Several threads, and a buffer that starts anywhere.
    std::thread::scope(|scope| {
        for record in [3, 4, 6, 6] {
            let (file, length) = (&file, lengths()[record]);
            scope.spawn(move || {
                let mut pages = Pages::zeros(padded(length) + ALIGN);
                file.read(record, &mut pages[8..8 + padded(length)]).unwrap();
                assert_eq!(pages[8..8 + length], bytes(record, length));
            });
        }
    });
    let mut short = Pages::zeros(4096);
    assert!(file.read(4, &mut short).is_err() && file.read(409, &mut short).is_err());
}

#[test]
fn a_file_may_hold_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(NAME);
    for lengths in [vec![], vec![0, 0]] {
        let maker = Maker::create(dir.path(), NAME, "", &lengths).unwrap();
        maker.finish(&vec![0; lengths.len()]).unwrap();
        let file = PackedFile::open(&path, "", &lengths).unwrap().unwrap();
        (0..lengths.len()).for_each(|record| file.read(record, &mut []).unwrap());
    }
}

#[test]
fn the_page_cache_does_instead() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    let file = PackedFile::open_by(&path, IDENTITY, &lengths(), Access::Cached);
    let mut file = file.unwrap().unwrap();
    assert!(!file.is_direct());
    check(&file);
    // Some file systems refuse at the first transfer only.
    let mut refused = open(&path).unwrap().unwrap();
    refused.swap(Direct::of(File::open(&path).unwrap(), Some(refusing())));
    assert!(refused.is_direct());
    check(&refused);
    assert!(!refused.is_direct());
    // A maker's too; and with any other error there is no second try.
    let maker = Maker::create_in(dir.path(), NAME, IDENTITY, &lengths(), |_| None, Access::Cached).unwrap();
    let all = lengths().into_iter().enumerate();
    let checksums: Vec<u32> = all.map(|(r, n)| maker.put(r, &bytes(r, n)).unwrap()).collect();
    maker.finish(&checksums).unwrap();
    check(&open(&path).unwrap().unwrap());
    file.swap(Direct::of(
        File::open(&path).unwrap(),
        Some(File::open(dir.path()).unwrap()),
    ));
    let error = file.read(3, &mut Pages::zeros(4096)).unwrap_err().to_string();
    assert!(error.contains("Is a directory"), "{error}");
}

/// A file whose every read is an invalid argument.
fn refusing() -> File {
    File::open("/proc/self/ns/user").unwrap()
}

#[test]
fn damage_is_refused_with_its_cure() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    let whole = fs::read(&path).unwrap();
    let layout = Layout::new(IDENTITY, &lengths()).unwrap();
    let header = layout.starts[0] as usize;
    assert_eq!((header, whole.len() as u64), (8192, layout.file()));
    let refused = |what: &str, bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let error = open(&path).map(|_| ()).expect_err(what).to_string();
        let named = error.starts_with(path.to_str().unwrap()) && error.ends_with("delete it: it will be made again");
        assert!(named && !error.contains('\n'), "{what}: {error}");
        error
    };
    for at in (0..48).chain((48..header).step_by(97)).chain([header - 1]) {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        refused(&format!("byte {at}"), &damaged);
    }
    for len in [
        1,
        7,
        23,
        24,
        100,
        4096,
        header - 1,
        header,
        header + 1,
        whole.len() - 4096,
        whole.len() - 1,
    ] {
        let error = refused(&format!("{len} bytes"), &whole[..len]);
        assert!(
            error.contains("torn") && error.contains(&format!("{len} bytes")),
            "{error}"
        );
    }
    for more in [1, 4096] {
        let error = refused("appended", &[&whole[..], &vec![0; more]].concat());
        assert!(error.contains("added to"), "{error}");
    }
    assert!(refused("empty", b"").contains("0 bytes"));
    assert!(refused("zeros", &vec![0; whole.len()]).contains("no file of packed experts"));
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    assert!(refused("a pointer", pointer).contains("version "));
    let mut huge = whole.clone();
    huge[16..24].copy_from_slice(&(1u64 << 63).to_le_bytes());
    assert!(refused("a huge header", &huge).contains("claims 9223372036854775808 bytes"));
    fs::remove_file(&path).unwrap();
    assert!(open(&path).unwrap().is_none());
    fs::create_dir(&path).unwrap();
    let error = open(&path).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("remove it"), "{error}");
}

/// Whatever stands in a header whose checksum holds: the file is damaged, or a sound one of other records.
#[test]
fn no_number_of_a_header_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    let whole = fs::read(&path).unwrap();
    let first = 40 + IDENTITY.len();
    for at in [24, 32, first, first + 12 * 6, first + 12 * 408] {
        let kept = u64::from_le_bytes(whole[at..at + 8].try_into().unwrap());
        let near = [kept + 1, kept.wrapping_sub(1), kept + 5000];
        let far = [
            1 << 40,
            1 << 63,
            (1 << 63) - 1,
            u64::MAX,
            u64::MAX / 12,
            u64::MAX - 4000,
        ];
        for number in near.into_iter().chain(far) {
            let mut damaged = whole.clone();
            damaged[at..at + 8].copy_from_slice(&number.to_le_bytes());
            sign(&mut damaged[..8192]);
            fs::write(&path, &damaged).unwrap();
            match open(&path) {
                Ok(found) => assert!(found.is_none() && near.contains(&number), "{number} at {at}"),
                Err(error) => assert!(error.to_string().contains("delete it"), "{error}"),
            }
        }
    }
}

/// Gives a changed header the checksum that fits.
fn sign(header: &mut [u8]) {
    header[12..16].fill(0);
    let checksum = crc32fast::hash(header);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn another_file_is_as_good_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    let mut fewer = lengths();
    fewer.pop();
    let mut other = lengths();
    other[1] = 2;
    assert!(PackedFile::open(&path, "model 2", &lengths()).unwrap().is_none());
    assert!(PackedFile::open(&path, IDENTITY, &fewer).unwrap().is_none());
    assert!(PackedFile::open(&path, IDENTITY, &other).unwrap().is_none());
    let mut newer = fs::read(&path).unwrap();
    newer[8..12].copy_from_slice(&2u32.to_le_bytes());
    sign(&mut newer[..8192]);
    fs::write(&path, &newer).unwrap();
    assert!(open(&path).unwrap().is_none());
    // It is replaced.
    make(dir.path());
    check(&open(&path).unwrap().unwrap());
}

#[test]
fn records_fail_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let path = make(dir.path());
    let whole = fs::read(&path).unwrap();
    let layout = Layout::new(IDENTITY, &lengths()).unwrap();
    for (record, within) in [(1, 0), (1, 4095), (6, 50_000), (6, 102_399)] {
        let at = layout.starts[record];
        let mut damaged = whole.clone();
        damaged[at as usize + within] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let file = open(&path).unwrap().unwrap();
        let mut into = Pages::zeros(padded(lengths()[record]));
        let error = file.read(record, &mut into).unwrap_err().to_string();
        let says = [
            path.to_str().unwrap(),
            &format!("from byte {at} on"),
            "checksum",
            "delete it",
            "goes on from here",
        ];
        assert!(says.iter().all(|part| error.contains(part)), "{error}");
        file.read(3, &mut Pages::zeros(4096)).unwrap();
    }
    // Cut while it is open.
    fs::write(&path, &whole).unwrap();
    let file = open(&path).unwrap().unwrap();
    let at = layout.starts[6];
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(at + 50_000)
        .unwrap();
    let error = file.read(6, &mut Pages::zeros(102_400)).unwrap_err().to_string();
    assert!(
        error.contains(&format!("cut to {} of its", at + 50_000)) && error.contains("goes on"),
        "{error}"
    );
    // Replaced while it is open: the old one is read on.
    make(dir.path());
    let file = open(&path).unwrap().unwrap();
    make(dir.path());
    check(&file);
    // Unreadable: this process has no memory at the addresses that are offsets here.
    let mut file = open(&path).unwrap().unwrap();
    file.swap(Direct::of(File::open("/proc/self/mem").unwrap(), None));
    let error = file.read(3, &mut Pages::zeros(4096)).unwrap_err().to_string();
    assert!(
        error.contains("Input/output error") && error.contains("goes on"),
        "{error}"
    );
}

#[test]
fn several_make_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let first = Maker::create(dir.path(), NAME, IDENTITY, &lengths()).unwrap();
    let (path, lengths) = (first.path().to_owned(), lengths());
    let put = |maker: &Maker, member: usize| -> Vec<(usize, u32)> {
        let mine = (0..lengths.len()).filter(|record| record % 3 == member);
        // One hands in padded buffers.
        let put = |record: usize| {
            let mut pages = Pages::zeros(padded(lengths[record]));
            pages[..lengths[record]].copy_from_slice(&bytes(record, lengths[record]));
            maker
                .put(record, if member == 1 { &pages } else { &pages[..lengths[record]] })
                .unwrap()
        };
        let put: Vec<_> = mine.map(|record| (record, put(record))).collect();
        maker.flush().unwrap();
        put
    };
    let mut checksums = vec![0; lengths.len()];
    std::thread::scope(|scope| {
        let (path, lengths, put) = (&path, &lengths, &put);
        let join = |member| scope.spawn(move || put(&Maker::join(path, IDENTITY, lengths).unwrap(), member));
        let others = [join(1), join(2)];
        let all = others.into_iter().flat_map(|h| h.join().unwrap()).chain(put(&first, 0));
        all.for_each(|(record, checksum)| checksums[record] = checksum);
    });
    assert!(!dir.path().join(NAME).exists());
    let joined = Maker::join(&path, IDENTITY, &lengths).unwrap();
    assert!(joined.finish(&checksums).is_err() && path.exists());
    first.finish(&checksums).unwrap();
    assert_eq!(files(dir.path()), [NAME]);
    check(&open(&dir.path().join(NAME)).unwrap().unwrap());
}

#[test]
fn makers_that_fail_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let create = || Maker::create(dir.path(), NAME, IDENTITY, &lengths()).unwrap();
    let maker = create();
    assert!(maker.put(1, b"ab").is_err() && maker.put(500, b"").is_err());
    assert!(maker.put(1, &[1; 4096]).is_err(), "padding of ones");
    maker.put(1, b"a").unwrap();
    assert!(Maker::join(maker.path(), IDENTITY, &[1, 2]).is_err(), "another size");
    drop(maker);
    assert!(files(dir.path()).is_empty());
    assert!(create().finish(&[0; 3]).is_err() && files(dir.path()).is_empty());
    fs::create_dir(dir.path().join(NAME)).unwrap();
    assert!(create().finish(&vec![0; 409]).is_err());
    assert_eq!(files(dir.path()), [NAME]);
    assert!(Maker::create(&dir.path().join("none"), NAME, IDENTITY, &[1]).is_err());
    // Nobody writes there, not even root.
    let error = Maker::create("/sys".as_ref(), NAME, IDENTITY, &[1]).unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.starts_with("cannot write /sys/x.experts.") && error.contains("another --cache-dir"),
        "{error}"
    );
    assert!(Maker::join(&dir.path().join("none"), IDENTITY, &[1]).is_err());
}

/// One that is killed can't clean up: the next one does.
#[test]
fn a_killed_makers_file_goes_with_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let dead = Maker::create(dir.path(), NAME, IDENTITY, &lengths()).unwrap();
    dead.put(1, b"a").unwrap();
    let left = dir
        .path()
        .join(format!("{NAME}.{}.4194000-0.tmp", crate::metrics::host::name()));
    fs::copy(dead.path(), &left).unwrap();
    drop(dead);
    assert!(open(&left).is_err() && open(&dir.path().join(NAME)).unwrap().is_none());
    let (first, second) = (
        Maker::create(dir.path(), NAME, IDENTITY, &lengths()).unwrap(),
        Maker::create(dir.path(), NAME, IDENTITY, &lengths()).unwrap(),
    );
    assert!(!left.exists() && first.path().exists() && second.path().exists());
}

#[test]
fn room_is_asked_for_first() {
    let dir = tempfile::tempdir().unwrap();
    let (lengths, direct) = ([1 << 30, 5], Access::Direct);
    let create = |free| Maker::create_in(dir.path(), NAME, IDENTITY, &lengths, |_| free, direct);
    let error = create(Some(3 << 20)).unwrap_err().to_string();
    assert!(
        error.contains("takes 1.0 GiB, but only 3.0 MiB are free") && error.contains("--cache-dir"),
        "{error}"
    );
    assert!(error.starts_with(dir.path().to_str().unwrap()) && files(dir.path()).is_empty());
    let error = Maker::create(dir.path(), NAME, IDENTITY, &[1 << 60])
        .unwrap_err()
        .to_string();
    assert!(error.contains("free; make room"), "{error}");
    // Where the figure isn't known the system refuses.
    let create = Maker::create_in(dir.path(), NAME, IDENTITY, &[1 << 60], |_| None, direct);
    assert!(format!("{:#}", create.unwrap_err()).contains("less is free; make room") && files(dir.path()).is_empty());
    assert!(Maker::create(dir.path(), NAME, IDENTITY, &[usize::MAX, usize::MAX]).is_err());
}

#[test]
fn names_tell_models_and_types_apart() {
    let sha = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    assert_eq!(name(sha, "bfloat16"), "0123456789abcdef-bfloat16-v1.experts");
    assert!(identity(sha, "bfloat16").contains(sha) && name("ab", "x") == "ab-x-v1.experts");
}

/// The header as the table in the module's documentation has it, put together by hand.
#[test]
fn the_header_is_as_documented() {
    let layout = Layout::new("id", &[3, 0, 4096]).unwrap();
    assert_eq!(layout.starts, [4096, 8192, 8192, 12_288]);
    let mut expected = b"SLUICEXP\x01\0\0\0????\0\x10\0\0\0\0\0\0".to_vec();
    expected.extend(b"\x02\0\0\0\0\0\0\0\x03\0\0\0\0\0\0\0id");
    expected.extend(b"\x03\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x10\0\0\0\0\0\0\x09\0\0\0");
    expected.resize(4096, 0);
    sign(&mut expected);
    assert_eq!(encode("id", &layout, &[7, 0, 9]), expected);
}
