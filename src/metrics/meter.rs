//! Where a rank's time goes.

use std::time::Instant;

/// What a rank does with its time. Everything between two [`Meter::lap`]s counts for one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Router product, choice of experts.
    Gate,
    /// Plans: which row goes where, sorted by expert.
    Dispatch,
    /// Exchange of the row counts.
    Sizes,
    /// Exchange of rows, there and back.
    Exchange,
    /// Waiting for experts that are not in memory.
    Copies,
    /// The experts' products.
    Experts,
    /// Weighted sums of the experts' outputs.
    Combine,
    /// Self- and cross-attention with its projections, norms included.
    Attention,
    /// Dense feed-forward layers.
    Dense,
    /// Embedding, vocabulary product, choice of tokens.
    Head,
    /// Waiting for the other ranks to agree on the next step.
    Schedule,
    /// Reading and tokenizing.
    Input,
    /// Detokenizing and writing segments.
    Output,
    /// Reading and packing weights.
    Load,
}

/// All phases with their names, in the order of the reports.
pub const PHASES: [(Phase, &str); 14] = [
    (Phase::Gate, "gate"),
    (Phase::Dispatch, "dispatch"),
    (Phase::Sizes, "sizes"),
    (Phase::Exchange, "exchange"),
    (Phase::Copies, "copies"),
    (Phase::Experts, "experts"),
    (Phase::Combine, "combine"),
    (Phase::Attention, "attention"),
    (Phase::Dense, "dense"),
    (Phase::Head, "head"),
    (Phase::Schedule, "schedule"),
    (Phase::Input, "input"),
    (Phase::Output, "output"),
    (Phase::Load, "load"),
];

/// Seconds and bytes by phase of one rank.
#[derive(Clone, Debug)]
pub struct Meter {
    last: Instant,
    seconds: [f64; PHASES.len()],
    bytes: [u64; PHASES.len()],
}

impl Default for Meter {
    fn default() -> Self {
        Meter {
            last: Instant::now(),
            seconds: [0.0; PHASES.len()],
            bytes: [0; PHASES.len()],
        }
    }
}

impl Meter {
    /// Counts the time since the last lap for `phase`, and gives it in seconds.
    pub fn lap(&mut self, phase: Phase) -> f64 {
        let now = Instant::now();
        let seconds = (now - self.last).as_secs_f64();
        self.seconds[phase as usize] += seconds;
        self.last = now;
        seconds
    }

    /// Counts the time since `start` for `phase`, and begins the next lap.
    pub fn since(&mut self, start: Instant, phase: Phase) {
        self.last = start;
        self.lap(phase);
    }

    /// Counts bytes that `phase` moved.
    pub fn moved(&mut self, phase: Phase, bytes: usize) {
        self.bytes[phase as usize] += bytes as u64;
    }

    /// Name, seconds and bytes of each phase.
    pub fn rows(&self) -> impl Iterator<Item = (&'static str, f64, u64)> + '_ {
        PHASES
            .iter()
            .map(|&(p, name)| (name, self.seconds[p as usize], self.bytes[p as usize]))
    }
}

/// CPU time of this process so far, all threads, in seconds (in hundredths); 0 where the system does not tell.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // proc(5): the name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2);
    ticks.filter_map(|t| t.parse::<u64>().ok()).sum::<u64>() as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_cpu_time() {
        let before = cpu_seconds();
        let start = Instant::now();
        while cpu_seconds() - before < 0.02 {
            assert!(start.elapsed().as_secs() < 60, "busy for a minute, yet no CPU time");
        }
    }

    #[test]
    fn phases_stand_at_their_own_index_and_laps_add_up() {
        assert!(PHASES.iter().enumerate().all(|(i, &(p, _))| p as usize == i));
        let mut meter = Meter::default();
        let start = meter.last;
        meter.lap(Phase::Gate);
        meter.lap(Phase::Experts);
        meter.moved(Phase::Exchange, 7);
        let total: f64 = meter.rows().map(|r| r.1).sum();
        assert!((total - (meter.last - start).as_secs_f64()).abs() < 1e-9);
        assert_eq!(meter.rows().find(|r| r.0 == "exchange").map(|r| r.2), Some(7));
    }
}
