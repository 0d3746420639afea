//! Where a group's rows come from. Work is cut into shares that groups claim; each share's rows are dealt to the
//! group's ranks in packets. Every rank of a group keeps the same books, so that dealing needs no messages.

use crate::corpus::{deal, packets, PacketLimits, Record, Scan, WindowReader};
use crate::decode::lockstep::{NO_MORE, NO_SHARE};
use crate::results::DoneRows;
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Arc;

/// Shares that a window is cut into for each group, so that groups end at about the same time.
const SHARES_A_GROUP: u64 = 8;

/// How a job's windows are cut into shares. With one group a window is a share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shares {
    windows: u64,
    a_window: u64,
}

impl Shares {
    /// Shares of a job of `windows` windows on `groups` groups.
    pub fn new(windows: usize, groups: usize) -> Shares {
        let a_window = if groups == 1 { 1 } else { groups as u64 * SHARES_A_GROUP };
        Shares {
            windows: windows as u64,
            a_window,
        }
    }

    /// All shares.
    pub fn count(&self) -> u64 {
        self.windows * self.a_window
    }
}

/// A packet's rows: places in a window's records.
struct Packet {
    records: Arc<Vec<Record>>,
    rows: Vec<u32>,
}

/// The rows that a group has claimed and not dealt yet.
pub struct Feed {
    shares: Shares,
    reader: WindowReader,
    /// Outputs a record.
    targets: u64,
    done: DoneRows,
    window: Option<(u64, Arc<Vec<Record>>)>,
    queue: VecDeque<Packet>,
    no_more: bool,
}

impl Feed {
    /// A feed without claimed rows. Outputs in `done` (numbered `record * targets + target`) are left out.
    ///
    /// # Errors
    /// When the input cannot be opened or has changed since the scan.
    pub fn new(scan: &Scan, shares: Shares, targets: usize, done: DoneRows) -> Result<Feed> {
        let reader = WindowReader::open(scan)?;
        let no_more = shares.count() == 0;
        Ok(Feed {
            shares,
            reader,
            targets: targets as u64,
            done,
            window: None,
            queue: VecDeque::new(),
            no_more,
        })
    }

    /// Whether no row is left and none will come.
    pub fn exhausted(&self) -> bool {
        self.no_more && self.queue.is_empty()
    }

    /// Rows claimed and not dealt.
    pub fn queued(&self) -> usize {
        self.queue.iter().map(|p| p.rows.len()).sum()
    }

    /// Whether all shares are claimed.
    pub fn no_more(&self) -> bool {
        self.no_more
    }

    /// Takes on a share that the group's leader has claimed ([`NO_SHARE`] for none, [`NO_MORE`] at the end).
    ///
    /// # Errors
    /// When the input cannot be read or has changed since the scan.
    pub fn add(&mut self, share: u64) -> Result<()> {
        match share {
            NO_SHARE => return Ok(()),
            NO_MORE => {
                self.no_more = true;
                return Ok(());
            }
            _ => {}
        }
        let (window, part) = (share / self.shares.a_window, share % self.shares.a_window);
        let records = match &self.window {
            Some((w, records)) if *w == window => records.clone(),
            _ => Arc::new(self.reader.read(window as usize)?),
        };
        self.window = Some((window, records.clone()));
        let left = |r: &Record| (0..self.targets).any(|t| !self.done.contains(r.index * self.targets + t));
        let lengths = records.iter().enumerate().filter(|(_, r)| left(r));
        let lengths: Vec<(u32, u32)> = lengths.map(|(i, r)| (i as u32, r.text.len() as u32)).collect();
        let all = packets(&lengths, PacketLimits::default())
            .into_iter()
            .skip(part as usize);
        for rows in all.step_by(self.shares.a_window as usize) {
            self.queue.push_back(Packet {
                records: records.clone(),
                rows,
            });
        }
        Ok(())
    }

    /// Deals packets to ranks that want rows; gives those of rank `me`, each with the targets still to do.
    pub fn deal(&mut self, wants: &[u32], me: usize) -> Vec<(Record, Vec<usize>)> {
        let dealt = deal(wants, 0..self.queue.len(), |p| self.queue[p].rows.len() as u32);
        let mut mine = Vec::new();
        for &p in &dealt[me] {
            let packet = &self.queue[p];
            for &row in &packet.rows {
                let record = &packet.records[row as usize];
                let left = (0..self.targets).filter(|t| !self.done.contains(record.index * self.targets + t));
                mine.push((record.clone(), left.map(|t| t as usize).collect()));
            }
        }
        self.queue.drain(..dealt.iter().map(Vec::len).sum::<usize>());
        mine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::corpus::{scan, Reading, WindowLimits};
    use std::io::Write;

    fn input(lines: usize) -> tempfile::NamedTempFile {
        let mut file = tempfile::Builder::new().suffix(".txt").tempfile().expect("a file");
        (0..lines).for_each(|i| writeln!(file, "{}", "word ".repeat(1 + i * 7 % 13)).expect("written"));
        file
    }

    /// Plays all groups: (record, target) of every dealt row.
    fn play(
        lines: usize,
        groups: usize,
        ranks: usize,
        targets: usize,
        done: &[std::ops::Range<u64>],
    ) -> Vec<(u64, usize)> {
        let file = input(lines);
        let scan = scan(
            &[file.path()],
            &Reading::default(),
            WindowLimits {
                lines: 10,
                bytes: 1 << 20,
            },
            &mut |_, _| (),
        )
        .expect("a scan");
        let mut kept = DoneRows::default();
        done.iter().for_each(|r| kept.insert(r.clone()).expect("new rows"));
        let shares = Shares::new(scan.windows.len(), groups);
        let feeds = || {
            (0..ranks)
                .map(|_| Feed::new(&scan, shares, targets, kept.clone()).expect("a feed"))
                .collect()
        };
        let mut all: Vec<Vec<Feed>> = (0..groups).map(|_| feeds()).collect();
        let (mut next, mut found) = (0, Vec::new());
        for round in 0.. {
            let group = round % groups;
            let share = if next < shares.count() { next } else { NO_MORE };
            next += 1;
            let wants: Vec<u32> = (0..ranks).map(|r| (r as u32 + 1) * 3).collect();
            for (rank, feed) in all[group].iter_mut().enumerate() {
                feed.add(share).expect("a share");
                for (record, left) in feed.deal(&wants, rank) {
                    assert!(!left.is_empty());
                    found.extend(left.into_iter().map(|t| (record.index, t)));
                }
            }
            assert!(
                all[group].windows(2).all(|f| f[0].queued() == f[1].queued()),
                "the same books"
            );
            if all.iter().all(|g| g[0].exhausted()) {
                break;
            }
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn every_output_is_dealt_once_but_for_those_that_are_done() {
        let wanted = |lines: u64, targets: usize, done: &[std::ops::Range<u64>]| -> Vec<(u64, usize)> {
            let all = (0..lines).flat_map(|r| (0..targets).map(move |t| (r, t)));
            all.filter(|&(r, t)| !done.iter().any(|d| d.contains(&(r * targets as u64 + t as u64))))
                .collect()
        };
        for (groups, ranks) in [(1, 1), (1, 3), (2, 1), (3, 2)] {
            for targets in [1, 2] {
                for done in [vec![], vec![3..8, 11..12], vec![0..1, 2..3]] {
                    let found = play(35, groups, ranks, targets, &done);
                    assert_eq!(
                        found,
                        wanted(35, targets, &done),
                        "{groups} groups of {ranks}, {done:?}"
                    );
                }
                assert_eq!(play(1, groups, ranks, targets, &[]).len(), targets);
                assert!(play(0, groups, ranks, targets, &[]).is_empty());
            }
        }
    }
}
