//! Ranks as threads of one process: the slow, obvious twin of [`super::mpi`], for tests without a launcher.

use super::{Comm, Part};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How long a rank waits for another before the test is called hung.
const PATIENCE: Duration = Duration::from_secs(120);

/// (group, channel, from, to): messages between the same pair on the same channel never overtake each other.
type Address = (u64, u8, usize, usize);

#[derive(Default)]
struct Post {
    boxes: Mutex<HashMap<Address, VecDeque<Vec<u8>>>>,
    arrived: Condvar,
}

/// One rank of an in-process group.
pub struct ThreadComm {
    post: Arc<Post>,
    group: u64,
    rank: usize,
    members: Vec<usize>,
}

const COLLECTIVE: u8 = 0;
const MESSAGE: u8 = 1;

/// Runs `work` on `ranks` threads, each with its own rank of one group, and returns what they returned, in rank order.
///
/// Panics if a rank panics.
pub fn run<T: Send>(ranks: usize, work: impl Fn(&dyn Comm) -> T + Sync) -> Vec<T> {
    let post = Arc::new(Post::default());
    std::thread::scope(|scope| {
        let start = |rank| {
            let comm = ThreadComm {
                post: post.clone(),
                group: 0,
                rank,
                members: (0..ranks).collect(),
            };
            let work = &work;
            scope.spawn(move || work(&comm))
        };
        let handles: Vec<_> = (0..ranks).map(start).collect();
        handles
            .into_iter()
            .map(|h| h.join().expect("a rank panicked"))
            .collect()
    })
}

impl ThreadComm {
    fn put(&self, channel: u8, to: usize, data: Vec<u8>) {
        let address = (self.group, channel, self.members[self.rank], self.members[to]);
        self.post
            .boxes
            .lock()
            .expect("no poison")
            .entry(address)
            .or_default()
            .push_back(data);
        self.post.arrived.notify_all();
    }

    fn take(&self, from: usize) -> Vec<u8> {
        let address = (self.group, COLLECTIVE, self.members[from], self.members[self.rank]);
        let mut boxes = self.post.boxes.lock().expect("no poison");
        loop {
            if let Some(data) = boxes.get_mut(&address).and_then(VecDeque::pop_front) {
                return data;
            }
            let (back, timeout) = self.post.arrived.wait_timeout(boxes, PATIENCE).expect("no poison");
            assert!(
                !timeout.timed_out(),
                "rank {} waited for rank {from} in vain",
                self.rank
            );
            boxes = back;
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.size()).filter(|&r| r != self.rank)
    }
}

impl Comm for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn all_gather(&self, mine: &[u8], all: &mut Vec<u8>) {
        self.others().for_each(|r| self.put(COLLECTIVE, r, mine.to_vec()));
        all.clear();
        for r in 0..self.size() {
            let block = if r == self.rank { mine.to_vec() } else { self.take(r) };
            assert_eq!(block.len(), mine.len(), "blocks of equal length");
            all.extend(block);
        }
    }

    fn broadcast(&self, root: usize, data: &mut Vec<u8>) {
        if self.rank == root {
            self.others().for_each(|r| self.put(COLLECTIVE, r, data.clone()));
        } else {
            *data = self.take(root);
        }
    }

    fn barrier(&self) {
        self.all_gather(&[], &mut Vec::new());
    }

    fn all_to_all(&self, send: &[u32], recv: &mut [u32], meanwhile: &mut dyn FnMut()) {
        let n = send.len() / self.size();
        let row = |r: usize| r * n..(r + 1) * n;
        self.others()
            .for_each(|r| self.put(COLLECTIVE, r, bytemuck::cast_slice(&send[row(r)]).to_vec()));
        meanwhile();
        recv[row(self.rank)].copy_from_slice(&send[row(self.rank)]);
        for r in self.others() {
            recv[row(r)].copy_from_slice(&bytemuck::pod_collect_to_vec(&self.take(r)));
        }
    }

    fn exchange(&self, parts: &mut [Part<'_>]) {
        for part in parts.iter() {
            part.check(self.size(), self.rank);
            let mut at = 0;
            for r in 0..self.size() {
                let bytes = part.send_rows[r] as usize * part.row_bytes;
                if bytes > 0 {
                    self.put(COLLECTIVE, r, part.send[at..at + bytes].to_vec());
                }
                at += bytes;
            }
        }
        for part in parts.iter_mut() {
            let mut at = 0;
            for r in 0..self.size() {
                let bytes = part.recv_rows[r] as usize * part.row_bytes;
                if bytes > 0 {
                    part.recv[at..at + bytes].copy_from_slice(&self.take(r));
                }
                at += bytes;
            }
        }
    }

    fn send(&self, to: usize, data: &[u8]) {
        self.put(MESSAGE, to, data.to_vec());
    }

    fn try_receive(&self) -> Option<(usize, Vec<u8>)> {
        let mut boxes = self.post.boxes.lock().expect("no poison");
        (0..self.size()).find_map(|r| {
            let address = (self.group, MESSAGE, self.members[r], self.members[self.rank]);
            boxes
                .get_mut(&address)
                .and_then(VecDeque::pop_front)
                .map(|data| (r, data))
        })
    }

    fn split(&self, color: usize) -> Box<dyn Comm> {
        let mut colors = Vec::new();
        self.all_gather(&(color as u64).to_le_bytes(), &mut colors);
        let same = |r: &usize| super::u64_at(&colors[r * 8..]) == color as u64;
        let inside: Vec<usize> = (0..self.size()).filter(same).collect();
        let rank = inside.iter().position(|&r| r == self.rank).expect("own color");
        let members = inside.iter().map(|&r| self.members[r]).collect();
        let group = self
            .group
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .wrapping_add(color as u64 + 1);
        Box::new(ThreadComm {
            post: self.post.clone(),
            group,
            rank,
            members,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_arrive_where_they_belong_even_when_uneven_or_none() {
        run(3, |comm| {
            let me = comm.rank();
            // Rank r sends r + to rows of two bytes [me, to] to every other rank; rank 2 sends nothing to rank 0.
            let rows = |from: usize, to: usize| {
                if from == to || (from, to) == (2, 0) {
                    0
                } else {
                    (from + to) as u32
                }
            };
            let send_rows: Vec<u32> = (0..3).map(|to| rows(me, to)).collect();
            let mut recv_rows = vec![0; 3];
            comm.all_to_all(&send_rows, &mut recv_rows, &mut || ());
            assert_eq!(recv_rows, (0..3).map(|from| rows(from, me)).collect::<Vec<_>>());
            let fill = |from: usize, to: usize| [from as u8, to as u8].repeat(rows(from, to) as usize);
            let send: Vec<u8> = (0..3).flat_map(|to| fill(me, to)).collect();
            let mut recv = vec![0; recv_rows.iter().sum::<u32>() as usize * 2];
            let mut part = [Part {
                send: &send,
                send_rows: &send_rows,
                recv: &mut recv,
                recv_rows: &recv_rows,
                row_bytes: 2,
            }];
            comm.exchange(&mut part);
            assert_eq!(recv, (0..3).flat_map(|from| fill(from, me)).collect::<Vec<u8>>());
        });
    }

    #[test]
    fn groups_messages_and_shared_failures() {
        run(4, |comm| {
            let group = comm.split(comm.rank() % 2);
            assert_eq!((group.size(), group.rank()), (2, comm.rank() / 2));
            let mut all = Vec::new();
            group.all_gather(&[comm.rank() as u8], &mut all);
            assert_eq!(all, [comm.rank() as u8 % 2, comm.rank() as u8 % 2 + 2]);
            assert_eq!(super::super::gather_texts(comm, &"x".repeat(comm.rank()))[3], "xxx");
            comm.send(0, &[comm.rank() as u8]);
            comm.barrier();
            if comm.rank() == 0 {
                assert_eq!((0..4).filter_map(|_| comm.try_receive()).count(), 4);
                assert!(comm.try_receive().is_none());
            }
            let mine = if comm.rank() >= 2 {
                Err(anyhow::anyhow!("rank {}", comm.rank()))
            } else {
                Ok(())
            };
            let error = super::super::agree(comm, mine)
                .expect_err("two ranks failed")
                .to_string();
            assert_eq!(error == "rank 2", comm.rank() == 2);
            // A rank that has only been told of it doesn't speak for the one that knows.
            let mine: anyhow::Result<()> = match comm.rank() {
                3 => Err(anyhow::anyhow!("rank 3")),
                _ => Err(super::super::ReportedElsewhere.into()),
            };
            let error = super::super::agree(comm, mine).expect_err("all failed").to_string();
            assert_eq!(error == "rank 3", comm.rank() == 3);
        });
    }
}
