use super::*;
use crate::comm::{threads, Comm};
use crate::device::{Cpu, Dtype};
use crate::model::{self, Loading};
use std::collections::BTreeMap;
use std::path::Path;

const WANT: Want = Want { ranks: true, top: 2 };

/// What each text came to, by key; and the most bytes that caches had, the most tokens that were scored in a step.
type Found = (BTreeMap<u64, Scores>, u64, usize);

fn scored(ctx: &mut Context, model: &mut dyn Model, settings: Settings, plan: Plan, requests: &[Request]) -> Found {
    let mut batch = Scorer::new(settings, plan, 20, model);
    let mut next = requests.iter();
    let (mut all, mut bytes, mut most) = (BTreeMap::new(), 0, 0);
    for step in 0.. {
        for _ in 0..batch.wants() {
            next.next().into_iter().for_each(|request| batch.push(request.clone()));
        }
        let before = batch.waiting();
        if before == 0 {
            break;
        }
        let calls = before.div_ceil(plan.portion).min(PORTIONS);
        for finished in batch.read(ctx, model, step, calls) {
            assert!(all.insert(finished.key, finished.scores).is_none());
        }
        assert!(ctx.failure.is_none(), "{:?}", ctx.failure);
        bytes = bytes.max(batch.cache_bytes());
        most = most.max(before - batch.waiting());
    }
    (all, bytes, most)
}

/// Texts of 1 to 40 tokens, among them long ones side by side, and their sources where there are any.
fn requests(settings: Settings, sources: bool) -> Vec<Request> {
    let lengths = (0..40usize).map(|i| if i % 9 < 2 { 40 - i % 5 } else { 1 + i * 7 % 11 });
    let ids = |seed: usize, tokens: usize| (0..tokens).map(|i| (10 + (seed * 31 + i * 17) % 60) as u32).collect();
    let all = lengths.enumerate().map(|(i, tokens)| Request {
        key: i as u64,
        source: if sources { ids(i, 1 + i * 5 % 13) } else { Vec::new() },
        ids: ids(i + 7, tokens),
    });
    all.filter(|request| settings.scores_any(request.ids.len())).collect()
}

fn bounded(comm: &dyn Comm, name: &str, settings: Settings) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("inputs").join(name);
    let (checkpoint, architecture) = model::open(&dir).unwrap();
    let loading = Loading {
        checkpoint: &checkpoint,
        dtype: Dtype::F32,
        threads: 1,
        rank: 0,
        ranks: 1,
        buffered: false,
        progress: &mut |_, _| (),
    };
    let mut net = architecture.load(loading).unwrap();
    let device = Cpu::new(1).unwrap();
    let (layers, experts) = (net.shape().moe_layers(), net.shape().experts);
    let mut ctx = Context::new(&device, comm, layers, experts, false);
    let requests = requests(settings, net.shape().encoder);
    let row = Caches::passing_row_bytes(net.cache_type(), net.shape());
    let plan = |portion: usize, most| Plan {
        portion,
        most,
        longest: usize::MAX,
        scores: u64::MAX,
    };
    let (wanted, ..) = scored(&mut ctx, net.as_mut(), settings, plan(4096, usize::MAX), &requests);
    assert_eq!(wanted.len(), requests.len());
    let of = |request: &Request| {
        let all = windows(request.ids.len(), settings.cut, settings.prefix);
        all.map(|window| window.tokens() + request.source.len()).max()
    };
    let longest = requests.iter().filter_map(of).max().unwrap();
    for most in [1, longest - 1, longest, longest + 3, 3 * longest] {
        for portion in [1, most.div_ceil(2), most] {
            let (found, bytes, read) = scored(&mut ctx, net.as_mut(), settings, plan(portion, most), &requests);
            assert!(found == wanted, "{name}: {portion} tokens in one go, {most} at most");
            let rows = most.max(longest);
            assert!(
                bytes <= rows as u64 * row && read <= PORTIONS * rows,
                "{name}: {bytes} bytes of caches and {read} tokens in a step, {rows} tokens of {row} bytes were planned"
            );
        }
    }
}

#[test]
fn windows_are_read_within_what_is_planned_and_score_the_same() {
    for (cut, prefix) in [
        (Cut { window: 9, stride: 9 }, Prefix::None),
        (Cut { window: 12, stride: 5 }, Prefix::Token(1)),
    ] {
        let want = WANT;
        threads::run(1, |comm| bounded(comm, "lm", Settings { cut, prefix, want }));
    }
}

#[test]
fn so_are_pairs() {
    let cut = Cut {
        window: usize::MAX,
        stride: usize::MAX,
    };
    let (prefix, want) = (Prefix::Token(2), WANT);
    threads::run(1, |comm| bounded(comm, "en-fr-de", Settings { cut, prefix, want }));
}
