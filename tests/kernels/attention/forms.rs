//! What decoder-only models and T5 add: shared heads of keys, values inside keys, windows, sinks, biases; alone and mixed.
use super::{runs, Case, Form};
use sluicegate::device::{Cpu, KeyRows};

/// Rows of every kind, most of them in company: shared, growing by one, in two parts, one by one, none.
fn mixed<'a>(tables: &'a [Vec<u32>], keys: usize) -> Vec<KeyRows<'a>> {
    let mut rows = runs(&[(17, 0, keys), (2, 3, 40), (1, 5, 0), (7, 2, 9)]);
    rows.extend((1..=keys.min(75)).map(|n| KeyRows::Range(1, n)));
    rows.extend(tables.iter().map(|table| KeyRows::Table(table)));
    rows.extend((0..20).map(|i| KeyRows::Joined {
        first: i,
        count: 10 + i,
        then: 80 - i,
        more: i % 7,
    }));
    rows
}

fn check(form: Form, keys: usize) {
    let tables: Vec<Vec<u32>> = (0..12)
        .map(|i| (0..i * 9 % 50).map(|j| (j * 11 + i) % 90).collect())
        .collect();
    let rows = mixed(&tables, keys);
    let looked_at: Vec<usize> = (0..rows.len()).step_by(5).collect();
    Case::of(form, rows.len(), keys).check(&rows, &looked_at);
}

fn sinks(heads: usize) -> Option<Vec<f32>> {
    Some((0..heads).map(|h| h as f32 * 0.7 - 1.0).collect())
}

#[test]
fn heads_share_keys_in_groups_of_every_size() {
    let shapes = [
        (2, 1, 64),
        (8, 2, 64),
        (8, 1, 128),
        (6, 2, 80),
        (9, 3, 20),
        (7, 1, 16),
        (15, 3, 96),
    ];
    for (heads, kv_heads, head_dim) in shapes {
        let form = Form {
            kv_heads,
            ..Form::plain(heads, head_dim)
        };
        check(form, 100);
    }
}

#[test]
fn values_may_be_longer_or_shorter_than_keys() {
    for (heads, kv_heads, head_dim, v_dim) in [(3, 3, 192, 128), (4, 2, 40, 33), (2, 2, 16, 80), (5, 5, 64, 16)] {
        let form = Form {
            kv_heads,
            v_dim,
            ..Form::plain(heads, head_dim)
        };
        check(form, 90);
    }
}

#[test]
fn values_may_be_a_part_of_the_keys() {
    for (heads, head_dim, v_dim) in [(16, 576, 512), (4, 40, 32), (5, 64, 64)] {
        let form = Form {
            kv_heads: 1,
            v_dim,
            latent: true,
            ..Form::plain(heads, head_dim)
        };
        check(form, 90);
    }
}

#[test]
fn windows_of_every_length() {
    for window in [1, 3, 15, 16, 17, 64, 200, 1000] {
        let form = Form {
            window: Some(window),
            ..Form::plain(2, 64)
        };
        check(form.clone(), 600);
        check(Form { kv_heads: 1, ..form }, 90);
    }
}

#[test]
fn a_sink_takes_a_share_and_a_bias_shifts() {
    for reach in [None, Some(0), Some(5), Some(128)] {
        let form = Form {
            sinks: sinks(4),
            reach,
            ..Form::plain(4, 64)
        };
        check(form.clone(), 300);
        check(Form { sinks: None, ..form }, 90);
    }
}

#[test]
fn everything_at_once() {
    for (heads, kv_heads, head_dim, v_dim, window) in [(8, 2, 64, 64, 30), (6, 3, 40, 72, 257), (16, 1, 144, 128, 100)]
    {
        for latent in [false, true] {
            let form = Form {
                heads,
                kv_heads,
                head_dim,
                v_dim,
                latent: latent && kv_heads * v_dim <= kv_heads * head_dim,
                window: Some(window),
                sinks: sinks(heads),
                reach: Some(20),
            };
            check(form, 300);
        }
    }
}

#[test]
fn nothing_seen_gives_zeros_sink_or_not() {
    let form = Form {
        window: Some(0),
        sinks: sinks(2),
        ..Form::plain(2, 64)
    };
    let rows = runs(&[(8, 0, 20), (1, 0, 0)]);
    let case = Case::of(form, rows.len(), 20);
    let out = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &rows);
    assert!(out.iter().all(|x| x.to_bits() == 0));
}

#[test]
fn an_infinite_sink_takes_nothing_or_all() {
    let form = Form::plain(2, 64);
    let rows = runs(&[(8, 0, 20), (1, 0, 3)]);
    let plain = Case::of(form.clone(), rows.len(), 20);
    let want = plain.run(&Cpu::new(1).unwrap(), &plain.wide, 0, &rows);
    let sinks = Some(vec![f32::NEG_INFINITY, 1e30]);
    let case = Case::of(Form { sinks, ..form }, rows.len(), 20);
    let out = case.run(&Cpu::new(1).unwrap(), &case.wide, 0, &rows);
    for (out, want) in out.chunks_exact(128).zip(want.chunks_exact(128)) {
        assert!(out[..64] == want[..64] && out[64..].iter().all(|x| *x == 0.0));
    }
}
