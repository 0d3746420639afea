//! Who hands out shares of the work: rank 0 keeps the count; the leaders of the other groups ask it by message.

use super::feed::Shares;
use crate::comm::{u64_at, Comm};
use crate::decode::lockstep::{NO_MORE, NO_SHARE};

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
    others: std::collections::BTreeMap<usize, Progress>,
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
            let message = [progress.rows.to_le_bytes(), progress.tokens.to_le_bytes()].concat();
            self.world.send(0, &message);
            self.asked = true;
        }
        match self.asked.then(|| self.world.try_receive()).flatten() {
            Some((_, answer)) => {
                self.asked = false;
                u64_at(&answer)
            }
            None => NO_SHARE,
        }
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
            self.others.insert(
                from,
                Progress {
                    rows: u64_at(&message),
                    tokens: u64_at(&message[8..]),
                },
            );
            let share = self.take();
            self.waiting_leaders -= (share == NO_MORE) as usize;
            self.world.send(from, &share.to_le_bytes());
        }
    }

    /// Rank 0: from now on hands out nothing.
    pub fn close(&mut self) {
        self.next = self.shares.count();
    }

    /// Rank 0: whether some group may still ask.
    pub fn must_stay(&self) -> bool {
        self.waiting_leaders > 0
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
