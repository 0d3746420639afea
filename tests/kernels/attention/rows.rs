//! Plain attention: heads and rows of every number and length.
use super::{runs, Case};
use sluicegate::device::{Cpu, KeyRows};

#[test]
fn heads_of_every_length_and_rows_of_every_number() {
    let spans = [(0, 70), (3, 1), (10, 17), (0, 0), (69, 1), (1, 33), (2, 4), (5, 64)];
    let rows = spans.map(|(first, n)| KeyRows::Range(first, n));
    let shapes = [
        (5, 1),
        (1, 7),
        (2, 16),
        (3, 20),
        (4, 64),
        (6, 64),
        (2, 80),
        (3, 128),
        (1, 256),
    ];
    for (heads, head_dim) in shapes {
        Case::new(heads, head_dim, rows.len(), 70).check(&rows, &[0, 1, 2, 3, 4, 5, 6, 7]);
    }
}

#[test]
fn queries_with_rows_in_an_order_of_their_own_beside_those_that_share() {
    let tables: Vec<Vec<u32>> = (0..100)
        .map(|i| (0..i % 60).map(|j| (j * 11 + i) % 70).collect())
        .collect();
    let mut rows: Vec<KeyRows> = (0..100).map(|i| KeyRows::Range(i / 40, 40)).collect();
    rows.extend(tables.iter().map(|table| KeyRows::Table(table)));
    let case = Case::new(8, 64, rows.len(), 70);
    case.check(&rows, &[0, 39, 40, 100, 150, 199]);
    assert!(case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &[]).is_empty());
}

#[test]
fn every_number_of_keys_and_queries_in_a_tile() {
    for (heads, head_dim) in [(4, 64), (2, 128), (3, 20), (1, 8), (2, 72), (1, 100)] {
        let all: Vec<(usize, usize, usize)> = (1..=70).map(|n| (4 + n * 7 % 30, 70 - n, n)).collect();
        let rows = runs(&all);
        let case = Case::new(heads, head_dim, rows.len(), 70);
        let looked_at: Vec<usize> = (0..rows.len()).step_by(13).collect();
        case.check(&rows, &looked_at);
    }
}

#[test]
fn long_inputs_come_in_blocks_of_keys() {
    for (heads, head_dim, keys) in [(2, 64, 300), (1, 128, 257), (2, 20, 511), (1, 64, 3000), (1, 12, 513)] {
        // A tile's worth and more over all rows, some over fewer, and one query of its own.
        let rows = runs(&[(37, 0, keys), (6, 1, keys - 1), (1, 1, 256), (2, 0, keys)]);
        let case = Case::new(heads, head_dim, rows.len(), keys);
        case.check(&rows, &[0, 15, 16, 36, 37, 43, 44, 45]);
    }
}

#[test]
fn one_long_input_among_short_ones_and_none() {
    let mut all = vec![(9, 3, 5); 20];
    all.insert(7, (900, 0, 900));
    all.insert(3, (8, 10, 1));
    let mut rows = runs(&all);
    let case = Case::new(4, 64, rows.len() + 12, 900);
    let empty = KeyRows::Range(0, 0);
    rows.splice(100..100, vec![empty; 12]);
    let want = case.run(&Cpu::new(1).unwrap(), &case.kv, 0, &rows);
    assert!(
        want[100 * 256..112 * 256].iter().all(|x| x.to_bits() == 0),
        "no keys give zeros"
    );
    let looked_at: Vec<usize> = (0..rows.len()).filter(|i| !rows[*i].is_empty()).step_by(61).collect();
    case.check(&rows, &looked_at);
}

#[test]
fn beams_share_a_source_and_not_their_own_rows() {
    for beams in [1, 2, 4, 5, 8] {
        let tables: Vec<Vec<u32>> = (0..12 * beams as u32)
            .map(|i| (0..20 + i % 7).map(|j| j * 13 % 90 + i % 3).collect())
            .collect();
        let own: Vec<KeyRows> = tables.iter().map(|t| KeyRows::Table(t)).collect();
        let cross: Vec<(usize, usize, usize)> = (0..12).map(|s| (beams, s, 30 + s * 5)).collect();
        let case = Case::new(6, 64, 12 * beams, 100);
        case.check(&own, &[0, beams, 12 * beams - 1]);
        case.check(&runs(&cross), &[0, beams, 12 * beams - 1]);
    }
}

#[test]
fn scores_of_minus_infinity_count_for_nothing_and_a_nan_stays() {
    for queries in [1, 40] {
        let mut case = Case::new(1, 64, queries, 600);
        case.q.fill(1.0);
        let rows = runs(&[(queries, 0, 600)]);
        // The first block and some more; their values are 0.
        for r in 0..300 {
            case.wide[r * 131] = f32::NEG_INFINITY;
            case.wide[r * 131 + 64..][..64].fill(0.0);
        }
        let all = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &rows);
        let rest = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &runs(&[(queries, 300, 300)]));
        let near = |(a, b): (&f32, &f32)| (a - b).abs() < 1e-6;
        assert!(all.iter().zip(&rest).all(near), "{queries} queries");
        (0..600).for_each(|r| case.wide[r * 131] = f32::NEG_INFINITY);
        let none = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &rows);
        assert!(none.iter().all(|x| *x == 0.0), "{queries} queries, nothing to look at");
        case.wide[131 * 450] = f32::NAN;
        let damaged = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &rows);
        assert!(damaged.iter().all(|x| x.is_nan()), "{queries} queries, a NaN");
    }
}
