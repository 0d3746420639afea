//! Norms beside double precision.
use crate::{devices, values};

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
