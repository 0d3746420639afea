//! Packets: rows of similar length that are handed to a rank together.

use std::cmp::Reverse;
use std::ops::Range;

/// The size of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketLimits {
    /// Rows, at least 1.
    pub rows: u32,
    /// Bytes of text; a single row may have more.
    pub bytes: u64,
}

impl Default for PacketLimits {
    fn default() -> Self {
        PacketLimits { rows: 16, bytes: 4096 }
    }
}

/// Groups the rows of a window into packets, the longest rows first.
///
/// `lengths` holds (row in the window, bytes of its text). Rows are sorted by length, descending, ties by row, and cut
/// in that order, so packets depend on the texts alone and not on how many ranks there are. Each row is in exactly one
/// packet.
pub fn packets(lengths: &[(u32, u32)], limit: PacketLimits) -> Vec<Vec<u32>> {
    let mut sorted = lengths.to_vec();
    sorted.sort_by_key(|(row, bytes)| (Reverse(*bytes), *row));
    let mut packets: Vec<Vec<u32>> = Vec::new();
    let mut filled = 0;
    for (row, bytes) in sorted {
        let bytes = u64::from(bytes);
        match packets.last_mut() {
            Some(packet) if packet.len() < limit.rows as usize && filled + bytes <= limit.bytes => {
                packet.push(row);
                filled += bytes;
            }
            _ => {
                packets.push(vec![row]);
                filled = bytes;
            }
        }
    }
    packets
}

/// Deals the packets `left` out to ranks, in order: one packet a turn, in rank order, to each rank that still wants
/// rows, until no rank does or none are left. Gives the packets of each rank.
///
/// `wants` holds the rows that each rank wants; `packet_rows` the rows of a packet. A packet is never split: a rank may
/// get up to one packet less a row above what it wants. Pure, so that every rank comes to the same result by itself.
pub fn deal(wants: &[u32], mut left: Range<usize>, packet_rows: impl Fn(usize) -> u32) -> Vec<Vec<usize>> {
    let mut dealt = vec![Vec::new(); wants.len()];
    let mut missing: Vec<u32> = wants.to_vec();
    while missing.iter().any(|m| *m > 0) {
        for (rank, missing) in missing.iter_mut().enumerate() {
            if *missing == 0 {
                continue;
            }
            let Some(packet) = left.next() else {
                return dealt;
            };
            *missing = missing.saturating_sub(packet_rows(packet));
            dealt[rank].push(packet);
        }
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uneven numbers without a dependency (Knuth's MMIX constants).
    fn numbers(seed: u64) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(seed), |x| {
            Some(
                x.wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407),
            )
        })
        .skip(1)
        .map(|x| (x >> 33) as u32)
    }

    #[test]
    fn every_row_is_in_exactly_one_packet_and_limits_hold() {
        for (seed, count) in [(1, 0), (2, 1), (3, 16), (4, 17), (5, 1000), (6, 4096)] {
            let mut number = numbers(seed);
            // Rows that miss some numbers (blank ones), many of one length, a few very long.
            let lengths: Vec<(u32, u32)> = (0..count)
                .map(|i| {
                    (
                        i * 2,
                        match number.next().unwrap() % 10 {
                            0 => 100_000,
                            1..=4 => 60,
                            _ => number.next().unwrap() % 500,
                        },
                    )
                })
                .collect();
            let limit = PacketLimits::default();
            let packets = packets(&lengths, limit);
            let bytes_of = |row: u32| lengths[row as usize / 2].1;
            let flat: Vec<u32> = packets.concat();
            let mut rows = flat.clone();
            rows.sort_unstable();
            assert_eq!(rows, lengths.iter().map(|l| l.0).collect::<Vec<_>>());
            for pair in flat.windows(2) {
                let (a, b) = (
                    (Reverse(bytes_of(pair[0])), pair[0]),
                    (Reverse(bytes_of(pair[1])), pair[1]),
                );
                assert!(a < b, "longest first, ties by row");
            }
            for (i, packet) in packets.iter().enumerate() {
                let sum: u64 = packet.iter().map(|r| u64::from(bytes_of(*r))).sum();
                assert!(!packet.is_empty() && packet.len() <= 16);
                assert!(packet.len() == 1 || sum <= limit.bytes);
                if let Some(next) = packets.get(i + 1) {
                    assert!(
                        packet.len() == 16 || sum + u64::from(bytes_of(next[0])) > limit.bytes,
                        "not cut early"
                    );
                }
            }
        }
    }

    #[test]
    fn packets_do_not_depend_on_the_order_given() {
        let lengths = [(0, 5), (1, 9), (2, 5), (3, 7)];
        let mut reversed = lengths;
        reversed.reverse();
        let limit = PacketLimits { rows: 3, bytes: 100 };
        assert_eq!(packets(&lengths, limit), vec![vec![1, 3, 0], vec![2]]);
        assert_eq!(packets(&reversed, limit), packets(&lengths, limit));
    }

    #[test]
    fn dealing_is_fair_complete_and_in_order() {
        for seed in 0..200 {
            let mut number = numbers(seed);
            let mut next = |below: u32| number.next().unwrap() % below;
            let ranks = 1 + next(64) as usize;
            let sizes: Vec<u32> = (0..next(100)).map(|_| 1 + next(16)).collect();
            let wants: Vec<u32> = (0..ranks).map(|_| next(3) * next(40)).collect();
            let from = (next(5) as usize).min(sizes.len());
            let dealt = deal(&wants, from..sizes.len(), |p| sizes[p]);
            let mut all: Vec<usize> = dealt.concat();
            assert!(dealt.iter().all(|packets| packets.is_sorted()));
            all.sort_unstable();
            assert_eq!(
                all,
                (from..from + all.len()).collect::<Vec<_>>(),
                "a prefix of what is left, each once"
            );
            let rows = |rank: usize| dealt[rank].iter().map(|p| sizes[*p]).sum::<u32>();
            for rank in 0..ranks {
                let last = dealt[rank].last().map_or(0, |p| sizes[*p]);
                assert!(
                    dealt[rank].is_empty() || rows(rank) - last < wants[rank],
                    "none to a rank that has enough"
                );
                if from + all.len() < sizes.len() {
                    assert!(rows(rank) >= wants[rank], "none is kept while a rank wants rows");
                }
                for other in 0..ranks {
                    let short = rows(rank) < wants[rank];
                    assert!(
                        !short || dealt[other].len() <= dealt[rank].len() + 1,
                        "a rank that is short: one less at most"
                    );
                }
            }
        }
    }

    #[test]
    fn one_row_for_64_ranks_and_nothing_for_anyone() {
        let dealt = deal(&[16; 64], 0..1, |_| 1);
        assert_eq!(dealt[0], vec![0]);
        assert!(dealt[1..].iter().all(Vec::is_empty));
        assert_eq!(deal(&[0, 0], 0..5, |_| 1), vec![Vec::<usize>::new(); 2]);
        assert_eq!(deal(&[], 0..5, |_| 1), Vec::<Vec<usize>>::new());
        assert_eq!(deal(&[3, 3], 2..2, |_| 1), vec![Vec::<usize>::new(); 2]);
        assert_eq!(deal(&[5, 0, 2], 3..9, |_| 2), vec![vec![3, 5, 6], vec![], vec![4]]);
    }
}
