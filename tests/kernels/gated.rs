//! Gated products beside the formula over two plain ones; views of weights beside copies.
use crate::{bits, devices, pack, twin, values};
use half::{bf16, f16};
use sluicegate::device::{exp, Activation, Cpu, Dtype, Epilogue, Group, Linear, Part, Source};

const SILU: Activation = Activation::Silu;
const CLAMPED: Activation = Activation::ClampedSwish {
    alpha: 1.702,
    limit: 0.7,
};

fn part<'a>(weights: Source<'a>, bias: Option<&'a [f32]>) -> Part<'a> {
    Part { weights, bias }
}

fn pack_gated(k: usize, [gate, up]: [&[f32]; 2], bias: [Option<&[f32]>; 2], dtype: Dtype) -> Linear {
    let parts = [part(Source::F32(gate), bias[0]), part(Source::F32(up), bias[1])];
    Linear::pack_gated(1, k, &parts[..1], &parts[1..], dtype).unwrap()
}

/// The formula as [`Activation`] has it.
fn act(activation: Activation, g: f32, u: f32) -> f32 {
    match activation {
        Activation::Silu => g / (1.0 + exp(-g)) * u,
        Activation::ClampedSwish { alpha, limit } => {
            let g = if g > limit { limit } else { g };
            let u = u.clamp(-limit, limit);
            (u + 1.0) * (g / (1.0 + exp(-alpha * g)))
        }
    }
}

fn act_all(activation: Activation, gates: &[f32], ups: &[f32]) -> Vec<f32> {
    gates.iter().zip(ups).map(|(g, u)| act(activation, *g, *u)).collect()
}

#[test]
fn gated_float32_products_are_the_formula_on_every_instruction_set() {
    let devices = devices();
    for k in [1, 7, 64, 1101] {
        for n in [1, 15, 16, 17, 33, 100, 200] {
            let (x, gate, up) = (values(40 * k, 1), values(n * k, 2), values(n * k, 3));
            let (b, c) = (values(n, 4), values(n, 5));
            for bias in [[None, None], [Some(&b[..]), None], [Some(&b), Some(&c)]] {
                let linear = pack_gated(k, [&gate, &up], bias, Dtype::F32);
                assert_eq!((linear.inputs(), linear.outputs()), (k, n));
                let sums = [twin(&x, &gate, bias[0], k), twin(&x, &up, bias[1], k)];
                for activation in [SILU, CLAMPED] {
                    let want = act_all(activation, &sums[0], &sums[1]);
                    for rows in [0, 1, 2, 3, 4, 6, 7, 13, 40] {
                        for cpu in &devices {
                            let mut out = vec![f32::NAN; rows * n];
                            cpu.linear(&x[..rows * k], &linear, Epilogue::Gated(activation), &mut out);
                            let place = format!("{rows} x {k} x {n}, {}", cpu.isa().name());
                            assert!(bits(&out) == bits(&want[..rows * n]), "{place}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn gated_products_are_the_formula_over_two_plain_ones() {
    let devices = devices();
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        for (k, n) in [(1, 1), (7, 33), (130, 48), (1101, 100)] {
            let (x, gate, up) = (values(13 * k, 11), values(n * k, 12), values(n * k, 13));
            let (b, c) = (values(n, 14), values(n, 15));
            let linear = pack_gated(k, [&gate, &up], [Some(&b), Some(&c)], dtype);
            let plain = [pack(k, &gate, Some(&b), dtype), pack(k, &up, Some(&c), dtype)];
            for cpu in &devices {
                let sums = plain.each_ref().map(|plain| {
                    let mut out = vec![0.0; 13 * n];
                    cpu.linear(&x, plain, Epilogue::Store, &mut out);
                    out
                });
                for activation in [SILU, CLAMPED] {
                    let want = act_all(activation, &sums[0], &sums[1]);
                    for rows in [1, 2, 3, 13] {
                        let mut out = vec![f32::NAN; rows * n];
                        cpu.linear(&x[..rows * k], &linear, Epilogue::Gated(activation), &mut out);
                        let place = format!("{dtype:?} {rows} x {k} x {n}, {}", cpu.isa().name());
                        assert!(bits(&out) == bits(&want[..rows * n]), "{place}");
                    }
                }
            }
        }
    }
}

#[test]
fn gates_of_any_size_and_no_number_do_as_the_formula() {
    // One input, so that a gate and its projection are what is packed.
    let sizes = [0.0, -0.0, 1e-40, 1.0, 88.0, 89.5, 104.0, 3e38, f32::INFINITY, f32::NAN];
    let sizes: Vec<f32> = sizes.into_iter().chain(sizes.map(|x| -x)).collect();
    let all = |first: bool| -> Vec<f32> {
        let pairs = sizes.iter().flat_map(|g| sizes.iter().map(move |u| [*g, *u]));
        pairs.map(|pair| pair[usize::from(!first)]).collect()
    };
    let (gate, up) = (all(true), all(false));
    let linear = pack_gated(1, [&gate, &up], [None, None], Dtype::F32);
    for cpu in devices() {
        for activation in [SILU, CLAMPED] {
            let mut out = vec![0.0; gate.len()];
            cpu.linear(&[1.0], &linear, Epilogue::Gated(activation), &mut out);
            // Sums begin with zero: none is -0.
            for ((g, u), out) in gate.iter().map(|g| g + 0.0).zip(up.iter().map(|u| u + 0.0)).zip(out) {
                let want = act(activation, g, u);
                let place = format!("{activation:?} of {g} and {u}: {out} not {want}, {}", cpu.isa().name());
                assert!(
                    out.to_bits() == want.to_bits() || out.is_nan() && want.is_nan(),
                    "{place}"
                );
                assert!(!(g.is_nan() || u.is_nan()) || out.is_nan(), "{place}");
            }
        }
    }
}

#[test]
fn silu_equals_double_precision() {
    let gates: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.02).collect();
    let linear = pack_gated(1, [&gates, &vec![1.0; gates.len()]], [None, None], Dtype::F32);
    let mut out = vec![0.0; gates.len()];
    let cpu = Cpu::new(1).unwrap();
    cpu.linear(&[1.0], &linear, Epilogue::Gated(SILU), &mut out);
    for (g, out) in gates.iter().map(|g| f64::from(*g)).zip(out) {
        let want = g / (1.0 + (-g).exp());
        assert!((f64::from(out) - want).abs() <= 4e-7 * want.abs(), "{g}: {out}");
    }
}

#[test]
fn ragged_groups_and_threads_change_no_bit_of_gated_products() {
    let (k, n) = (300, 72);
    let x = values(90 * k, 30);
    let source: Vec<u32> = (0..300).map(|r| r * 37 % 90).collect();
    let cuts = [[0..50, 50..51, 51..51, 51..300], [7..20, 0..7, 33..300, 20..33]];
    for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
        let experts: Vec<Linear> = (0..4)
            .map(|e| pack_gated(k, [&values(n * k, 20 + e), &values(n * k, 40 + e)], [None, None], dtype))
            .collect();
        let mut alone = vec![0.0; n];
        for threads in [1, 2, 3] {
            let cpu = Cpu::new(threads).unwrap();
            for cut in &cuts {
                let group = |(weights, rows): (_, &std::ops::Range<usize>)| Group {
                    weights,
                    rows: rows.clone(),
                };
                let groups: Vec<Group> = experts.iter().zip(cut).map(group).collect();
                let mut out = vec![f32::NAN; 300 * n];
                cpu.grouped_linear(&x, Some(&source), &groups, Epilogue::Gated(SILU), &mut out);
                for group in &groups {
                    for r in group.rows.clone() {
                        let x = &x[source[r] as usize * k..][..k];
                        cpu.linear(x, group.weights, Epilogue::Gated(SILU), &mut alone);
                        assert!(bits(&out[r * n..][..n]) == bits(&alone), "row {r}, {threads} threads");
                    }
                }
            }
        }
    }
}

/// Element types that weights are stored in.
fn stored(values: &[f32]) -> (Vec<bf16>, Vec<f16>) {
    (
        values.iter().map(|x| bf16::from_f32(*x)).collect(),
        values.iter().map(|x| f16::from_f32(*x)).collect(),
    )
}

#[test]
fn interleaved_and_transposed_experts_equal_copies_of_them() {
    let cpu = Cpu::new(1).unwrap();
    // Enough for several threads, and not.
    for (experts, d, f) in [(3, 70, 37), (2, 600, 300)] {
        let raw = values(experts * d * 2 * f, 50);
        let (brains, halves) = stored(&raw);
        let (singles, bias) = (raw, values(2 * f, 51));
        let biases = [0, 1].map(|first| bias.iter().skip(first).step_by(2).copied().collect::<Vec<f32>>());
        for (i, source) in [Source::F32(&singles), Source::Bf16(&brains), Source::F16(&halves)]
            .into_iter()
            .enumerate()
        {
            let value = |at: usize| [singles[at], brains[at].to_f32(), halves[at].to_f32()][i];
            let dtype = [Dtype::F32, Dtype::Bf16, Dtype::Int8][i];
            for e in 0..experts {
                // [E, D, 2 F], gates in the even columns.
                let at = e * d * 2 * f;
                let copy = |first: usize| -> Vec<f32> {
                    let inputs = |output| (0..d).map(move |input| at + input * 2 * f + 2 * output + first);
                    (0..f).flat_map(inputs).map(value).collect()
                };
                let view = |first| source.strided(at + first, [f, d], [2, 2 * f]);
                let views = [part(view(0), Some(&biases[0])), part(view(1), Some(&biases[1]))];
                let viewed = Linear::pack_gated(3, d, &views[..1], &views[1..], dtype).unwrap();
                let bias = [Some(&biases[0][..]), Some(&biases[1][..])];
                let copied = pack_gated(d, [&copy(0), &copy(1)], bias, dtype);
                let x = values(5 * d, 52);
                let (mut out, mut want) = (vec![0.0; 5 * f], vec![0.0; 5 * f]);
                cpu.linear(&x, &viewed, Epilogue::Gated(CLAMPED), &mut out);
                cpu.linear(&x, &copied, Epilogue::Gated(CLAMPED), &mut want);
                assert!(bits(&out) == bits(&want), "{dtype:?}, expert {e}");
                // The same tensor as [E, F, 2 D], to come down from F (here 2 F) to D.
                let down = |output: usize| (0..2 * f).map(move |input| at + input * d + output);
                let copy: Vec<f32> = (0..d).flat_map(down).map(value).collect();
                let viewed = [part(source.strided(at, [d, 2 * f], [1, d]), None)];
                let viewed = Linear::pack_with(2, 2 * f, &viewed, dtype).unwrap();
                let x = values(5 * 2 * f, 53);
                let (mut out, mut want) = (vec![0.0; 5 * d], vec![0.0; 5 * d]);
                cpu.linear(&x, &viewed, Epilogue::Store, &mut out);
                cpu.linear(&x, &pack(2 * f, &copy, None, dtype), Epilogue::Store, &mut want);
                assert!(bits(&out) == bits(&want), "{dtype:?}, expert {e} down");
            }
        }
    }
}

#[test]
fn gates_in_several_parts_are_stacked() {
    let (k, x) = (65, values(2 * 65, 61));
    let (gate, up, bias) = (values(50 * k, 62), values(50 * k, 63), values(20, 64));
    let gates = [
        part(Source::F32(&gate[..20 * k]), Some(&bias)),
        part(Source::F32(&gate[20 * k..]), None),
    ];
    let ups = [
        part(Source::F32(&up[..33 * k]), None),
        part(Source::F32(&[]), None),
        part(Source::F32(&up[33 * k..]), None),
    ];
    let whole = [bias.clone(), vec![0.0; 30]].concat();
    let linear = Linear::pack_gated(1, k, &gates, &ups, Dtype::F32).unwrap();
    let want = act_all(SILU, &twin(&x, &gate, Some(&whole), k), &twin(&x, &up, None, k));
    let mut out = vec![0.0; 2 * 50];
    Cpu::new(1)
        .unwrap()
        .linear(&x, &linear, Epilogue::Gated(SILU), &mut out);
    assert_eq!(out, want);
}

#[test]
#[should_panic(expected = "Store of gated weights: they go with Epilogue::Gated only")]
fn gated_weights_are_refused_to_other_epilogues() {
    let linear = pack_gated(1, [&[1.0], &[1.0]], [None, None], Dtype::F32);
    Cpu::new(1)
        .unwrap()
        .linear(&[1.0], &linear, Epilogue::Store, &mut [0.0]);
}

#[test]
#[should_panic(expected = "goes with those of Linear::pack_gated only")]
fn plain_weights_are_refused_to_the_gated_epilogue() {
    let linear = pack(1, &[1.0], None, Dtype::F32);
    Cpu::new(1)
        .unwrap()
        .linear(&[1.0], &linear, Epilogue::Gated(SILU), &mut [0.0]);
}
