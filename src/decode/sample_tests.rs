use super::super::candidates::candidates;
use super::super::search::Settings;
use super::*;
use crate::device::{Dtype, Isa, Part, Source};

fn sampling(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
    Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        seed: 7,
    }
}

/// All ways of warping, next to none and together.
fn all() -> Vec<Sampling> {
    let mut all = Vec::new();
    for (temperature, top_k) in [0.3, 1.0, 2.5]
        .into_iter()
        .flat_map(|t| [0, 1, 6, 70, 1500].map(|k| (t, k)))
    {
        for (top_p, min_p) in [1.0, 0.9, 0.4, 1e-6]
            .into_iter()
            .flat_map(|p| [0.0, 0.1, 1.0].map(|m| (p, m)))
        {
            all.push(sampling(temperature, top_k, top_p, min_p));
        }
    }
    all
}

/// Probabilities of all tokens, in double precision and by sorting everything.
fn slowly(s: &Sampling, row: &[f32]) -> Vec<f64> {
    let mut sorted: Vec<usize> = (0..row.len()).collect();
    sorted.sort_by(|&a, &b| row[b].partial_cmp(&row[a]).unwrap());
    let max = f64::from(row[sorted[0]]);
    let weight = |t: usize| ((f64::from(row[t]) - max) / f64::from(s.temperature)).exp();
    if s.top_k > 0 {
        sorted.truncate(s.top_k);
    }
    let total: f64 = sorted.iter().map(|&t| weight(t)).sum();
    let above = |n: usize| sorted[..n].iter().map(|&t| weight(t)).sum::<f64>();
    if s.top_p < 1.0 {
        let n = (1..=sorted.len()).find(|&n| above(n) >= f64::from(s.top_p) * total);
        sorted.truncate(n.unwrap_or(sorted.len()));
    }
    sorted.retain(|&t| weight(t) >= f64::from(s.min_p));
    let total: f64 = sorted.iter().map(|&t| weight(t)).sum();
    let mut probabilities = vec![0.0; row.len()];
    sorted.iter().for_each(|&t| probabilities[t] = weight(t) / total);
    probabilities
}

fn check(row: &[f32], probabilities: &[f64], number: f64, drawn: (f32, u32), place: &str) {
    let token = drawn.1 as usize;
    assert_eq!(row[token].to_bits(), drawn.0.to_bits(), "{place}");
    let before: f64 = probabilities[..token].iter().sum();
    let inside = before - 1e-5 <= number && number <= before + probabilities[token] + 1e-5;
    assert!(
        inside && probabilities[token] > 0.0,
        "{place}: {number} gave {token}, from {before} on, {} probable",
        probabilities[token]
    );
}

fn numbers(n: usize) -> impl Iterator<Item = f64> {
    (0..n)
        .map(move |i| i as f64 / n as f64)
        .chain([1.0 - f64::EPSILON / 2.0])
}

/// Peaked as logits are; or of few values, so that there are ties.
fn row(n: usize, ties: bool) -> Vec<f32> {
    let value = |i: usize| 12.0 * (uniform(1, n as u64, i as u64) as f32).powi(3) - 3.0;
    (0..n)
        .map(|i| if ties { value(i).round() / 2.0 } else { value(i) })
        .collect()
}

#[test]
fn draws_are_those_of_sorting_everything() {
    for (n, ties) in [1, 2, 7, 1000, 1024, 1025, 3000]
        .into_iter()
        .flat_map(|n| [(n, false), (n, true)])
    {
        let mut row = row(n, ties);
        // Tokens that are ruled out, but never all.
        row.iter_mut().skip(1).step_by(5).for_each(|x| *x = f32::NEG_INFINITY);
        let mut best: Vec<(f32, u32)> = row.iter().copied().zip(0..).collect();
        best.sort_by(|a, b| order(*a, *b));
        for s in all() {
            let probabilities = slowly(&s, &row);
            for number in numbers(17) {
                let drawn = s.draw_of_row(&row, number);
                check(
                    &row,
                    &probabilities,
                    number,
                    drawn,
                    &format!("{n} tokens, ties {ties}, {s:?}"),
                );
                if s.top_k > 0 {
                    let offered = &best[..s.top_k.min(n)];
                    assert_eq!(s.draw(offered, number), drawn, "{n} tokens, {s:?}");
                }
            }
        }
    }
}

#[test]
fn probabilities_are_those_of_the_reference() {
    let row = [1.0, 3.0, -2.0, 2.5, 0.0, 2.0, 1.5, -1.0];
    // Softmax after transformers 5.23's warpers.
    let reference = [
        (
            (1.0, 0, 1.0, 0.0),
            [
                0.056209, 0.415331, 0.002798, 0.251911, 0.020678, 0.152792, 0.092673, 0.007607,
            ],
        ),
        (
            (0.7, 0, 1.0, 0.0),
            [
                0.029885, 0.520346, 0.000411, 0.254731, 0.007162, 0.124702, 0.061047, 0.001716,
            ],
        ),
        (
            (1.5, 3, 1.0, 0.0),
            [0.0, 0.448441, 0.0, 0.321322, 0.0, 0.230237, 0.0, 0.0],
        ),
        ((1.0, 0, 0.6, 0.0), [0.0, 0.622459, 0.0, 0.377541, 0.0, 0.0, 0.0, 0.0]),
        (
            (0.8, 5, 0.8, 0.0),
            [0.0, 0.548918, 0.0, 0.293815, 0.0, 0.157268, 0.0, 0.0],
        ),
        (
            (2.0, 0, 1.0, 0.3),
            [0.114051, 0.310022, 0.0, 0.241445, 0.0, 0.188038, 0.146444, 0.0],
        ),
        (
            (2.0, 6, 0.9, 0.5),
            [0.0, 0.419229, 0.0, 0.326496, 0.0, 0.254275, 0.0, 0.0],
        ),
        ((1.0, 0, 1e-9, 0.0), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
        (
            (1.3, 100, 0.95, 0.05),
            [0.07741, 0.360529, 0.0, 0.245416, 0.035869, 0.167058, 0.113718, 0.0],
        ),
        ((1.0, 1, 0.5, 0.5), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
    ];
    for ((temperature, top_k, top_p, min_p), expected) in reference {
        let s = sampling(temperature, top_k, top_p, min_p);
        let (n, mut counts) = (100_000, [0; 8]);
        numbers(n).for_each(|number| counts[s.draw_of_row(&row, number).1 as usize] += 1);
        for (count, expected) in counts.iter().zip(expected) {
            let found = f64::from(*count) / n as f64;
            assert!((found - expected).abs() < 3e-5, "{s:?}: {counts:?}");
            assert_eq!(*count == 0, expected == 0.0, "{s:?}: {counts:?}");
        }
    }
}

#[test]
fn endless_logits_and_small_temperatures_draw_the_likeliest() {
    let row = [1.0, f32::INFINITY, 3.0, f32::NEG_INFINITY];
    for s in all() {
        assert_eq!(s.draw_of_row(&row, 0.7).1, 1, "{s:?}");
    }
    let cold = sampling(f32::from_bits(1), 0, 1.0, 0.0);
    assert_eq!(cold.draw_of_row(&[1.0, 5.0, 4.999], 0.99), (5.0, 1));
    assert_eq!(cold.draw_of_row(&[1.0, 5.0, 5.0], 0.99), (5.0, 2));
}

/// A head whose logits are the hidden states' elements.
fn identity(n: usize) -> Linear {
    let mut weights = vec![0.0; n * n];
    (0..n).for_each(|i| weights[i * n + i] = 1.0);
    let part = Part {
        weights: Source::F32(&weights),
        bias: None,
    };
    Linear::pack(n, &[part], Dtype::F32).unwrap()
}

#[test]
fn rows_draw_the_same_alone_and_in_company_on_any_device() {
    let (n, rows) = (48, 40);
    let head = identity(n);
    let x: Vec<f32> = (0..rows * n).map(|i| 4.0 * uniform(3, 0, i as u64) as f32).collect();
    let ruled_out = |row: usize| -> &[u32] {
        if row.is_multiple_of(3) {
            &[0, 5, 6, 7, 47, 99]
        } else {
            &[]
        }
    };
    let place = |row: usize| (7, row as u64 / 4, row as u64 % 4);
    // Through the head and through whole rows of logits.
    for (top_k, top_p) in [(9, 1.0), (9, 0.8), (0, 1.0), (0, 0.8), (65, 0.8)] {
        let s = sampling(1.5, top_k, top_p, 0.0);
        let slow = |row: usize| {
            let mut logits = x[row * n..(row + 1) * n].to_vec();
            let log_sum = log_sum_exp(&logits);
            let inside = ruled_out(row).iter().filter(|&&t| t < n as u32);
            inside.for_each(|&t| logits[t as usize] = f32::NEG_INFINITY);
            let best = s.draw_of_row(&logits, uniform(7, place(row).1, place(row).2));
            assert!(!ruled_out(row).contains(&best.1));
            Drawn { log_sum, best }
        };
        let expected: Vec<Drawn> = (0..rows).map(slow).collect();
        let tokens: std::collections::BTreeSet<u32> = expected.iter().map(|d| d.best.1).collect();
        assert!(tokens.len() > 8, "{tokens:?}");
        for (threads, isa) in [1, 3]
            .into_iter()
            .flat_map(|t| Isa::available().into_iter().map(move |i| (t, i)))
        {
            let (cpu, mut room) = (Cpu::with_isa(threads, isa).unwrap(), Room::default());
            let found = s.draw_rows(&cpu, (&x, &head), ruled_out, place, &mut room);
            assert_eq!(found, expected);
            for row in [0, 17, 39] {
                let x = &x[row * n..(row + 1) * n];
                let alone = s.draw_rows(&cpu, (x, &head), |_| ruled_out(row), |_| place(row), &mut room);
                assert_eq!(alone, expected[row..row + 1]);
            }
            assert!(s.draw_rows(&cpu, (&[], &head), ruled_out, place, &mut room).is_empty());
        }
    }
}

#[test]
fn log_probabilities_are_the_models_and_a_nan_is_reported() {
    let (head, cpu, mut room) = (identity(4), Cpu::new(1).unwrap(), Room::default());
    let settings = Settings::plain(1, 20);
    let bounds = settings.bounds(None);
    for top_k in [0, 2] {
        let s = sampling(0.5, top_k, 0.9, 0.0);
        let x = [1.0, 2.0, 3.0, 0.0, 1.0, f32::NAN, 3.0, 0.0];
        let drawn = s.draw_rows(&cpu, (&x, &head), |_| &[2], |_| (0, 0, 0), &mut room);
        let mut out = Vec::new();
        candidates(&settings, &bounds, &[0], drawn[0].log_sum, &[drawn[0].best], &mut out).unwrap();
        // Of all four tokens at temperature 1, the one ruled out included.
        let total: f32 = x[..4].iter().map(|x| x.exp()).sum();
        assert!((out[0].logprob - (x[out[0].token as usize] - total.ln())).abs() < 1e-5 && out[0].token != 2);
        assert!(candidates(&settings, &bounds, &[0], drawn[1].log_sum, &[drawn[1].best], &mut out).is_err());
    }
}

#[test]
fn keys_and_positions_draw_independently() {
    let row = row(6, false);
    let s = sampling(2.0, 0, 1.0, 0.0);
    let probabilities = slowly(&s, &row);
    for fixed in 0..4 {
        // 35 degrees of freedom for two draws side by side: above 79 in one of 30 000 cases.
        let (n, mut counts) = (40_000u64, vec![0.0; 36]);
        for i in 0..n {
            let by_key = s.draw_of_row(&row, uniform(fixed, i, 5)).1;
            let next = if fixed % 2 == 0 {
                uniform(fixed, i, 6)
            } else {
                uniform(fixed, i + 1, 5)
            };
            counts[(by_key * 6 + s.draw_of_row(&row, next).1) as usize] += 1.0;
        }
        let expected = |i: usize| n as f64 * probabilities[i / 6] * probabilities[i % 6];
        let squares: f64 = (0..36).map(|i| (counts[i] - expected(i)).powi(2) / expected(i)).sum();
        assert!(squares < 79.0, "seed {fixed}: {squares}");
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let good = sampling(0.8, 50, 0.9, 0.0);
    assert_eq!(good.checked().unwrap(), Some(good));
    assert_eq!(sampling(0.0, 50, 0.9, 0.0).checked().unwrap(), None);
    for (bad, flag) in [
        (sampling(-0.1, 0, 1.0, 0.0), "--temperature -0.1"),
        (sampling(f32::NAN, 0, 1.0, 0.0), "--temperature NaN"),
        (sampling(f32::INFINITY, 0, 1.0, 0.0), "--temperature inf"),
        (sampling(1.0, 0, 0.0, 0.0), "--top-p 0"),
        (sampling(1.0, 0, 1.5, 0.0), "--top-p 1.5"),
        (sampling(1.0, 0, f32::NAN, 0.0), "--top-p NaN"),
        (sampling(1.0, 0, 1.0, 1.1), "--min-p 1.1"),
        (sampling(1.0, 0, 1.0, -1.0), "--min-p -1"),
    ] {
        assert!(bad.checked().unwrap_err().to_string().starts_with(flag), "{flag}");
    }
}
