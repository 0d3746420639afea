//! Who hands out shares of the work: rank 0 keeps the count; the leaders of the other groups ask it by message.

use super::feed::Shares;
use crate::comm::{signal, u64_at, Comm};
use crate::decode::lockstep::{NO_MORE, NO_SHARE};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A group leaves because one of its ranks has failed; below it, the signal that it leaves by, or 0 when it is done.
pub const FAILED: u8 = u8::MAX;

/// In a leader's message: it wants a share.
const CLAIM: u64 = u64::MAX;
/// In rank 0's answer, less the code: stop. Above it are [`NO_MORE`] and [`NO_SHARE`].
const STOP: u64 = NO_MORE - 1;

/// What a group has done so far, told to rank 0 with each claim for the progress it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Outputs finished.
    pub rows: u64,
    /// Tokens generated.
    pub tokens: u64,
}

/// A group leader's way to shares. On rank 0 it also answers the other leaders.
pub struct Desk<'a> {
    world: &'a dyn Comm,
    shares: Shares,
    /// Rank 0: the next share to hand out.
    next: u64,
    /// Rank 0: the other leaders at work.
    at_work: BTreeSet<usize>,
    /// Elsewhere: a claim is under way.
    asked: bool,
    /// Why all groups are to stop; 0 for no reason.
    stopped: u8,
    /// Rank 0: what the other groups have done, by rank of their leader.
    others: BTreeMap<usize, Progress>,
}

impl<'a> Desk<'a> {
    /// The desk of a job of `groups` groups.
    pub fn new(world: &'a dyn Comm, shares: Shares, groups: usize) -> Desk<'a> {
        let leaders = (1..groups).map(|group| group * (world.size() / groups));
        let at_work = leaders.filter(|_| world.rank() == 0).collect();
        Desk {
            world,
            shares,
            next: 0,
            at_work,
            asked: false,
            stopped: 0,
            others: Default::default(),
        }
    }

    fn take(&mut self) -> u64 {
        let share = self.next;
        self.next += 1;
        if share < self.shares.count() {
            share
        } else {
            NO_MORE
        }
    }

    /// Leaders: claims a share for the group if `hungry`; [`NO_SHARE`] if there is none (yet).
    pub fn claim(&mut self, hungry: bool, progress: Progress) -> u64 {
        if self.world.rank() == 0 {
            return if hungry { self.take() } else { NO_SHARE };
        }
        if hungry && !self.asked {
            self.tell(progress, CLAIM);
            self.asked = true;
        }
        match self.world.try_receive().map(|(_, answer)| u64_at(&answer)) {
            Some(stop) if (STOP - u64::from(FAILED)..=STOP).contains(&stop) => {
                self.stopped = (STOP - stop) as u8;
                NO_SHARE
            }
            Some(share) => {
                self.asked = false;
                share
            }
            None => NO_SHARE,
        }
    }

    fn tell(&self, progress: Progress, word: u64) {
        let message = [progress.rows, progress.tokens, word].map(u64::to_le_bytes).concat();
        self.world.send(0, &message);
    }

    /// Rank 0: answers the claims that have come in. Called between steps.
    pub fn answer(&mut self) {
        if self.world.rank() != 0 {
            return;
        }
        while !self.at_work.is_empty() {
            let Some((from, message)) = self.world.try_receive() else {
                return;
            };
            self.others.insert(
                from,
                Progress {
                    rows: u64_at(&message),
                    tokens: u64_at(&message[8..]),
                },
            );
            match u64_at(&message[16..]) {
                CLAIM => {
                    let share = self.take();
                    self.world.send(from, &share.to_le_bytes());
                }
                code => {
                    self.at_work.remove(&from);
                    if code != 0 {
                        self.stop(code as u8);
                    }
                }
            }
        }
    }

    /// Rank 0: hands out nothing any more, and tells the groups at work to stop.
    fn stop(&mut self, code: u8) {
        if self.stopped == 0 {
            self.stopped = code;
            self.next = self.shares.count();
            let word = (STOP - u64::from(code)).to_le_bytes();
            self.at_work.iter().for_each(|&leader| self.world.send(leader, &word));
        }
    }

    /// Why all groups are to stop, by another group's word: a signal, or [`FAILED`]; 0 for no reason.
    pub fn stopped(&self) -> u8 {
        self.stopped
    }

    /// The leader's group works no more: done (`code` 0), stopped by a signal, or [`FAILED`]. If it isn't done, all other
    /// groups are to stop too. Rank 0 stays until all groups have left.
    pub fn leave(&mut self, code: u8, progress: Progress) {
        if self.world.rank() != 0 {
            return self.tell(progress, u64::from(code));
        }
        if code != 0 {
            self.stop(code);
        }
        while !self.at_work.is_empty() {
            self.answer();
            if signal::received() != 0 {
                self.stop(signal::received());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Rank 0: what the other groups had done when they last asked.
    pub fn others(&self) -> Progress {
        let sum = |field: fn(&Progress) -> u64| self.others.values().map(field).sum();
        Progress {
            rows: sum(|p| p.rows),
            tokens: sum(|p| p.tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::threads;

    /// Three groups of two ranks share `windows` windows; group `first` leaves at once if `code` isn't 0. Gives each
    /// leader's shares and the code it left with.
    fn play(windows: usize, first: usize, code: u8) -> Vec<(Vec<u64>, u8)> {
        let ended = threads::run(6, |world| {
            if world.rank() % 2 == 1 {
                return None;
            }
            let mut desk = Desk::new(world, Shares::new(windows, 3), 3);
            let leaves = code != 0 && world.rank() / 2 == first;
            let (mut shares, mut own) = (Vec::new(), if leaves { code } else { 0 });
            while own == 0 {
                desk.answer();
                own = desk.stopped();
                match desk.claim(true, Progress::default()) {
                    NO_MORE => break,
                    NO_SHARE => std::thread::yield_now(),
                    share => {
                        shares.push(share);
                        // Work takes time, in which the others come to speak.
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            }
            desk.leave(own, Progress::default());
            Some((shares, own))
        });
        ended.into_iter().flatten().collect()
    }

    #[test]
    fn every_share_is_handed_out_once() {
        let ended = play(50, 0, 0);
        let mut all: Vec<u64> = ended.iter().flat_map(|(shares, _)| shares.clone()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..Shares::new(50, 3).count()).collect::<Vec<_>>());
        assert!(ended.iter().all(|(_, code)| *code == 0));
    }

    #[test]
    fn a_group_that_stops_or_fails_stops_all_and_nobody_waits_for_ever() {
        for first in 0..3 {
            for code in [15, FAILED] {
                // More work than there is time for: only the word of the first one ends it.
                let ended = play(1 << 40, first, code);
                assert!(
                    ended.iter().all(|(_, own)| *own == code),
                    "group {first} left with {code}"
                );
            }
        }
    }
}
