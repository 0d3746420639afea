//! The CPU kernels beside their slow twins: equal to the last bit for any number of rows, grouping, thread count and, in
//! float32, instruction set.
use std::ops::Range;

use half::{bf16, f16};
use sluicegate::device::{
    dequantise, log_sum_exp, quantise, top_k, Attend, Cpu, Dtype, Epilogue, Group, Isa, KeyRows, Linear, Part, Source,
    Tops,
};

const INPUTS: [usize; 5] = [1, 7, 64, 1000, 1101];
const OUTPUTS: [usize; 5] = [1, 31, 33, 100, 260];
const ROWS: [usize; 8] = [0, 1, 2, 3, 5, 12, 13, 40];

/// One device of one thread for each instruction set of this machine.
fn devices() -> Vec<Cpu> {
    Isa::available()
        .into_iter()
        .map(|isa| Cpu::with_isa(1, isa).unwrap())
        .collect()
}

/// Numbers without a pattern, from -1 to 1.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn pack(k: usize, w: &[f32], bias: Option<&[f32]>, dtype: Dtype) -> Linear {
    Linear::pack(
        k,
        &[Part {
            weights: Source::F32(w),
            bias,
        }],
        dtype,
    )
    .unwrap()
}

/// The promised chain: `acc = fma(x[k], w[k], acc)` from zero, then the bias.
fn twin(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize) -> Vec<f32> {
    let chain = |x: &[f32], w: &[f32]| x.iter().zip(w).fold(0.0, |acc, (x, w)| x.mul_add(*w, acc));
    let sum = |x, (j, w)| chain(x, w) + bias.map_or(0.0, |b| b[j]);
    x.chunks_exact(k)
        .flat_map(|x| w.chunks_exact(k).enumerate().map(move |w| sum(x, w)))
        .collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn float32_products_are_the_chain_on_every_instruction_set() {
    let devices = devices();
    for k in INPUTS {
        for n in OUTPUTS {
            let (x, w, b) = (values(40 * k, 1), values(n * k, 2), values(n, 3));
            for bias in [None, Some(&b[..])] {
                let (linear, want) = (pack(k, &w, bias, Dtype::F32), twin(&x, &w, bias, k));
                for rows in ROWS {
                    for cpu in &devices {
                        let mut out = vec![f32::NAN; rows * n];
                        cpu.linear(&x[..rows * k], &linear, Epilogue::Store, &mut out);
                        assert!(
                            bits(&out) == bits(&want[..rows * n]),
                            "{rows} x {k} x {n}, {}",
                            cpu.isa().name()
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn epilogues_add_and_cut_after_the_bias() {
    for cpu in devices() {
        for (k, n) in [(7, 33), (1101, 100)] {
            let (x, w, b, before) = (values(13 * k, 4), values(n * k, 5), values(n, 6), values(13 * n, 7));
            let (linear, sums) = (pack(k, &w, Some(&b), Dtype::F32), twin(&x, &w, Some(&b), k));
            let (mut added, mut cut) = (before.clone(), before.clone());
            cpu.linear(&x, &linear, Epilogue::Add, &mut added);
            cpu.linear(&x, &linear, Epilogue::Relu, &mut cut);
            let want: Vec<f32> = before.iter().zip(&sums).map(|(b, s)| b + s).collect();
            assert_eq!(added, want, "{}", cpu.isa().name());
            assert_eq!(
                cut,
                sums.iter().map(|s| s.max(0.0)).collect::<Vec<_>>(),
                "{}",
                cpu.isa().name()
            );
            assert!(cut.contains(&0.0) && cut.iter().any(|c| *c > 0.0));
        }
    }
}

#[test]
fn a_nan_passes_through_relu() {
    for cpu in devices() {
        let linear = pack(2, &[f32::NAN, 1.0, 1.0, -1.0], None, Dtype::F32);
        let mut out = [0.0; 2];
        cpu.linear(&[1.0, 2.0], &linear, Epilogue::Relu, &mut out);
        assert!(out[0].is_nan() && out[1] == 0.0, "{}: {out:?}", cpu.isa().name());
    }
}

#[test]
fn bfloat16_products_are_near_and_do_not_depend_on_the_rows() {
    let round = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
    for cpu in devices() {
        for k in INPUTS {
            for n in OUTPUTS {
                let (x, w, b) = (values(40 * k, 8), values(n * k, 9), values(n, 10));
                let (linear, want) = (
                    pack(k, &w, Some(&b), Dtype::Bf16),
                    twin(&round(&x), &round(&w), Some(&b), k),
                );
                let mut all = vec![0.0; 40 * n];
                cpu.linear(&x, &linear, Epilogue::Store, &mut all);
                if cpu.isa() != (Isa::Avx512 { bf16: true }) {
                    assert!(bits(&all) == bits(&want), "{k} x {n}, {}", cpu.isa().name());
                }
                let allowed = 1e-2 * (k as f32).sqrt();
                assert!(all.iter().zip(&want).all(|(a, w)| (a - w).abs() < allowed), "{k} x {n}");
                for rows in ROWS {
                    let mut out = vec![0.0; rows * n];
                    cpu.linear(&x[..rows * k], &linear, Epilogue::Store, &mut out);
                    assert!(
                        bits(&out) == bits(&all[..rows * n]),
                        "{rows} x {k} x {n}, {}",
                        cpu.isa().name()
                    );
                }
            }
        }
    }
}

#[test]
fn parts_of_any_type_are_stacked() {
    let cpu = Cpu::new(1).unwrap();
    let (k, x) = (65, values(3 * 65, 11));
    let halves: Vec<f16> = values(20 * k, 12).into_iter().map(f16::from_f32).collect();
    let brains: Vec<bf16> = values(30 * k, 13).into_iter().map(bf16::from_f32).collect();
    let (singles, bias) = (values(40 * k, 14), values(30, 15));
    let parts = [
        Part {
            weights: Source::F16(&halves),
            bias: None,
        },
        Part {
            weights: Source::Bf16(&brains),
            bias: Some(&bias),
        },
        Part {
            weights: Source::F32(&singles),
            bias: None,
        },
    ];
    let w: Vec<f32> = halves
        .iter()
        .map(|x| x.to_f32())
        .chain(brains.iter().map(|x| x.to_f32()))
        .chain(singles.iter().copied())
        .collect();
    let b = [vec![0.0; 20], bias.clone(), vec![0.0; 40]].concat();
    let linear = Linear::pack(k, &parts, Dtype::F32).unwrap();
    let mut out = vec![0.0; 3 * 90];
    cpu.linear(&x, &linear, Epilogue::Store, &mut out);
    assert_eq!(out, twin(&x, &w, Some(&b), k));
    let mut row = vec![0.0; k];
    for r in [0, 19, 20, 49, 50, 89] {
        linear.embedding(r, &mut row);
        assert_eq!(row, w[r * k..(r + 1) * k], "row {r}");
    }
}

#[test]
fn groups_and_threads_change_no_bit() {
    let (k, n) = (1101, 260);
    let weights: Vec<Vec<f32>> = (0..6).map(|e| values(n * k, 20 + e)).collect();
    let x = values(90 * k, 30);
    // Even, skewed with empty experts, everything to one, and experts out of order.
    let cuts: [[Range<usize>; 6]; 4] = [
        [0..50, 50..100, 100..150, 150..200, 200..250, 250..300],
        [0..0, 0..1, 1..1, 1..290, 290..290, 290..300],
        [0..0, 0..0, 0..300, 300..300, 300..300, 300..300],
        [7..20, 0..7, 297..300, 20..20, 33..297, 20..33],
    ];
    let source: Vec<u32> = (0..300).map(|r| r * 37 % 90).collect();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        let packed: Vec<Linear> = weights.iter().map(|w| pack(k, w, Some(&w[..n]), dtype)).collect();
        let one = Cpu::new(1).unwrap();
        let alone: Vec<Vec<f32>> = packed
            .iter()
            .map(|linear| {
                let mut out = vec![0.0; 90 * n];
                for (x, out) in x.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
                    one.linear(x, linear, Epilogue::Relu, out);
                }
                out
            })
            .collect();
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(threads).unwrap();
            for cut in &cuts {
                let groups: Vec<Group> = packed
                    .iter()
                    .zip(cut)
                    .map(|(weights, rows)| Group {
                        weights,
                        rows: rows.clone(),
                    })
                    .collect();
                let mut out = vec![f32::NAN; 300 * n];
                cpu.grouped_linear(&x, Some(&source), &groups, Epilogue::Relu, &mut out);
                for (e, rows) in cut.iter().enumerate() {
                    for r in rows.clone() {
                        let want = &alone[e][source[r] as usize * n..][..n];
                        assert!(
                            bits(&out[r * n..][..n]) == bits(want),
                            "row {r}, {threads} threads, {cut:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "groups share rows")]
fn groups_that_share_rows_are_refused() {
    let linear = pack(1, &[1.0], None, Dtype::F32);
    let groups = [
        Group {
            weights: &linear,
            rows: 0..3,
        },
        Group {
            weights: &linear,
            rows: 2..4,
        },
    ];
    Cpu::new(1)
        .unwrap()
        .grouped_linear(&[0.0; 4], None, &groups, Epilogue::Store, &mut [0.0; 4]);
}

#[test]
fn rows_outside_of_the_groups_stay_as_they_are() {
    let linear = pack(1, &[2.0], None, Dtype::F32);
    let mut out = [5.0; 4];
    let groups = [Group {
        weights: &linear,
        rows: 1..2,
    }];
    Cpu::new(1)
        .unwrap()
        .grouped_linear(&[3.0; 4], None, &groups, Epilogue::Store, &mut out);
    assert_eq!(out, [5.0, 6.0, 5.0, 5.0]);
}

#[test]
fn norms_equal_double_precision_on_every_instruction_set() {
    for d in [1, 5, 16, 33, 1024] {
        let (x, w, b) = (values(9 * d, 40), values(d, 41), values(d, 42));
        let mut first: Option<[Vec<f32>; 2]> = None;
        for cpu in devices() {
            let (mut layer, mut rms) = (vec![0.0; 9 * d], vec![0.0; 9 * d]);
            cpu.layer_norm(&x, &w, &b, 1e-5, &mut layer);
            cpu.rms_norm(&x, &w, 1e-5, &mut rms);
            for (r, x) in x.chunks_exact(d).enumerate() {
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / d as f64;
                let square = |mean: f64| x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / d as f64;
                for i in 0..d {
                    let (x, w, b) = (f64::from(x[i]), f64::from(w[i]), f64::from(b[i]));
                    let near = |ours: f32, want: f64| (f64::from(ours) - want).abs() < 1e-5;
                    assert!(
                        near(layer[r * d + i], (x - mean) / (square(mean) + 1e-5).sqrt() * w + b),
                        "d {d}"
                    );
                    assert!(near(rms[r * d + i], x / (square(0.0) + 1e-5).sqrt() * w), "d {d}");
                }
            }
            let ours = [layer, rms];
            assert_eq!(
                first.get_or_insert_with(|| ours.clone()),
                &ours,
                "d {d}, {}",
                cpu.isa().name()
            );
        }
    }
}

/// Keys, values and queries of an attention over 70 rows, of which query i sees those of `rows[i]`.
struct Case {
    heads: usize,
    head_dim: usize,
    q: Vec<f32>,
    kv: Vec<f32>,
}

impl Case {
    fn new(heads: usize, head_dim: usize, queries: usize) -> Case {
        let width = heads * head_dim;
        Case {
            heads,
            head_dim,
            q: values(queries * width * 3, 50),
            kv: values(70 * (2 * width + 5), 51),
        }
    }

    fn run(&self, cpu: &Cpu, rows: &[KeyRows]) -> Vec<f32> {
        let width = self.heads * self.head_dim;
        let mut out = vec![f32::NAN; rows.len() * width];
        cpu.attend(Attend {
            q: &self.q,
            q_stride: 3 * width,
            k: &self.kv,
            v: &self.kv[width..],
            kv_stride: 2 * width + 5,
            heads: self.heads,
            head_dim: self.head_dim,
            scale: 0.7,
            rows,
            out: &mut out,
        });
        out
    }

    fn twin(&self, query: usize, rows: &[usize]) -> Vec<f64> {
        let (d, width) = (self.head_dim, self.heads * self.head_dim);
        let mut out = Vec::new();
        for head in 0..self.heads {
            let at = |r: usize| r * (2 * width + 5) + head * d;
            let q = &self.q[query * 3 * width + head * d..][..d];
            let dot = |r: usize| {
                (0..d)
                    .map(|i| f64::from(q[i]) * f64::from(self.kv[at(r) + i]))
                    .sum::<f64>()
            };
            let p: Vec<f64> = rows.iter().map(|r| (f64::from(0.7_f32) * dot(*r)).exp()).collect();
            let sum = p.iter().sum::<f64>();
            out.extend((0..d).map(|i| {
                rows.iter()
                    .zip(&p)
                    .map(|(r, p)| p / sum * f64::from(self.kv[at(*r) + width + i]))
                    .sum::<f64>()
            }));
        }
        out
    }
}

#[test]
fn attention_equals_double_precision_whatever_names_the_rows() {
    let spans = [(0, 70), (3, 1), (10, 17), (0, 0), (69, 1), (1, 33), (2, 4), (5, 64)];
    for (heads, head_dim) in [(1, 7), (2, 16), (3, 20), (4, 64), (6, 64), (2, 80), (3, 128)] {
        let case = Case::new(heads, head_dim, spans.len());
        let tables: Vec<Vec<u32>> = spans
            .iter()
            .map(|(first, count)| (*first..first + count).collect())
            .collect();
        let by_table: Vec<KeyRows> = tables.iter().map(|t| KeyRows::Table(t)).collect();
        let by_range: Vec<KeyRows> = spans
            .iter()
            .map(|(f, n)| KeyRows::Range(*f as usize, *n as usize))
            .collect();
        let mut first = None;
        for cpu in devices() {
            let out = case.run(&cpu, &by_range);
            assert!(
                bits(&out) == bits(&case.run(&cpu, &by_table)),
                "{heads} x {head_dim}, {}",
                cpu.isa().name()
            );
            for (i, (row, count)) in spans.iter().enumerate() {
                let rows: Vec<usize> = (*row as usize..(row + count) as usize).collect();
                let width = heads * head_dim;
                for (ours, want) in out[i * width..][..width].iter().zip(case.twin(i, &rows)) {
                    let want = if rows.is_empty() { 0.0 } else { want };
                    assert!(
                        (f64::from(*ours) - want).abs() < 1e-5,
                        "{heads} x {head_dim}: {ours}, {want}"
                    );
                }
            }
            assert!(
                first.get_or_insert_with(|| bits(&out)) == &bits(&out),
                "{}",
                cpu.isa().name()
            );
        }
    }
}

#[test]
fn attention_does_not_depend_on_company_order_or_threads() {
    let case = Case::new(8, 64, 200);
    // A prefill, where neighbours share rows; and rows of caches in an order of their own.
    let tables: Vec<Vec<u32>> = (0..200)
        .map(|i| (0..i % 60).map(|j| (j * 11 + i) % 70).collect())
        .collect();
    let rows: Vec<KeyRows> = tables
        .iter()
        .enumerate()
        .map(|(i, t)| {
            if i < 100 {
                KeyRows::Range(i / 40, 40)
            } else {
                KeyRows::Table(t)
            }
        })
        .collect();
    let one = Cpu::new(1).unwrap();
    let want = case.run(&one, &rows);
    for threads in [2, 3] {
        assert!(
            bits(&case.run(&Cpu::new(threads).unwrap(), &rows)) == bits(&want),
            "{threads} threads"
        );
    }
    for i in [0, 39, 40, 150, 199] {
        let single = Case {
            q: case.q[i * 512 * 3..][..512].to_vec(),
            kv: case.kv.clone(),
            ..case
        };
        assert!(
            bits(&single.run(&one, &rows[i..=i])) == bits(&want[i * 512..][..512]),
            "query {i}"
        );
    }
    assert!(case.run(&one, &[]).is_empty());
}

#[test]
fn queries_that_share_their_rows_attend_as_if_alone() {
    for (heads, head_dim) in [(6, 64), (3, 128), (2, 20)] {
        let width = heads * head_dim;
        let case = Case::new(heads, head_dim, 150);
        // Long runs of one range, each of another length; then the same rows one query at a time.
        let spans: Vec<KeyRows> = (0..150).map(|i| KeyRows::Range(i / 40, 20 + i / 40)).collect();
        for threads in [1, 2] {
            let cpu = Cpu::new(threads).unwrap();
            let together = case.run(&cpu, &spans);
            for (i, rows) in spans.iter().enumerate() {
                let single = Case {
                    q: case.q[i * width * 3..][..width].to_vec(),
                    kv: case.kv.clone(),
                    ..case
                };
                assert!(
                    bits(&single.run(&cpu, &[*rows])) == bits(&together[i * width..][..width]),
                    "{heads} x {head_dim}, query {i}, {threads} threads"
                );
            }
        }
    }
}

/// What the head finds must be what whole rows of logits hold, to the last bit.
fn head_twin(cpu: &Cpu, x: &[f32], w: &Linear, ks: &[usize], ruled_out: &[Vec<u32>]) {
    let (rows, vocabulary) = (ruled_out.len(), w.outputs());
    let mut logits = vec![0.0; rows * vocabulary];
    cpu.linear(x, w, Epilogue::Store, &mut logits);
    let log_sums: Vec<f32> = logits.chunks_exact(vocabulary).map(log_sum_exp).collect();
    for (logits, ruled_out) in logits.chunks_exact_mut(vocabulary).zip(ruled_out) {
        let inside = ruled_out.iter().filter(|&&o| (o as usize) < vocabulary);
        inside.for_each(|&o| logits[o as usize] = f32::NEG_INFINITY);
    }
    // The same buffers call after call: whatever an earlier one left in them must not show.
    let (mut found, mut best) = (Tops::default(), Vec::new());
    for &k in ks {
        cpu.head(x, w, k, |row| &ruled_out[row], &mut found);
        for (row, logits) in logits.chunks_exact(vocabulary).enumerate() {
            top_k(logits, k, &mut best).unwrap();
            let place = format!("{vocabulary} outputs, row {row} of {rows}, k {k}");
            assert_eq!(found.log_sum(row).to_bits(), log_sums[row].to_bits(), "{place}");
            assert_eq!(found.best(row), best, "{place}");
        }
    }
}

#[test]
fn the_head_finds_what_whole_rows_of_logits_hold() {
    let d = 64;
    // Chunks of 1024 outputs: less than one, whole ones, a last one of a single output.
    for vocabulary in [5, 1000, 2048, 3073] {
        // Two outputs of one value, in different chunks where there are some: the lower one comes first.
        let mut w = values(vocabulary * d, 61);
        w.copy_within(..d, (vocabulary - 1) * d);
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            let linear = pack(d, &w, None, dtype);
            for rows in [0, 1, 23, 150] {
                let of = |r: usize| match r % 3 {
                    0 => Vec::new(),
                    1 => vec![2, 3, 1024, 9999],
                    _ => (0..vocabulary as u32 - 1).collect(),
                };
                let ruled_out: Vec<Vec<u32>> = (0..rows).map(of).collect();
                for threads in [1, 2] {
                    let cpu = Cpu::new(threads).unwrap();
                    head_twin(&cpu, &values(rows * d, 60), &linear, &[1, 3, 8, 1], &ruled_out);
                }
            }
        }
    }
}

#[test]
fn a_head_that_offers_everything_goes_in_runs_of_rows() {
    let (d, vocabulary, rows) = (8, 3073, 350);
    let linear = pack(d, &values(vocabulary * d, 61), None, Dtype::F32);
    let cpu = Cpu::new(2).unwrap();
    head_twin(
        &cpu,
        &values(rows * d, 60),
        &linear,
        &[vocabulary + 1],
        &vec![Vec::new(); rows],
    );
}

#[test]
fn a_nan_among_the_logits_shows_in_their_sum() {
    let (d, vocabulary) = (4, 2100);
    let mut w = values(vocabulary * d, 61);
    w[1500 * d] = f32::NAN;
    let (linear, mut found) = (pack(d, &w, None, Dtype::F32), Tops::default());
    for k in [1, 4] {
        Cpu::new(1)
            .unwrap()
            .head(&values(3 * d, 5), &linear, k, |_| &[], &mut found);
        assert!((0..3).all(|row| found.log_sum(row).is_nan() && found.best(row).len() == k));
    }
}

#[test]
fn devices_that_cannot_be_are_refused() {
    assert!(Cpu::new(0).err().unwrap().to_string().contains("expected at least 1"));
    for isa in [Isa::Avx2, Isa::Avx512 { bf16: true }] {
        if !Isa::available().contains(&isa) {
            assert!(Cpu::with_isa(1, isa)
                .err()
                .unwrap()
                .to_string()
                .contains("not on this machine"));
        }
    }
}

/// What quantising a row should give: its scale and its bytes.
fn quantised_twin(row: &[f32]) -> (f32, Vec<i64>) {
    let largest = row
        .iter()
        .fold(0.0, |m: f32, x| if x.is_nan() { f32::NAN } else { m.max(x.abs()) });
    let finite = row.iter().all(|x| x.is_finite() && x.abs() < 2f32.powi(127));
    if !finite || largest < 2f32.powi(-100) {
        return (if finite { 0.0 } else { f32::NAN }, vec![0; row.len()]);
    }
    // Up to 16 significant bits: a step is 2^-15 of the power of two below.
    let exact = largest / 127.0;
    let step = 2f64.powi(exact.log2().floor() as i32 - 15);
    let scale = ((f64::from(exact) / step).ceil() * step) as f32;
    let whole = |x: &f32| (x * (1.0 / scale)).round_ties_even() as i64;
    (scale, row.iter().map(whole).collect())
}

/// The promised int8 product: whole numbers, summed exactly; then scaled by row, by output, and the bias.
fn int8_twin(x: &[f32], w: &[f32], bias: Option<&[f32]>, k: usize) -> Vec<f32> {
    let columns: Vec<_> = w.chunks_exact(k).map(quantised_twin).collect();
    let mut out = Vec::new();
    for (scale, x) in x.chunks_exact(k).map(quantised_twin) {
        for (j, (column, w)) in columns.iter().enumerate() {
            let sum: i64 = x.iter().zip(w).map(|(x, w)| x * w).sum();
            out.push(sum as f32 * scale * column + bias.map_or(0.0, |b| b[j]));
        }
    }
    out
}

#[test]
fn int8_products_are_exact_on_every_instruction_set() {
    let devices = devices();
    for k in (1..=130).chain([1000, 2047, 2053, 5001]) {
        let n = [1, 31, 33, 100][k % 4];
        let (mut x, mut w, b) = (values(30 * k, 70), values(n * k, 71), values(n, 72));
        // The largest sums that there can be, of both signs, and rows of other sizes.
        x[..k].fill(3.0);
        w[..k].fill(-0.5);
        w[(n - 1) * k..].fill(7.0);
        x[29 * k..].iter_mut().for_each(|x| *x *= 1e-9);
        for bias in [None, Some(&b[..])] {
            let (linear, want) = (pack(k, &w, bias, Dtype::Int8), int8_twin(&x, &w, bias, k));
            for rows in [0, 1, 2, 3, 5, 12, 13, 30] {
                for cpu in &devices {
                    for first in [0, 30 - rows] {
                        let mut out = vec![f32::NAN; rows * n];
                        cpu.linear(&x[first * k..][..rows * k], &linear, Epilogue::Store, &mut out);
                        let want = &want[first * n..][..rows * n];
                        assert!(bits(&out) == bits(want), "{rows} x {k} x {n}, {}", cpu.isa().name());
                    }
                }
            }
        }
    }
}

#[test]
fn int8_products_are_near() {
    let (k, n) = (1000, 100);
    let (x, w, b) = (values(40 * k, 73), values(n * k, 74), values(n, 75));
    let mut out = vec![0.0; 40 * n];
    let cpu = Cpu::new(1).unwrap();
    cpu.linear(&x, &pack(k, &w, Some(&b), Dtype::Int8), Epilogue::Store, &mut out);
    // Sums of about 10; each of both factors is off by half of a 127th at most, and errors cancel.
    let want = twin(&x, &w, Some(&b), k);
    assert!(out.iter().zip(&want).all(|(a, b)| (a - b).abs() < 0.5));
}

#[test]
fn int8_keeps_zeros_and_hides_no_nan() {
    let (k, n) = (70, 40);
    let (mut x, mut w) = (values(12 * k, 76), values(n * k, 77));
    w[3 * k..4 * k].fill(0.0);
    w[5 * k + 1] = f32::INFINITY;
    let special = [
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        2f32.powi(127),
        f32::MAX,
    ];
    for (row, value) in special.iter().enumerate() {
        x[row * k + 11 * row] = *value;
    }
    x[6 * k..7 * k].fill(0.0);
    x[7 * k..8 * k].fill(-0.0);
    x[8 * k..9 * k].fill(f32::from_bits(1));
    x[9 * k..10 * k].fill(1e38);
    let linear = pack(k, &w, None, Dtype::Int8);
    let want = int8_twin(&x, &w, None, k);
    for cpu in devices() {
        for epilogue in [Epilogue::Store, Epilogue::Relu] {
            let mut out = vec![0.0; 12 * n];
            cpu.linear(&x, &linear, epilogue, &mut out);
            for (i, (found, want)) in out.iter().zip(&want).enumerate() {
                let (row, column) = (i / n, i % n);
                assert_eq!(found.is_nan(), row < 6 || column == 5, "row {row}, output {column}");
                if !found.is_nan() {
                    let cut = if epilogue == Epilogue::Relu {
                        want.max(0.0)
                    } else {
                        *want
                    };
                    assert_eq!(*found, cut, "row {row}, output {column}, {}", cpu.isa().name());
                }
            }
        }
    }
}

#[test]
fn quantising_twice_changes_nothing() {
    for n in [0, 1, 3, 64, 70, 513] {
        for (seed, size) in [1e-37, 1e-30, 1e-3, 1.0, 77.0, 1e38].into_iter().enumerate() {
            let row: Vec<f32> = values(n, 80 + seed as u64).iter().map(|x| x * size).collect();
            let (mut once, mut back, mut twice) = (vec![0; n], vec![0.0; n], vec![0; n]);
            let scale = quantise(&row, &mut once);
            let (twin, bytes) = quantised_twin(&row);
            assert_eq!((scale, bytes), (twin, once.iter().map(|q| i64::from(*q)).collect()));
            dequantise(&once, scale, &mut back);
            assert_eq!(quantise(&back, &mut twice), scale, "{n} x {size}");
            assert_eq!(once, twice, "{n} x {size}");
            assert!(row
                .iter()
                .zip(&back)
                .all(|(x, b)| (x - b).abs() <= 0.51 * scale + 2f32.powi(-100)));
        }
    }
    assert!(quantise(&[1.0, f32::NAN], &mut [0; 2]).is_nan());
    // Just below 2^127 rounding the scale up may go beyond what can be quantised again: then not the first time either.
    for below in 1..3000 {
        let x = f32::from_bits((254 << 23) - below);
        let (mut q, mut back) = ([0], [0.0]);
        let scale = quantise(&[x], &mut q);
        dequantise(&q, scale, &mut back);
        assert_eq!(quantise(&back, &mut q).to_bits(), scale.to_bits(), "{x:e}");
    }
    assert!(quantise(&[1.7e38], &mut [0]) > 0.0);
}
