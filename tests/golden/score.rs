//! The running batch of a scoring job: log-probabilities of the reference, equal to the bit however the work is shared.

use crate::{bound, device, floats, ids, Golden};
use sluicegate::comm::{threads, Comm};
use sluicegate::decode::score::{Finished, Plan, Request, Scorer, Settings};
use sluicegate::decode::windows::{windows, Cut, Prefix};
use sluicegate::decode::workload::Workload;
use sluicegate::device::Want;
use sluicegate::moe::Context;
use std::collections::BTreeMap;

/// Scores by key, as bits: log-probabilities, ranks, likeliest tokens.
type Found = BTreeMap<u64, (Vec<u32>, Vec<u32>, Vec<(u32, u32)>)>;

const WANT: Want = Want { ranks: true, top: 3 };

fn settings(cut: Cut, prefix: Prefix) -> Settings {
    Settings {
        cut,
        prefix,
        want: WANT,
    }
}

const WHOLE: Cut = Cut {
    window: 1 << 20,
    stride: 1 << 20,
};

/// About `portion` tokens in one go, and never more than `most` of several windows.
fn plan(portion: usize, most: usize) -> Plan {
    Plan {
        portion,
        most,
        longest: usize::MAX,
        scores: u64::MAX,
    }
}

/// All that waits in one go, whatever memory that takes.
fn whole() -> Plan {
    plan(4096, usize::MAX)
}

/// One rank's part: every `ranks`-th text.
fn work(golden: &Golden, comm: &dyn Comm, settings: Settings, requests: &[Request], plan: Plan) -> Vec<Finished> {
    let portion = plan.portion;
    let device = device(1);
    let mut model = golden.load(comm.rank(), comm.size());
    let (layers, experts) = (model.shape().moe_layers(), model.shape().experts);
    let mut ctx = Context::new(&device, comm, layers, experts, true);
    let mut batch = Scorer::new(settings, plan, 30, model.as_ref());
    let mut own = requests.iter().skip(comm.rank()).step_by(comm.size()).peekable();
    let mut found = Vec::new();
    for step in 0.. {
        while own.peek().is_some() && batch.wants() > 0 && batch.waiting() < 3 * portion {
            own.next().into_iter().for_each(|r| batch.push(r.clone()));
        }
        let mut all = Vec::new();
        comm.all_gather(&(batch.waiting() as u64).to_le_bytes(), &mut all);
        let most = all.chunks(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).max();
        let most = most.unwrap_or(0) as usize;
        if most == 0 {
            break;
        }
        found.extend(batch.read(&mut ctx, model.as_mut(), step, most.div_ceil(portion)));
        assert!(ctx.failure.is_none(), "{:?}", ctx.failure);
    }
    found
}

fn all_ranks(golden: &Golden, ranks: usize, settings: Settings, requests: &[Request], plan: Plan) -> Found {
    let found = threads::run(ranks, |comm| work(golden, comm, settings, requests, plan));
    let bits = |f: Finished| {
        assert!(f.trace.is_some());
        let logprobs = f.scores.logprobs.iter().map(|p| p.to_bits()).collect();
        let top = f.scores.top.iter().map(|(t, p)| (*t, p.to_bits())).collect();
        (f.key, (logprobs, f.scores.ranks, top))
    };
    let found: Found = found.into_iter().flatten().map(bits).collect();
    assert_eq!(found.len(), requests.len());
    found
}

/// The golden's texts, with their keys, as far as they have tokens to score.
fn requests(golden: &Golden, settings: Settings) -> Vec<Request> {
    let items = golden.items().iter().enumerate();
    let one = |(i, item): (usize, &serde_json::Value)| {
        let score = &item["score"];
        let (source, text) = match score.get("labels") {
            Some(labels) => (ids(&score["src"]), ids(labels)),
            None => (Vec::new(), score.get("ids").filter(|v| v.is_array()).map(ids)?),
        };
        let request = Request {
            key: i as u64,
            source,
            ids: text,
        };
        settings.scores_any(request.ids.len()).then_some(request)
    };
    items.filter_map(one).collect()
}

fn prefix(golden: &Golden) -> Prefix {
    match golden.json["info"]["decoder_start_token_id"].as_u64() {
        Some(start) => Prefix::Token(start as u32),
        None => Prefix::None,
    }
}

pub fn play(name: &str) {
    let Some(golden) = Golden::open(name) else { return };
    let settings = settings(WHOLE, prefix(&golden));
    let requests = requests(&golden, settings);
    assert!(requests.len() > 10);
    let one = all_ranks(&golden, 1, settings, &requests, whole());
    let mut worst = 0f64;
    for (key, (logprobs, ranks, top)) in &one {
        let wanted = floats(&golden.items()[*key as usize]["score"]["logprobs"]);
        assert_eq!(logprobs.len(), wanted.len(), "item {key}");
        for (i, (found, wanted)) in logprobs.iter().zip(&wanted).enumerate() {
            let gap = (f64::from(f32::from_bits(*found)) - wanted).abs();
            assert!(
                gap < bound(name),
                "item {key}, token {i}: {} {wanted}",
                f32::from_bits(*found)
            );
            worst = worst.max(gap);
            // The target stands among the likeliest where its rank says so.
            if ranks[i] <= WANT.top as u32 {
                assert_eq!(top[i * WANT.top + ranks[i] as usize - 1].1, *found);
            }
        }
    }
    println!("{name}: largest difference of a log-probability {worst:.1e}");
    let longest = requests.iter().map(|r| r.ids.len() + r.source.len()).max().unwrap();
    for (ranks, portion, most) in [
        (1, 1, usize::MAX),
        (1, 100, 1),
        (1, longest / 2, longest),
        (2, 4096, usize::MAX),
        (2, 60, longest + 3),
        (3, 4096, longest),
        (3, 1, 1),
        (9, 200, 2 * longest),
    ] {
        let shared = all_ranks(&golden, ranks, settings, &requests, plan(portion, most));
        assert!(
            shared == one,
            "{name} on {ranks} ranks, {portion} to {most} tokens at once"
        );
    }
}

/// Windows score what each of them alone would.
pub fn play_windows(name: &str) {
    let Some(golden) = Golden::open(name) else { return };
    for (cut, prefix) in [
        (Cut { window: 8, stride: 8 }, Prefix::None),
        (Cut { window: 9, stride: 4 }, Prefix::None),
        (Cut { window: 8, stride: 8 }, Prefix::Token(1)),
        (Cut { window: 7, stride: 3 }, Prefix::Token(1)),
    ] {
        let settings = settings(cut, prefix);
        let texts = requests(&golden, settings);
        let found = all_ranks(&golden, 2, settings, &texts, plan(50, usize::MAX));
        for most in [1, cut.window, cut.window + 3] {
            let bounded = all_ranks(&golden, 2, settings, &texts, plan(most, most));
            assert!(bounded == found, "{cut:?}, {prefix:?}, {most} tokens at most");
        }
        // Each window as a text of its own: all it reads, then the last token that it scores.
        let (mut alone, mut scored) = (Vec::new(), Vec::new());
        for text in &texts {
            for window in windows(text.ids.len(), cut, prefix) {
                let before = match prefix {
                    Prefix::Token(token) if window.prefix => vec![token],
                    _ => Vec::new(),
                };
                let end = window.scored.end;
                let ids = [&before, &text.ids[window.read.clone()], &text.ids[end - 1..end]].concat();
                let (key, source) = (alone.len() as u64, Vec::new());
                alone.push(Request { key, source, ids });
                scored.push((text.key, window.scored.len()));
            }
        }
        let each = all_ranks(&golden, 1, self::settings(WHOLE, Prefix::None), &alone, whole());
        let mut joined: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (number, (key, count)) in scored.into_iter().enumerate() {
            let logprobs = &each[&(number as u64)].0;
            joined
                .entry(key)
                .or_default()
                .extend(&logprobs[logprobs.len() - count..]);
        }
        let found: BTreeMap<u64, Vec<u32>> = found.into_iter().map(|(key, f)| (key, f.0)).collect();
        assert!(found == joined, "{cut:?}, {prefix:?}");
    }
}

#[test]
fn nllb_moe() {
    play("nllb-moe-s1");
}

#[test]
fn switch() {
    play("switch-s1");
}

#[test]
fn mixtral_with_a_sliding_window() {
    play("mixtral-s1");
    play("mixtral-s2-bf16-shard-sw");
}

#[test]
fn olmoe() {
    play("olmoe-s1");
    play_windows("olmoe-s1");
}

#[test]
fn qwen_moe() {
    play("qwen2_moe-s1");
    play("qwen3_moe-s1");
}

#[test]
fn deepseek() {
    play("deepseek_v2-s2-lite-yarn");
    play("deepseek_v3-s1");
}

#[test]
fn gpt_oss() {
    play("gpt_oss-s1");
}
