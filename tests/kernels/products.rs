//! Products beside their slow twins, alone and in groups.
use crate::{bits, devices, pack, twin, values};
use half::{bf16, f16};
use sluicegate::device::{Cpu, Dtype, Epilogue, Group, Isa, Linear, Part, Source};
use std::ops::Range;

const INPUTS: [usize; 5] = [1, 7, 64, 1000, 1101];
const OUTPUTS: [usize; 5] = [1, 31, 33, 100, 260];
const ROWS: [usize; 8] = [0, 1, 2, 3, 5, 12, 13, 40];

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
