//! Speed of the CPU kernels: `cargo bench --bench kernels [-- WORD]` prints the lines that hold WORD.
//!
//! A line gives the best of several runs, in GFLOP/s and, for the weights read once, GB/s. `./x bench kernels` times products beside
//! other libraries.
use std::hint::black_box;
use std::time::Instant;

use half::bf16;
use sluicegate::device::{
    exp_slice, log_sum_exp, top_k, Activation, Attend, Cpu, Dtype, Element, Epilogue, Group, KeyRows, Linear, Part,
    Rotary, Scored, Source, Tops, Want,
};

#[path = "ceiling/mod.rs"]
mod ceiling;

use ceiling::{Memory, Unit};

/// Weights are cycled through, so that they come from memory as in a model: more than any cache holds.
const MEMORY: usize = 192 << 20;

fn main() {
    let word = std::env::args()
        .skip(1)
        .find(|a| !a.starts_with('-'))
        .unwrap_or_default();
    for threads in [1, 2] {
        match Cpu::new(threads) {
            Ok(cpu) => all(&cpu, &word),
            Err(e) => eprintln!("{e:#}"),
        }
    }
}

fn all(cpu: &Cpu, word: &str) {
    ceilings(cpu.threads(), word);
    for dtype in [Dtype::F32, Dtype::Bf16] {
        for (k, n) in [(512, 1536), (1024, 4096), (4096, 1024)] {
            for rows in [1, 4, 12, 64, 512] {
                linear(cpu, word, dtype, [rows, k, n], false);
                linear(cpu, word, dtype, [rows, k, n], true);
            }
        }
        for rows in [32, 128, 1024] {
            experts(cpu, word, dtype, rows);
        }
        for [rows, d, f] in [[170, 512, 512], [2, 1024, 1024], [1, 1024, 1024]] {
            gated(cpu, word, dtype, [48, rows, d, f]);
        }
        scores(cpu, word, dtype);
    }
    attention(cpu, word);
    rows(cpu, word);
    packing(cpu, word);
}

/// What the machine can do at most, for `./x bench translate` to read: number of threads, what, amount a
/// second; 0 where the CPU has no such instruction.
fn ceilings(threads: usize, word: &str) {
    if !"ceiling".contains(word) {
        return;
    }
    let best = |measure: &dyn Fn() -> Option<f64>| (0..3).filter_map(|_| measure()).fold(0.0, f64::max);
    let memory = Memory::new();
    for unit in Unit::ALL {
        println!("ceiling {threads} {}: {:.0}", unit.name(), best(&|| unit.peak(threads)));
    }
    println!(
        "ceiling {threads} bytes read: {:.0}",
        best(&|| Some(memory.bandwidth(threads)))
    );
}

fn linear(cpu: &Cpu, word: &str, dtype: Dtype, [rows, k, n]: [usize; 3], from_memory: bool) {
    let from = if from_memory { "memory" } else { "cache" };
    let name = format!("linear {dtype:?} {rows} x {k} x {n} from {from}");
    if !name.contains(word) {
        return;
    }
    let one = weights(k, n, dtype);
    let copies = if from_memory { MEMORY / one.bytes() } else { 1 };
    let w = vec![one; copies];
    let (x, mut out) = (values(rows * k), vec![0.0; rows * n]);
    let mut next = 0;
    measure(
        cpu,
        word,
        &name,
        2.0 * (rows * k * n) as f64,
        w[0].bytes() as f64,
        || {
            cpu.linear(black_box(&x), &w[next], Epilogue::Store, &mut out);
            next = (next + 1) % w.len();
        },
    );
}

/// 32 experts of which each has 0.5 / its number of the rows, and the last ones none.
fn experts(cpu: &Cpu, word: &str, dtype: Dtype, rows: usize) {
    let (k, n) = (512, 1536);
    let name = format!("experts {dtype:?} {rows} x {k} x {n}, 32 ragged");
    if !name.contains(word) {
        return;
    }
    let w: Vec<Linear> = (0..32).map(|_| weights(k, n, dtype)).collect();
    let mut start = 0;
    let groups: Vec<Group> = w
        .iter()
        .enumerate()
        .map(|(e, weights)| {
            let end = if e == 23 {
                rows
            } else {
                (start + rows / (2 * (e + 1))).min(rows)
            };
            let group = Group {
                weights,
                rows: start..end,
            };
            start = end;
            group
        })
        .collect();
    let source: Vec<u32> = (0..rows as u32).map(|r| (r * 7) % rows as u32).collect();
    let (x, mut out) = (values(rows * k), vec![0.0; rows * n]);
    let bytes = groups
        .iter()
        .filter(|g| !g.rows.is_empty())
        .map(|g| g.weights.bytes())
        .sum::<usize>();
    measure(cpu, word, &name, 2.0 * (rows * k * n) as f64, bytes as f64, || {
        cpu.grouped_linear(black_box(&x), Some(&source), &groups, Epilogue::Relu, &mut out);
    });
}

/// Gated experts, with plain ones of as many weights beside them.
fn gated(cpu: &Cpu, word: &str, dtype: Dtype, [experts, each, d, f]: [usize; 4]) {
    let rows = experts * each;
    for gated in [false, true] {
        let (kind, width) = if gated { ("gated", f) } else { ("plain", 2 * f) };
        let name = format!("{kind} {dtype:?} {experts} x {each} x {d} x {}", 2 * f);
        if !name.contains(word) {
            continue;
        }
        let raw = values(2 * f * d);
        let part = |w| Part {
            weights: Source::F32(w),
            bias: None,
        };
        let (gate, up) = raw.split_at(f * d);
        let pack = || match gated {
            true => Linear::pack_gated(2, d, &[part(gate)], &[part(up)], dtype),
            false => Linear::pack_with(2, d, &[part(&raw)], dtype),
        };
        let w: Vec<Linear> = (0..experts).map(|_| pack().expect("whole rows")).collect();
        let group = |(e, weights)| Group {
            weights,
            rows: e * each..(e + 1) * each,
        };
        let groups: Vec<Group> = w.iter().enumerate().map(group).collect();
        let epilogue = if gated {
            Epilogue::Gated(Activation::Silu)
        } else {
            Epilogue::Store
        };
        let (x, mut out) = (values(rows * d), vec![0.0; rows * width]);
        let bytes = w.iter().map(Linear::bytes).sum::<usize>() as f64;
        let flops = 4.0 * (rows * d * f) as f64;
        measure(cpu, word, &name, flops, bytes, || {
            cpu.grouped_linear(black_box(&x), None, &groups, epilogue, &mut out);
        });
    }
}

/// Scores of 256 rows over a vocabulary, beside a greedy search's head.
fn scores(cpu: &Cpu, word: &str, dtype: Dtype) {
    let (rows, d, vocabulary) = (256, 512, 50_304);
    let name = |what: &str| format!("{what} {dtype:?} {rows} x {d} x {vocabulary}");
    let wanted = |what: &&str| name(what).contains(word);
    if !["head", "score", "score with ranks", "score with top 5"]
        .iter()
        .any(wanted)
    {
        return;
    }
    let (w, x) = (weights(d, vocabulary, dtype), values(rows * d));
    let targets: Vec<u32> = (0..rows as u32).map(|r| r * 7919 % vocabulary as u32).collect();
    let (flops, bytes) = (2.0 * (rows * d * vocabulary) as f64, w.bytes() as f64);
    let mut tops = Tops::default();
    measure(cpu, word, &name("head"), flops, bytes, || {
        cpu.head(black_box(&x), &w, 1, |_| &[], &mut tops);
    });
    let mut scored = Scored::default();
    for (what, ranks, top) in [
        ("score", false, 0),
        ("score with ranks", true, 0),
        ("score with top 5", false, 5),
    ] {
        measure(cpu, word, &name(what), flops, bytes, || {
            cpu.score(black_box(&x), &w, &targets, Want { ranks, top }, &mut scored);
        });
    }
}
/// Heads of queries, heads of keys, elements of a key, elements of a value.
type Heads = [usize; 4];

fn attention(cpu: &Cpu, word: &str) {
    let plain = [16, 16, 64, 64];
    let own = |queries: usize, keys: usize| (0..queries).map(move |i| KeyRows::Range(i * keys, keys)).collect();
    attend::<f32>(cpu, word, "64 queries x 40 keys", plain, own(64, 40));
    attend::<f32>(
        cpu,
        word,
        "32 queries x 256 keys shared",
        plain,
        vec![KeyRows::Range(0, 256); 32],
    );
    for (heads, name) in [
        ([8, 8, 64, 64], "8 heads of 64"),
        ([32, 8, 128, 128], "32 heads over 8 of 128"),
        ([16, 16, 192, 128], "16 heads of 192 and 128"),
    ] {
        for (texts, tokens) in [(64, 128), (16, 1024)] {
            let causal = |text: usize| (0..tokens).map(move |i| KeyRows::Range(text * tokens, i + 1));
            let all: Vec<KeyRows> = (0..texts).flat_map(causal).collect();
            attend::<f32>(
                cpu,
                word,
                &format!("{texts} x {tokens} causal, {name}"),
                heads,
                all.clone(),
            );
            let tables: Vec<Vec<u32>> = all.iter().map(|rows| rows.iter().map(|r| r as u32).collect()).collect();
            let tables = tables.iter().map(|table| KeyRows::Table(table)).collect();
            attend::<f32>(
                cpu,
                word,
                &format!("{texts} x {tokens} one by one, {name}"),
                heads,
                tables,
            );
        }
    }
    for (heads, name) in [
        (plain, "16 heads of 64"),
        ([16, 16, 128, 128], "16 heads of 128"),
        ([32, 8, 128, 128], "32 heads over 8 of 128"),
        ([64, 8, 64, 64], "64 heads over 8 of 64"),
        ([16, 1, 576, 512], "16 heads over 1 of 576 and 512"),
    ] {
        for (queries, keys) in [(32, 200), (4, 4096)] {
            attend::<bf16>(
                cpu,
                word,
                &format!("{queries} queries x {keys} keys, {name}"),
                heads,
                own(queries, keys),
            );
        }
    }
}

fn attend<T: Element>(
    cpu: &Cpu,
    word: &str,
    name: &str,
    [heads, kv_heads, head_dim, v_dim]: Heads,
    rows: Vec<KeyRows>,
) {
    let name = format!("attend {name}");
    if !name.contains(word) {
        return;
    }
    let end = rows.iter().flat_map(KeyRows::iter).max().unwrap_or(0) + 1;
    let round = |n: usize| values(n).into_iter().map(T::round).collect::<Vec<T>>();
    // Values are the first elements of the keys.
    let kv = round(end * kv_heads * head_dim);
    let q = values(rows.len() * heads * head_dim);
    let mut out = vec![0.0; rows.len() * heads * v_dim];
    let pairs = rows.iter().map(KeyRows::len).sum::<usize>() * heads;
    let flops = 2.0 * (pairs * (head_dim + v_dim)) as f64;
    let bytes = size_of::<T>() * kv.len() / head_dim * (head_dim + v_dim);
    measure(cpu, word, &name, flops, bytes as f64, || {
        cpu.attend(Attend {
            q: &q,
            q_stride: heads * head_dim,
            k: &kv,
            k_stride: kv_heads * head_dim,
            v: &kv,
            v_stride: kv_heads * head_dim,
            heads,
            kv_heads,
            head_dim,
            v_dim,
            scale: 0.125,
            rows: &rows,
            window: None,
            sinks: None,
            bias: None,
            out: &mut out,
        });
    });
}

/// Weights as a checkpoint holds them, and as a view across its rows, on their way into panels.
fn packing(cpu: &Cpu, word: &str) {
    let (k, n) = (2048, 2048);
    let raw: Vec<half::bf16> = values(k * n).into_iter().map(half::bf16::from_f32).collect();
    let source = Source::Bf16(&raw);
    for (kind, weights) in [("rows", source), ("columns", source.strided(0, [n, k], [1, n]))] {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            let name = format!("pack {kind} {dtype:?} {k} x {n}");
            let elements = (k * n) as f64;
            measure(cpu, word, &name, elements, 2.0 * elements, || {
                let part = Part { weights, bias: None };
                black_box(Linear::pack_with(cpu.threads(), k, &[part], dtype).is_ok());
            });
        }
    }
}

/// Work on single rows, in elements rather than operations.
fn rows(cpu: &Cpu, word: &str) {
    let logits = values(256_206);
    let (n, bytes) = (logits.len() as f64, 4.0 * logits.len() as f64);
    let mut copy = logits.clone();
    measure(cpu, word, "exp_slice 256206", n, bytes, || {
        exp_slice(black_box(&mut copy))
    });
    measure(cpu, word, "log_sum_exp 256206", n, bytes, || {
        black_box(log_sum_exp(black_box(&logits)));
    });
    let mut best = Vec::new();
    for k in [1, 8] {
        measure(cpu, word, &format!("top_k {k} of 256206"), n, bytes, || {
            black_box(top_k(black_box(&logits), k, &mut best).is_ok());
        });
    }
    let (x, w) = (values(256 * 1024), values(1024));
    let mut out = vec![0.0; x.len()];
    measure(
        cpu,
        word,
        "layer_norm 256 x 1024",
        x.len() as f64,
        8.0 * x.len() as f64,
        || {
            cpu.layer_norm(black_box(&x), &w, &w, 1e-5, &mut out);
        },
    );
    let (mut x, n) = (x, 256.0 * 1024.0);
    measure(cpu, word, "rms_norm_within 256 x 16 x 64", n, 8.0 * n, || {
        cpu.rms_norm_within(black_box(&mut x), 1024, 0, 16, &w[..64], 1e-5);
    });
    let positions: Vec<u32> = (0..256).collect();
    for interleaved in [false, true] {
        let inv_freq = (0..32).map(|i| 1e4_f32.powf(-i as f32 / 32.0)).collect();
        let rotary = Rotary::new(inv_freq, 1.0, interleaved);
        let name = format!("rotate{} 256 x 16 x 64", if interleaved { " interleaved" } else { "" });
        measure(cpu, word, &name, n, 8.0 * n, || {
            cpu.rotate(black_box(&mut x), 1024, 0, 16, 64, &rotary, &positions);
        });
    }
}

fn measure(cpu: &Cpu, word: &str, name: &str, flops: f64, bytes: f64, mut run: impl FnMut()) {
    if !name.contains(word) {
        return;
    }
    let (mut best, begin) = (f64::INFINITY, Instant::now());
    let mut runs = 0;
    while runs < 3 || begin.elapsed().as_secs_f64() < 0.25 {
        let start = Instant::now();
        run();
        best = best.min(start.elapsed().as_secs_f64());
        runs += 1;
    }
    println!(
        "{} x {}  {name:45} {:9.1} us {:7.1} GFLOP/s {:6.1} GB/s",
        cpu.threads(),
        cpu.isa().name(),
        best * 1e6,
        flops / best * 1e-9,
        bytes / best * 1e-9
    );
}

fn weights(k: usize, n: usize, dtype: Dtype) -> Linear {
    let part = Part {
        weights: Source::F32(&values(k * n)),
        bias: None,
    };
    Linear::pack(k, &[part], dtype).expect("whole rows")
}

fn values(n: usize) -> Vec<f32> {
    (0..n)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 7 & 0xffff) as f32 / 65_536.0 - 0.5)
        .collect()
}
