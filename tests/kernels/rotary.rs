//! Rotary positions and clamping beside their formulas.
use crate::{bits, devices, values};
use sluicegate::device::{Cpu, Rotary};

/// Rows with what belongs to heads, and what stands before, between and behind them.
struct Layout {
    stride: usize,
    offset: usize,
    heads: usize,
    head_stride: usize,
}

fn twin(x: &[f32], l: &Layout, inv_freq: &[f32], factor: f32, interleaved: bool, positions: &[u32]) -> Vec<f32> {
    let mut out = x.to_vec();
    for (row, position) in positions.iter().enumerate() {
        for head in 0..l.heads {
            let start = row * l.stride + l.offset + head * l.head_stride;
            for (i, f) in inv_freq.iter().enumerate() {
                let angle = f64::from(*position as f32 * f);
                let (cos, sin) = (angle.cos() as f32 * factor, angle.sin() as f32 * factor);
                let (a, b) = if interleaved {
                    (start + 2 * i, start + 2 * i + 1)
                } else {
                    (start + i, start + i + inv_freq.len())
                };
                out[a] = x[a] * cos - x[b] * sin;
                out[b] = x[b] * cos + x[a] * sin;
            }
        }
    }
    out
}

#[test]
fn rotations_equal_their_formula_on_every_instruction_set() {
    let positions = [0, 1, 2, 63, 64, 5, 131_071, 700, 700, (1 << 24) - 1];
    for pairs in [1, 3, 8, 16, 32, 33] {
        let inv_freq: Vec<f32> = (0..pairs).map(|i| 1e4_f32.powf(-(i as f32) / pairs as f32)).collect();
        let width = 2 * pairs;
        let layouts = [
            Layout {
                stride: width,
                offset: 0,
                heads: 1,
                head_stride: width,
            },
            Layout {
                stride: 5 * width + 9,
                offset: 4,
                heads: 5,
                head_stride: width,
            },
            // The last elements of a head, as of a latent attention's queries.
            Layout {
                stride: 3 * (width + 10),
                offset: 10,
                heads: 3,
                head_stride: width + 10,
            },
            Layout {
                stride: 7 + width,
                offset: 7,
                heads: 1,
                head_stride: 0,
            },
            Layout {
                stride: 7,
                offset: 7,
                heads: 0,
                head_stride: 0,
            },
        ];
        for l in layouts {
            let x = values(positions.len() * l.stride, 90);
            for (factor, interleaved) in [(1.0, false), (1.3, false), (1.0, true), (0.7, true)] {
                let rotary = Rotary::new(inv_freq.clone(), factor, interleaved);
                let want = twin(&x, &l, &inv_freq, factor, interleaved, &positions);
                for cpu in devices() {
                    let mut out = x.clone();
                    cpu.rotate(
                        &mut out,
                        l.stride,
                        l.offset,
                        l.heads,
                        l.head_stride,
                        &rotary,
                        &positions,
                    );
                    assert!(bits(&out) == bits(&want), "{pairs} pairs, {}", cpu.isa().name());
                }
            }
        }
    }
}

#[test]
fn threads_and_the_order_of_positions_change_no_bit() {
    let (pairs, heads, rows) = (16, 4, 700);
    let l = Layout {
        stride: 128,
        offset: 0,
        heads,
        head_stride: 32,
    };
    let inv_freq: Vec<f32> = (0..pairs).map(|i| 0.7_f32.powi(i)).collect();
    let positions: Vec<u32> = (0..rows as u32).map(|r| r * 7919 % 3000).collect();
    let x = values(rows * l.stride, 91);
    let want = twin(&x, &l, &inv_freq, 1.0, false, &positions);
    for threads in [1, 2, 3] {
        let cpu = Cpu::new(threads).unwrap();
        let rotary = Rotary::new(inv_freq.clone(), 1.0, false);
        for _ in 0..2 {
            let mut out = x.clone();
            cpu.rotate(
                &mut out,
                l.stride,
                l.offset,
                l.heads,
                l.head_stride,
                &rotary,
                &positions,
            );
            assert!(bits(&out) == bits(&want), "{threads} threads");
        }
    }
}

#[test]
#[should_panic(expected = "a position of 16777216 or above")]
fn positions_that_float32_cannot_tell_apart_are_refused() {
    let rotary = Rotary::new(vec![1.0], 1.0, false);
    let cpu = Cpu::new(1).unwrap();
    cpu.rotate(&mut [0.0; 2], 2, 0, 1, 2, &rotary, &[1 << 24]);
}

#[test]
#[should_panic(expected = "2 heads of 4 every 4 from 1 on in rows of 8")]
fn heads_beyond_the_row_are_refused() {
    let rotary = Rotary::new(vec![1.0; 2], 1.0, false);
    let cpu = Cpu::new(1).unwrap();
    cpu.rotate(&mut [0.0; 8], 8, 1, 2, 4, &rotary, &[1]);
}

#[test]
fn clamping_cuts_what_it_is_asked_to_and_keeps_a_nan() {
    for cpu in devices() {
        let mut x = [
            9.0,
            5.0,
            -5.0,
            0.5,
            -9.0,
            9.0,
            f32::NAN,
            f32::INFINITY,
            f32::NEG_INFINITY,
            -9.0,
        ];
        cpu.clamp(&mut x, 5, 1, 3, 2.0);
        assert!(x[6].is_nan());
        x[6] = 1.0;
        assert_eq!(x, [9.0, 2.0, -2.0, 0.5, -9.0, 9.0, 1.0, 2.0, -2.0, -9.0]);
    }
}
