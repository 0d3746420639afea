//! Scores beside whole rows of logits, and beside what the head finds.
use crate::{devices, pack, values};
use sluicegate::device::{log_sum_exp, top_k, Cpu, Dtype, Epilogue, Linear, Scored, Tops, Want};

const WANTS: [Want; 5] = [
    Want { ranks: false, top: 0 },
    Want { ranks: true, top: 3 },
    Want { ranks: true, top: 0 },
    Want {
        ranks: false,
        top: 5000,
    },
    Want { ranks: false, top: 0 },
];

/// What scores say must be what whole rows of logits hold, to the last bit.
fn score_twin(cpu: &Cpu, x: &[f32], w: &Linear, targets: &[u32], found: &mut Scored) {
    let vocabulary = w.outputs();
    let mut all = vec![0.0; targets.len() * vocabulary];
    cpu.linear(x, w, Epilogue::Store, &mut all);
    let mut best = Vec::new();
    for want in WANTS {
        cpu.score(x, w, targets, want, found);
        for (row, (logits, target)) in all.chunks_exact(vocabulary).zip(targets).enumerate() {
            let (logit, sum) = (logits[*target as usize], log_sum_exp(logits));
            let place = format!("{vocabulary} outputs, row {row} of {}, {want:?}", targets.len());
            assert_eq!(found.log_sum(row).to_bits(), sum.to_bits(), "{place}");
            assert_eq!(found.log_probability(row).to_bits(), (logit - sum).to_bits(), "{place}");
            let ahead = |(i, x): (u32, &f32)| *x > logit || *x == logit && i < *target;
            let rank = (0..).zip(logits).filter(|l| ahead(*l)).count() as u32 + 1;
            assert_eq!(found.rank(row), want.ranks.then_some(rank), "{place}");
            top_k(logits, want.top, &mut best).unwrap();
            assert_eq!(found.best(row), best, "{place}");
        }
    }
}

#[test]
fn scores_are_what_whole_rows_of_logits_hold() {
    let d = 48;
    let mut found = Scored::default();
    for vocabulary in [1, 5, 1000, 2048, 3073] {
        // Equal outputs in one chunk and in several: ranks go by the lower one.
        let mut w = values(vocabulary * d, 61);
        for output in (0..vocabulary).skip(2).step_by(3) {
            w.copy_within(..d, output * d);
        }
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            let linear = pack(d, &w, None, dtype);
            for rows in [0, 1, 70] {
                let targets: Vec<u32> = (0..rows).map(|r| (r * 7919 + r % 2 * 2) % vocabulary as u32).collect();
                for threads in [1, 2] {
                    let cpu = Cpu::new(threads).unwrap();
                    score_twin(&cpu, &values(rows as usize * d, 60), &linear, &targets, &mut found);
                }
            }
        }
    }
}

#[test]
fn scoring_what_the_head_found_gives_its_log_probabilities_on_every_instruction_set() {
    let (d, vocabulary, rows) = (33, 2100, 9);
    let (x, w) = (values(rows * d, 62), values(vocabulary * d, 63));
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        let linear = pack(d, &w, None, dtype);
        for cpu in devices() {
            let (mut tops, mut found) = (Tops::default(), Scored::default());
            cpu.head(&x, &linear, 4, |_| &[], &mut tops);
            for place in 0..4 {
                let targets: Vec<u32> = (0..rows).map(|row| tops.best(row)[place].1).collect();
                cpu.score(&x, &linear, &targets, Want { ranks: true, top: 0 }, &mut found);
                for row in 0..rows {
                    let searched = tops.best(row)[place].0 - tops.log_sum(row);
                    assert_eq!(found.log_probability(row).to_bits(), searched.to_bits());
                    assert_eq!(found.rank(row), Some(place as u32 + 1));
                }
            }
        }
    }
}

#[test]
fn a_nan_anywhere_makes_a_log_probability_none() {
    let (d, vocabulary) = (4, 2100);
    let mut w = values(vocabulary * d, 61);
    w[1500 * d] = f32::NAN;
    let (linear, mut found) = (pack(d, &w, None, Dtype::F32), Scored::default());
    for want in WANTS {
        // Beside it, in another chunk, and itself.
        Cpu::new(1)
            .unwrap()
            .score(&values(3 * d, 5), &linear, &[1501, 0, 1500], want, &mut found);
        assert!((0..3).all(|row| found.log_probability(row).is_nan() && found.rank(row).is_none()));
    }
}

#[test]
#[should_panic(expected = "target 5 of 5 outputs")]
fn targets_beyond_the_vocabulary_are_refused() {
    let linear = pack(1, &[1.0; 5], None, Dtype::F32);
    let cpu = Cpu::new(1).unwrap();
    cpu.score(&[1.0], &linear, &[5], Want::default(), &mut Scored::default());
}
