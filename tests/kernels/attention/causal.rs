//! Queries that see the keys up to their own (prefill and scoring), which come in tiles.
use super::{Case, Form};
use sluicegate::device::{Cpu, KeyRows};

/// Queries that see the rows from `first` on, one more each, from `from` to `to` of them.
fn growing(first: usize, from: usize, to: usize) -> impl Iterator<Item = KeyRows<'static>> {
    (from..=to).map(move |n| KeyRows::Range(first, n))
}

fn check(form: Form, rows: &[KeyRows], keys: usize, step: usize) {
    let looked_at: Vec<usize> = (0..rows.len()).step_by(step).chain([rows.len() - 1]).collect();
    Case::of(form, rows.len(), keys).check(rows, &looked_at);
}

#[test]
fn texts_of_every_length_beside_each_other() {
    for (heads, head_dim) in [(2, 64), (1, 128), (3, 20), (2, 80)] {
        // Also from one key on which several see, with repetitions, and from none.
        let mut rows: Vec<KeyRows> = (1..=40).flat_map(|n| growing(n, 1, n)).collect();
        rows.extend(growing(3, 17, 60).chain(growing(0, 0, 9)));
        rows.extend((0..90).map(|i| KeyRows::Range(2, 5 + i / 3)));
        check(Form::plain(heads, head_dim), &rows, 90, 7);
    }
}

#[test]
fn long_texts_come_in_blocks_of_keys() {
    for (heads, head_dim, v_dim) in [(1, 64, 64), (2, 24, 16), (1, 192, 128)] {
        let form = Form {
            v_dim,
            ..Form::plain(heads, head_dim)
        };
        let rows: Vec<KeyRows> = growing(0, 1, 530)
            .chain(growing(5, 250, 262))
            .chain(growing(1, 500, 800))
            .collect();
        check(form, &rows, 801, 31);
    }
}

#[test]
fn windows_slide_along() {
    for window in [1, 2, 3, 5, 16, 33, 100, 255, 256, 257, 400] {
        let form = Form {
            window: Some(window),
            kv_heads: 1,
            ..Form::plain(2, 64)
        };
        let rows: Vec<KeyRows> = growing(0, 1, 600).chain(growing(7, 200, 330)).collect();
        check(form, &rows, 600, 23);
    }
}

#[test]
fn everything_at_once() {
    for (heads, kv_heads, head_dim, v_dim, window) in [(4, 2, 64, 64, 270), (6, 2, 40, 24, 77), (8, 1, 72, 64, 19)] {
        let form = Form {
            heads,
            kv_heads,
            head_dim,
            v_dim,
            latent: kv_heads == 1,
            window: Some(window),
            sinks: Some((0..heads).map(|h| h as f32 - 2.0).collect()),
            reach: Some(30),
        };
        let rows: Vec<KeyRows> = growing(0, 1, 300)
            .chain(growing(2, 1, 40))
            .chain(growing(50, 230, 280))
            .collect();
        check(form, &rows, 340, 17);
    }
}

#[test]
fn what_is_not_seen_does_no_harm() {
    for window in [None, Some(1), Some(6), Some(100)] {
        let form = Form {
            window,
            ..Form::plain(1, 64)
        };
        let rows: Vec<KeyRows> = growing(0, 1, 300).collect();
        let mut case = Case::of(form, rows.len(), 300);
        let cpu = Cpu::new(1).unwrap();
        let want = case.run(&cpu, &case.wide, 0, &rows);
        // One row's key and value, which no query before it sees, nor one that is a window's length after it.
        for bad in [f32::NAN, f32::INFINITY] {
            let row = case.form.kv_stride() * 270;
            case.wide[row..][..128].fill(bad);
            let out = case.run(&cpu, &case.wide, 0, &rows);
            for (i, (out, want)) in out.chunks_exact(64).zip(want.chunks_exact(64)).enumerate() {
                let seen = (270..270 + window.unwrap_or(300)).contains(&i);
                assert!(seen || out == want, "window {window:?}, query {i}, {bad}");
                assert!(
                    !seen || out.iter().any(|x| x.is_nan()),
                    "window {window:?}, query {i}, {bad}"
                );
            }
        }
    }
}
