//! Norms beside double precision.
use crate::{devices, values};
use sluicegate::device::Cpu;

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

#[test]
fn norms_inside_rows_equal_norms_of_what_was_cut_out() {
    for (stride, offset, runs, d) in [
        (7, 0, 1, 7),
        (100, 3, 5, 16),
        (100, 4, 3, 31),
        (600, 64, 1, 512),
        (5, 5, 0, 3),
    ] {
        for rows in [0, 1, 40] {
            let (x, w) = (values(rows * stride, 43), values(d, 44));
            for cpu in devices() {
                let mut want = x.clone();
                for row in want.chunks_exact_mut(stride) {
                    for run in row[offset..offset + runs * d].chunks_exact_mut(d) {
                        let from = run.to_vec();
                        cpu.rms_norm(&from, &w, 1e-6, run);
                    }
                }
                for threads in [1, 2] {
                    let cpu = Cpu::with_isa(threads, cpu.isa()).unwrap();
                    let mut out = x.clone();
                    cpu.rms_norm_within(&mut out, stride, offset, runs, &w, 1e-6);
                    assert_eq!(out, want, "{rows} rows of {runs} x {d}, {}", cpu.isa().name());
                }
            }
        }
    }
}
