//! Attention beside a slow twin in double precision, and beside itself: to the last bit the same for a query alone, in a
//! tile with others, over rows named by a range or one by one, over float32 or the same values in bfloat16, on any number
//! of threads and on every instruction set.
use crate::bits;
use half::bf16;
use sluicegate::device::{Attend, Cpu, Element, Isa, KeyRows};

const SCALE: f32 = 0.3;

/// Numbers without a pattern that bfloat16 holds.
fn values(n: usize, seed: u64) -> Vec<bf16> {
    crate::values(n, seed).into_iter().map(bf16::from_f32).collect()
}

fn widened(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// Queries and cache rows, keys then values and a few elements of something else.
struct Case {
    heads: usize,
    head_dim: usize,
    q: Vec<f32>,
    kv: Vec<bf16>,
    wide: Vec<f32>,
}

impl Case {
    fn new(heads: usize, head_dim: usize, queries: usize, keys: usize) -> Case {
        let width = heads * head_dim;
        let kv = values(keys * (2 * width + 3), 7);
        Case {
            heads,
            head_dim,
            q: widened(&values(queries * (width + 5), 8)),
            wide: widened(&kv),
            kv,
        }
    }

    fn width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn run<T: Element>(&self, cpu: &Cpu, kv: &[T], first: usize, rows: &[KeyRows]) -> Vec<f32> {
        let width = self.width();
        let mut out = vec![f32::NAN; rows.len() * width];
        cpu.attend(Attend {
            q: &self.q[first * (width + 5)..],
            q_stride: width + 5,
            k: kv,
            v: &kv[width..],
            kv_stride: 2 * width + 3,
            heads: self.heads,
            head_dim: self.head_dim,
            scale: SCALE,
            rows,
            out: &mut out,
        });
        out
    }

    fn twin(&self, query: usize, rows: &[KeyRows]) -> Vec<f64> {
        let (d, width) = (self.head_dim, self.width());
        let list: Vec<usize> = match rows[query] {
            KeyRows::Range(first, n) => (first..first + n).collect(),
            KeyRows::Table(table) => table.iter().map(|r| *r as usize).collect(),
        };
        let mut out = Vec::new();
        for head in 0..self.heads {
            let q = &self.q[query * (width + 5) + head * d..][..d];
            let key = |r: usize| &self.wide[r * (2 * width + 3) + head * d..][..d];
            let dot = |r: usize| q.iter().zip(key(r)).map(|(q, k)| f64::from(*q) * f64::from(*k));
            let scores: Vec<f64> = list.iter().map(|r| f64::from(SCALE) * dot(*r).sum::<f64>()).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum = p.iter().sum::<f64>();
            let value = |r: usize, i: usize| f64::from(self.wide[r * (2 * width + 3) + width + head * d + i]);
            out.extend((0..d).map(|i| list.iter().zip(&p).map(|(r, p)| p / sum * value(*r, i)).sum::<f64>()));
        }
        out
    }

    /// Everything that must be equal is, and near the twin for each of `looked_at`.
    fn check(&self, rows: &[KeyRows], looked_at: &[usize]) {
        let (width, name) = (self.width(), format!("{} x {}", self.heads, self.head_dim));
        let want = self.run(&Cpu::new(1).unwrap(), &self.wide, 0, rows);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            let (single, half) = (self.run(&cpu, &self.wide, 0, rows), self.run(&cpu, &self.kv, 0, rows));
            assert!(bits(&single) == bits(&want), "{name}, {}", isa.name());
            assert!(bits(&half) == bits(&want), "{name} in bfloat16, {}", isa.name());
        }
        for threads in [2, 3] {
            let cpu = Cpu::new(threads).unwrap();
            assert!(
                bits(&self.run(&cpu, &self.wide, 0, rows)) == bits(&want),
                "{name}, {threads} threads"
            );
        }
        for &query in looked_at {
            let ours = &want[query * width..][..width];
            for (ours, twin) in ours.iter().zip(self.twin(query, rows)) {
                let near = (f64::from(*ours) - twin).abs() < 1e-5;
                assert!(near, "{name}, query {query}: {ours}, expected {twin}");
            }
            self.check_alone(query, &rows[query], ours);
        }
    }

    /// The query by itself, its rows as a range and one by one.
    fn check_alone(&self, query: usize, rows: &KeyRows, want: &[f32]) {
        let cpu = Cpu::new(1).unwrap();
        let alone = self.run(&cpu, &self.wide, query, &[*rows]);
        assert!(bits(&alone) == bits(want), "query {query} alone");
        if let KeyRows::Range(first, n) = *rows {
            let table: Vec<u32> = (first..first + n).map(|r| r as u32).collect();
            let tabled = self.run(&cpu, &self.kv, query, &[KeyRows::Table(&table)]);
            assert!(bits(&tabled) == bits(want), "query {query} with its rows one by one");
        }
    }
}

/// Runs of queries over the same rows, as (queries, first row, rows).
fn runs(runs: &[(usize, usize, usize)]) -> Vec<KeyRows<'static>> {
    let each = |&(queries, first, n): &(usize, usize, usize)| vec![KeyRows::Range(first, n); queries];
    runs.iter().flat_map(each).collect()
}

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

#[test]
fn rows_are_stored_rounded_wherever_they_go() {
    // So much that it is worth several threads.
    let (width, stride) = (453, 500);
    let from: Vec<f32> = (0..200 * stride).map(|i| (i as f32).sin()).collect();
    // In an order of their own, with gaps; and the first row once more.
    let mut rows: Vec<u32> = (0..199).map(|i| i * 83 % 401).collect();
    rows.push(rows[0]);
    for threads in [1, 3] {
        let cpu = Cpu::new(threads).unwrap();
        let (mut single, mut half) = (vec![7.0f32; 401 * width], vec![bf16::ONE; 401 * width]);
        cpu.store_rows(&from, stride, width, &rows, &mut single);
        cpu.store_rows(&from, stride, width, &rows, &mut half);
        let (mut want, mut rounded) = (vec![7.0f32; 401 * width], vec![bf16::ONE; 401 * width]);
        for (i, row) in rows.iter().enumerate() {
            for j in 0..width {
                let x = from[i * stride + j];
                want[*row as usize * width + j] = x;
                rounded[*row as usize * width + j] = bf16::from_f32(x);
            }
        }
        assert!(single == want && half == rounded, "{threads} threads");
        cpu.store_rows(&[], stride, width, &[], &mut single);
        assert!(single == want);
    }
}

#[test]
#[should_panic(expected = "row 5 is beyond the end")]
fn rows_beyond_the_cache_are_refused() {
    Cpu::new(1)
        .unwrap()
        .store_rows(&[0.0; 4], 2, 2, &[1, 4], &mut [0.0f32; 8]);
}
