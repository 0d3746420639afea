//! Random numbers that are a function of what they are for, not of what was drawn before: so results depend neither on
//! ranks, order and batch nor on where a job was resumed. Philox4x32-10 of Salmon et al., "Parallel Random Numbers: As
//! Easy as 1, 2, 3" (SC 2011).

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the key grows by each round: the golden ratio and the square root of 3, less 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// A number from 0 on and below 1, uniformly distributed, for token `position` of output `key`.
pub fn uniform(seed: u64, key: u64, position: u64) -> f64 {
    let halves = |x: u64| [x as u32, (x >> 32) as u32];
    let ([a, b], [c, d]) = (halves(position), halves(key));
    let [low, high, ..] = philox([a, b, c, d], halves(seed));
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Ten rounds over a counter.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let product = |i: usize| u64::from(MULTIPLIERS[i]) * u64::from(counter[2 * i]);
        let (first, second) = (product(0), product(1));
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_papers_known_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        let ones = u32::MAX;
        assert_eq!(
            philox([ones; 4], [ones; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn numbers_are_uniform_along_seeds_keys_and_positions() {
        let along: [fn(u64) -> f64; 4] = [
            |i| uniform(i, 3, 4),
            |i| uniform(7, i, 0),
            |i| uniform(7, 0, i),
            |i| uniform(7, i << 32, 1),
        ];
        for (way, number) in along.into_iter().enumerate() {
            let mut counts = [0.0f64; 16];
            let mut joint = [0.0f64; 16];
            for i in 0..16_000 {
                let (now, next) = (number(i), number(i + 1));
                assert!((0.0..1.0).contains(&now));
                counts[(now * 16.0) as usize] += 1.0;
                joint[(now * 4.0) as usize * 4 + (next * 4.0) as usize] += 1.0;
            }
            for counts in [counts, joint] {
                // 15 degrees of freedom: above 45 in one of 10 000 cases.
                let squares: f64 = counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum();
                assert!(squares < 45.0, "way {way}: {squares} for {counts:?}");
            }
        }
    }

    #[test]
    fn seed_key_and_position_count_with_all_their_bits() {
        let base = uniform(1, 2, 3);
        for bit in 0..64 {
            let b = 1 << bit;
            assert!([uniform(1 ^ b, 2, 3), uniform(1, 2 ^ b, 3), uniform(1, 2, 3 ^ b)]
                .iter()
                .all(|&u| u != base));
        }
    }
}
