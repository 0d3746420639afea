//! Who hands out shares of the work: rank 0 keeps the count; the leaders of the other groups ask it by message.

use super::feed::Shares;
use crate::comm::{u64_at, Comm};
use crate::decode::lockstep::{NO_MORE, NO_SHARE};
use std::collections::BTreeMap;
use std::time::Duration;

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
    /// Rank 0: leaders that have not been told yet that there is no more.
    waiting_leaders: usize,
    /// Elsewhere: a claim is under way.
    asked: bool,
    /// Rank 0: what the other groups have done, by rank of their leader.
    others: BTreeMap<usize, Progress>,
}

impl<'a> Desk<'a> {
    /// The desk of a job of `groups` groups.
    pub fn new(world: &'a dyn Comm, shares: Shares, groups: usize) -> Desk<'a> {
        let waiting_leaders = if world.rank() == 0 { groups - 1 } else { 0 };
        Desk {
            world,
            shares,
            next: 0,
            waiting_leaders,
            asked: false,
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
            self.ask(progress, false);
        }
        match self.asked.then(|| self.world.try_receive()).flatten() {
            Some((_, answer)) => {
                self.asked = false;
                u64_at(&answer)
            }
            None => NO_SHARE,
        }
    }

    fn ask(&mut self, progress: Progress, stopping: bool) {
        let message = [progress.rows, progress.tokens, stopping as u64]
            .map(u64::to_le_bytes)
            .concat();
        self.world.send(0, &message);
        self.asked = true;
    }

    /// Rank 0: answers the claims that have come in. Called between steps.
    pub fn answer(&mut self) {
        if self.world.rank() != 0 {
            return;
        }
        while self.waiting_leaders > 0 {
            let Some((from, message)) = self.world.try_receive() else {
                return;
            };
            let (rows, tokens) = (u64_at(&message), u64_at(&message[8..]));
            self.others.insert(from, Progress { rows, tokens });
            if u64_at(&message[16..]) != 0 {
                self.next = self.shares.count();
            }
            let share = self.take();
            self.waiting_leaders -= (share == NO_MORE) as usize;
            self.world.send(from, &share.to_le_bytes());
        }
    }

    /// The group has ended. A leader whose group was `stopped` has all groups stop at their next claim. Rank 0 stays
    /// until every leader has been told that there is no more.
    pub fn close(mut self, progress: Progress, stopped: bool) {
        if self.world.rank() == 0 && stopped {
            self.next = self.shares.count();
        }
        let mut told = self.world.rank() == 0 || !stopped;
        while self.waiting_leaders > 0 || !told {
            self.answer();
            if !told && !self.asked {
                self.ask(progress, true);
            }
            told = told || self.claim(false, progress) == NO_MORE;
            std::thread::sleep(Duration::from_micros(500));
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

    /// Every leader claims until there is no more; leader `stopping` gives up after its first share.
    fn play(leaders: usize, windows: usize, stopping: Option<usize>) -> Vec<u64> {
        let shares = Shares::new(windows, leaders);
        let taken = threads::run(leaders, |world| {
            let mut desk = Desk::new(world, shares, leaders);
            let mut mine = Vec::new();
            loop {
                desk.answer();
                match desk.claim(
                    true,
                    Progress {
                        rows: mine.len() as u64,
                        tokens: 0,
                    },
                ) {
                    NO_SHARE => std::thread::yield_now(),
                    NO_MORE => break,
                    share => {
                        mine.push(share);
                        // Work takes time: leaders get to speak.
                        std::thread::sleep(Duration::from_micros(20));
                    }
                }
                if stopping == Some(world.rank()) && !mine.is_empty() {
                    desk.close(Progress::default(), true);
                    return mine;
                }
            }
            desk.close(Progress::default(), false);
            mine
        });
        taken.concat()
    }

    #[test]
    fn every_share_is_handed_out_once_and_everybody_leaves() {
        for (leaders, windows) in [(1, 0), (1, 3), (2, 0), (2, 1), (3, 4)] {
            let mut taken = play(leaders, windows, None);
            taken.sort_unstable();
            assert_eq!(taken, (0..Shares::new(windows, leaders).count()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_group_that_stops_stops_the_others() {
        for stopping in 0..3 {
            let mut taken = play(3, 1000, Some(stopping));
            assert!(
                taken.len() < 20_000,
                "leader {stopping} stops, the others go on to the end: {}",
                taken.len()
            );
            taken.sort_unstable();
            taken.windows(2).for_each(|w| assert!(w[0] < w[1]));
        }
    }
}
