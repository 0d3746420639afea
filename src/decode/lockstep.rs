//! What the ranks of a group tell each other before every step, and what all of them then do. Pure.

/// One rank's state, sent to all others of its group before each step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Rows it would take on.
    pub wants: u32,
    /// Source tokens that wait to be encoded here.
    pub waiting: u32,
    /// Source tokens it has room for, all in all.
    pub budget: u32,
    /// Sentences being decoded here.
    pub active: u32,
    /// It has failed and will say why.
    pub failed: bool,
    /// It was asked to stop (a signal's number, 0 for none).
    pub stop: u8,
    /// From the group's leader: share of the work that the group has claimed, [`NO_SHARE`] for none, [`NO_MORE`] when
    /// there are no others.
    pub share: u64,
    /// Outputs it has finished.
    pub rows: u64,
    /// Tokens it has generated.
    pub tokens: u64,
}

/// No share claimed in this step.
pub const NO_SHARE: u64 = u64::MAX;
/// All shares are claimed.
pub const NO_MORE: u64 = u64::MAX - 1;

/// Bytes of a report on the wire.
pub const REPORT_BYTES: usize = 48;

impl Report {
    /// The report as bytes.
    pub fn to_bytes(self) -> [u8; REPORT_BYTES] {
        let mut bytes = [0; REPORT_BYTES];
        for (i, number) in [self.wants, self.waiting, self.budget, self.active]
            .into_iter()
            .enumerate()
        {
            bytes[4 * i..4 * i + 4].copy_from_slice(&number.to_le_bytes());
        }
        bytes[16] = self.failed as u8;
        bytes[17] = self.stop;
        for (i, number) in [self.share, self.rows, self.tokens].into_iter().enumerate() {
            bytes[24 + 8 * i..32 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The report that `bytes` hold.
    pub fn from_bytes(bytes: &[u8]) -> Report {
        let number = |i: usize| u32::from_le_bytes(bytes[4 * i..4 * i + 4].try_into().expect("four bytes"));
        Report {
            wants: number(0),
            waiting: number(1),
            budget: number(2),
            active: number(3),
            failed: bytes[16] != 0,
            stop: bytes[17],
            share: crate::comm::u64_at(&bytes[24..]),
            rows: crate::comm::u64_at(&bytes[32..]),
            tokens: crate::comm::u64_at(&bytes[40..]),
        }
    }
}

/// Source tokens that a rank reads in one go: what they are turned into on the way (queries, keys, values, experts'
/// hidden rows) stays in the third-level cache, while experts still see many rows.
pub const ENCODE_TOKENS: usize = 2048;
/// The same where experts come from below, once for each portion.
pub const ENCODE_TOKENS_BUFFERED: usize = 8192;

/// What the whole group does next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Next {
    /// A rank has failed: the lowest one that did.
    Fail(usize),
    /// Stop, by this signal: finish the segment in hand and leave.
    Stop(u8),
    /// Encode what waits (ranks with nothing take part with nothing), then decode a step if anyone has sentences.
    Work {
        /// Portions in which what waits is encoded first; 0 where encoding is put off.
        encode: usize,
    },
    /// Nothing to compute yet, but work may still come.
    Idle,
    /// All done.
    Done,
}

/// How a rank reads what waits; the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Portions {
    /// Tokens that are read in one go.
    pub tokens: usize,
    /// Portions that are read in a step at most.
    pub most: usize,
    /// Reading is put off until one part in so many of the group's room waits.
    pub part: usize,
}

/// The part of the room that reading waits for: much less, and few rows share the experts; much more, and room lies idle.
pub const PART: usize = 8;
/// The same where experts come from below: each time, they have to come anew.
pub const PART_BUFFERED: usize = 2;

/// Derives the group's next step from all ranks' reports; `exhausted` once no more rows can come. Every rank gets the same
/// answer from the same reports.
///
/// Encoding is put off until a part of the group's room waits, so that it runs on many rows at once, unless nobody could
/// decode meanwhile or nothing more will come.
pub fn next(reports: &[Report], portions: Portions, exhausted: bool) -> Next {
    if let Some(rank) = reports.iter().position(|r| r.failed) {
        return Next::Fail(rank);
    }
    if let Some(stop) = reports.iter().map(|r| r.stop).find(|&s| s != 0) {
        return Next::Stop(stop);
    }
    let sum = |field: fn(&Report) -> u32| reports.iter().map(|r| u64::from(field(r))).sum::<u64>();
    let (waiting, active) = (sum(|r| r.waiting), sum(|r| r.active));
    match (waiting, active) {
        (0, 0) if exhausted => Next::Done,
        (0, 0) => Next::Idle,
        _ => {
            let due = waiting > 0 && (active == 0 || exhausted || portions.part as u64 * waiting >= sum(|r| r.budget));
            let most = reports.iter().map(|r| r.waiting).max().unwrap_or(0) as usize;
            Next::Work {
                encode: if due {
                    most.div_ceil(portions.tokens).min(portions.most)
                } else {
                    0
                },
            }
        }
    }
}

/// How many windows of these `lengths`, from the first on, are read in one go: until there are `enough` tokens, and never
/// more than `most` of them, but for a window that is longer by itself.
pub fn run(lengths: impl Iterator<Item = usize>, enough: usize, most: usize) -> usize {
    let (mut windows, mut tokens) = (0, 0);
    for length in lengths {
        if windows > 0 && (tokens >= enough || tokens + length > most) {
            break;
        }
        tokens += length;
        windows += 1;
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that waits is encoded in a step.
    const ENCODING: Portions = Portions {
        tokens: ENCODE_TOKENS,
        most: usize::MAX,
        part: PART,
    };

    #[test]
    fn reports_survive_the_wire() {
        let plain = Report {
            wants: 1,
            waiting: 2,
            budget: 3,
            active: u32::MAX,
            failed: true,
            ..Report::default()
        };
        let report = Report {
            stop: 15,
            share: 1 << 40,
            rows: 5,
            tokens: u64::MAX,
            ..plain
        };
        assert_eq!(Report::from_bytes(&report.to_bytes()), report);
        assert_eq!(Report::from_bytes(&Report::default().to_bytes()), Report::default());
    }

    #[test]
    fn all_ranks_do_the_same() {
        let idle = Report {
            budget: 100,
            ..Report::default()
        };
        let waits = |n| Report { waiting: n, ..idle };
        let busy = Report { active: 3, ..idle };
        assert_eq!(next(&[idle, idle], ENCODING, true), Next::Done);
        assert_eq!(next(&[idle, idle], ENCODING, false), Next::Idle);
        assert_eq!(
            next(&[idle, waits(1)], ENCODING, false),
            Next::Work { encode: 1 },
            "nobody could decode meanwhile"
        );
        assert_eq!(next(&[busy, waits(10)], ENCODING, false), Next::Work { encode: 0 });
        assert_eq!(next(&[busy, waits(50)], ENCODING, false), Next::Work { encode: 1 });
        let patient = Portions {
            part: PART_BUFFERED,
            ..ENCODING
        };
        assert_eq!(next(&[busy, waits(50)], patient, false), Next::Work { encode: 0 });
        assert_eq!(next(&[busy, waits(100)], patient, false), Next::Work { encode: 1 });
        assert_eq!(next(&[busy, waits(10)], ENCODING, true), Next::Work { encode: 1 });
        assert_eq!(next(&[busy, idle], ENCODING, true), Next::Work { encode: 0 });
        let full = waits(2 * ENCODE_TOKENS as u32 + 1);
        assert_eq!(
            next(&[waits(1), full], ENCODING, false),
            Next::Work { encode: 3 },
            "as often as the rank with most needs"
        );
        let failed = Report { failed: true, ..busy };
        assert_eq!(
            next(&[Report { stop: 15, ..busy }, failed], ENCODING, false),
            Next::Fail(1)
        );
        assert_eq!(
            next(&[busy, Report { stop: 10, ..idle }], ENCODING, false),
            Next::Stop(10)
        );
    }

    #[test]
    fn runs_cover_all_windows_in_order_and_never_exceed_what_is_planned() {
        let uneven: Vec<usize> = (0..100).map(|i| 1 + i * 7 % 13).collect();
        let skewed: Vec<usize> = (0..60).map(|i| if i % 17 == 3 { 1000 } else { 1 + i % 5 }).collect();
        for lengths in [
            &uneven[..],
            &skewed,
            &[333, 1000],
            &[1000, 333],
            &[5],
            &[],
            &[1, 1, 90, 1],
        ] {
            let longest = lengths.iter().copied().max().unwrap_or(0);
            for portion in [1, 7, 100, 2048] {
                for most in [portion, portion + longest] {
                    for calls in 1..6 {
                        let (mut read, mut left) = (0, calls);
                        while read < lengths.len() {
                            let waiting: usize = lengths[read..].iter().sum();
                            let enough = waiting.div_ceil(left).min(portion);
                            let windows = run(lengths[read..].iter().copied(), enough, most);
                            let tokens: usize = lengths[read..read + windows].iter().sum();
                            assert!(windows == 1 || tokens <= most, "{lengths:?} by {portion}: {tokens}");
                            assert!(windows > 0 && tokens - lengths[read + windows - 1] < enough);
                            read += windows;
                            left = if left == 1 { calls } else { left - 1 };
                        }
                        assert_eq!(read, lengths.len());
                    }
                }
            }
        }
        // Runs of a step are about equal.
        let all: usize = uneven.iter().sum();
        assert!(run(uneven.iter().copied(), all.div_ceil(2), all).abs_diff(50) < 5);
        assert_eq!(run([].into_iter(), 5, 5), 0);
    }
}
