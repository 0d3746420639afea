//! Int8: rows as quantised, products beside exact sums.
use crate::{bits, devices, pack, twin, values};
use sluicegate::device::{dequantise, quantise, Cpu, Dtype, Epilogue};

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
