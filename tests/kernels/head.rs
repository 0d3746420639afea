//! The head beside whole rows of logits.
use crate::{pack, values};
use sluicegate::device::{log_sum_exp, top_k, Cpu, Dtype, Epilogue, Linear, Tops};

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
