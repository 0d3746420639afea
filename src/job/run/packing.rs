//! The file of packed experts, made once by all ranks that share its folder.

use crate::checkpoint::packed::{padded, Maker, PackedFile, Pages, Temporary};
use crate::comm::crash::fail_point;
use crate::comm::{agree, gather_texts, u64_at, Comm};
use crate::metrics::host;
use crate::metrics::memory::size;
use anyhow::{bail, Context, Result};
use std::fs;
use std::path::Path;
use std::time::Duration;

/// How often a file that is made is looked for, a second apart: a network file system may for a while remember that there
/// was none.
const LOOKS: usize = 90;

/// Writes the record of this index into a buffer of its length, all of it: what was there before is anything.
pub type Pack<'a> = dyn FnMut(usize, &mut [u8]) -> Result<()> + 'a;

/// Opens the file `name` in `dir` on every rank, making it first where it isn't; collective over all ranks, which give the
/// same `name`, `identity` and `lengths` (in bytes, of each record).
///
/// Ranks whose `dir` is one folder make one file together, be they of one machine or, on a shared file system, of several:
/// record `i` is packed by the `i mod n`-th of `n`. `progress` hears, on these ranks, how many records are packed, and of
/// how many. Where the right file is there already nothing is written; another one in its place is replaced. A rank whose
/// `pack` returns an error, for example because it was asked to stop, ends it for all within one record.
///
/// # Errors
/// One rank's error is everybody's: it has it, the others get [`ReportedElsewhere`](crate::comm::ReportedElsewhere). No
/// half-made file is left.
pub fn ensure(
    world: &dyn Comm,
    dir: &Path,
    name: &str,
    identity: &str,
    lengths: &[usize],
    pack: &mut Pack,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<PackedFile> {
    let wanted = Wanted {
        dir,
        name,
        identity,
        lengths,
    };
    wanted.ensure(world, &host::name(), pack, progress)
}

/// Makes sure, before anything is done, that the file is in `dir`, or could be made there.
///
/// # Errors
/// When it is damaged, or the folder cannot be made, cannot be written to or has too little room.
pub fn check(dir: &Path, name: &str, identity: &str, lengths: &[usize]) -> Result<()> {
    let wanted = Wanted {
        dir,
        name,
        identity,
        lengths,
    };
    match wanted.find()? {
        Some(_) => Ok(()),
        None => Maker::check(dir, name, identity, lengths),
    }
}

/// The file that is to be there.
struct Wanted<'a> {
    dir: &'a Path,
    name: &'a str,
    identity: &'a str,
    lengths: &'a [usize],
}

impl Wanted<'_> {
    fn ensure(
        &self,
        world: &dyn Comm,
        host: &str,
        pack: &mut Pack,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<PackedFile> {
        let found = agree(world, self.find())?;
        let hosts = gather_texts(world, if found.is_none() { host } else { "" });
        if hosts.iter().any(|host| !host.is_empty()) {
            let group = self.group(world, &hosts)?;
            self.make(world, group.as_deref(), pack, progress)?;
        }
        let file = found.map_or_else(|| self.look(), Ok);
        agree(world, file)
    }

    /// The file, in a folder that is there.
    fn find(&self) -> Result<Option<PackedFile>> {
        let dir = fs::create_dir_all(self.dir);
        dir.with_context(|| format!("cannot make the folder {} (--cache-dir)", self.dir.display()))?;
        self.open()
    }

    fn open(&self) -> Result<Option<PackedFile>> {
        PackedFile::open(&self.dir.join(self.name), self.identity, self.lengths)
    }

    /// The file after it was made, perhaps on another machine.
    fn look(&self) -> Result<PackedFile> {
        for look in 1..=LOOKS {
            if let Some(file) = self.open()? {
                return Ok(file);
            }
            if look < LOOKS {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
        bail!(
            "{}: packed just now, but not there; does something else write to this folder? Else give another --cache-dir",
            self.dir.join(self.name).display()
        )
    }

    /// The ranks that make one file with this one; none if it has one. `hosts` are those of the ranks that have none, empty
    /// for the others.
    ///
    /// The first of each host puts a token into its folder. Ranks that see the same first one share the folder.
    fn group(&self, world: &dyn Comm, hosts: &[String]) -> Result<Option<Box<dyn Comm>>> {
        let (rank, host) = (world.rank(), &hosts[world.rank()]);
        let lacks = !host.is_empty();
        let leads = lacks && hosts.iter().position(|other| other == host) == Some(rank);
        let token = leads.then(|| Temporary::create(self.dir, self.name)).transpose();
        let token = agree(world, token)?;
        let tokens = gather_texts(
            world,
            &token.as_ref().map_or(String::new(), |token| file_name(token.path())),
        );
        let seen = |token: &String| !token.is_empty() && self.dir.join(token).exists();
        let color = match lacks {
            true => tokens.iter().position(seen).unwrap_or(rank),
            false => world.size(),
        };
        // Also keeps the tokens until all have looked.
        let group = world.split(color);
        agree(world, Ok(()))?;
        Ok(lacks.then_some(group))
    }

    /// Makes the file with the other ranks of `group`. Ranks without one only hear of others' errors.
    fn make(
        &self,
        world: &dyn Comm,
        group: Option<&dyn Comm>,
        pack: &mut Pack,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let leads = group.is_some_and(|group| group.rank() == 0);
        let created = leads.then(|| self.create(group.map_or(1, |group| group.size())));
        let created = agree(world, created.transpose())?;
        let maker = agree(world, group.map(|group| self.join(group, created)).transpose())?;
        let (member, members) = group.map_or((0, 1), |group| (group.rank(), group.size()));
        let records = group.map_or(0, |_| self.lengths.len());
        let mine: Vec<usize> = (member..records).step_by(members).collect();
        let largest = mine.iter().map(|&record| padded(self.lengths[record])).max();
        let mut pages = Pages::zeros(largest.unwrap_or(0));
        let mut checksums = Vec::with_capacity(mine.len());
        // In step, so that an error is everybody's at once and not when the others are through.
        for round in 0..most(world, records.div_ceil(members)) {
            let packed = match (&maker, mine.get(round)) {
                (Some(maker), Some(&record)) => self.put(maker, record, &mut pages, pack).map(Some),
                _ => Ok(None),
            };
            checksums.extend(agree(world, packed)?);
            if round * members < records {
                progress(((round + 1) * members).min(records), records);
            }
        }
        agree(world, maker.as_ref().map_or(Ok(()), Maker::flush))?;
        let finished = match (group, maker) {
            (Some(group), Some(maker)) => self.finish(group, maker, &checksums),
            _ => Ok(()),
        };
        agree(world, finished)
    }

    /// Begins the file, for `members` ranks.
    fn create(&self, members: usize) -> Result<Maker> {
        fail_point("packing")?;
        let maker = Maker::create(self.dir, self.name, self.identity, self.lengths)?;
        let bytes = self.lengths.iter().map(|&length| padded(length) as u64).sum();
        let (records, bytes, path) = (self.lengths.len(), size(bytes), self.dir.join(self.name));
        log::info!(
            "packing {records} experts, {bytes}, into {}, by {members} ranks; later jobs find it there",
            path.display()
        );
        Ok(maker)
    }

    /// Takes part in what the first of the group has `created`.
    fn join(&self, group: &dyn Comm, created: Option<Maker>) -> Result<Maker> {
        let mut name = created
            .as_ref()
            .map_or(String::new(), |maker| file_name(maker.path()))
            .into_bytes();
        group.broadcast(0, &mut name);
        match created {
            Some(maker) => Ok(maker),
            None => {
                let path = self.dir.join(String::from_utf8_lossy(&name).as_ref());
                Maker::join(&path, self.identity, self.lengths)
            }
        }
    }

    /// Packs a record and puts it into the file; its checksum.
    fn put(&self, maker: &Maker, record: usize, pages: &mut Pages, pack: &mut Pack) -> Result<u32> {
        fail_point("pack")?;
        let length = self.lengths[record];
        let pages = &mut pages[..padded(length)];
        pack(record, &mut pages[..length])?;
        pages[length..].fill(0);
        maker.put(record, pages)
    }

    /// Gathers the checksums, by which the first of the group gives the file its name.
    fn finish(&self, group: &dyn Comm, maker: Maker, checksums: &[u32]) -> Result<()> {
        let members = group.size();
        let block = self.lengths.len().div_ceil(members);
        let mut bytes: Vec<u8> = checksums.iter().flat_map(|checksum| checksum.to_le_bytes()).collect();
        bytes.resize(4 * block, 0);
        let mut all = Vec::new();
        group.all_gather(&bytes, &mut all);
        if group.rank() != 0 {
            return Ok(());
        }
        let of = |record: usize| {
            let at = 4 * (record % members * block + record / members);
            u32::from_le_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]])
        };
        let checksums: Vec<u32> = (0..self.lengths.len()).map(of).collect();
        maker.finish(&checksums)
    }
}

/// The largest of all ranks' numbers (collective).
fn most(world: &dyn Comm, number: usize) -> usize {
    let mut all = Vec::new();
    world.all_gather(&(number as u64).to_le_bytes(), &mut all);
    all.chunks_exact(8).map(u64_at).max().unwrap_or(0) as usize
}

/// Temporary names are made of UTF-8.
fn file_name(path: &Path) -> String {
    path.file_name()
        .map_or(String::new(), |name| name.to_string_lossy().into_owned())
}

#[cfg(test)]
#[path = "packing_tests.rs"]
mod tests;
