//! Decoder-only models against the reference: log-probabilities, routes and greedy ids; and to the bit against themselves,
//! however tokens are put together and shared among ranks.

use crate::forced::same_routes;
use crate::{bound, device, floats, ids, load, Golden};
use sluicegate::comm::{threads, Comm};
use sluicegate::device::{log_sum_exp, top_k, Dtype, Epilogue, KeyRows};
use sluicegate::model::cache::{Caches, DecodeRow, SourceRow};
use sluicegate::model::Model;
use sluicegate::moe::gate::Routes;
use sluicegate::moe::Context;
use std::path::Path;

/// A text to go through a model, and where its first token's cache row is.
struct Text {
    item: usize,
    ids: Vec<u32>,
    first: usize,
}

/// The items that have something to be read, each behind the other.
fn texts(golden: &Golden) -> Vec<Text> {
    let mut first = 0;
    let items = golden.items().iter().enumerate();
    let texts = items.filter(|(_, item)| !item["score"].is_null());
    texts
        .map(|(i, item)| {
            let ids = ids(&item["score"]["ids"]);
            first += ids.len();
            Text {
                item: i,
                first: first - ids.len(),
                ids,
            }
        })
        .collect()
}

/// What a model makes of one rank's texts.
struct Found {
    /// `[tokens, d_model]`
    hidden: Vec<f32>,
    routes: Vec<Routes>,
    /// Log-probabilities of each text's tokens but the first.
    logprobs: Vec<Vec<f64>>,
}

/// All tokens of all texts at once, over rows that every layer writes anew.
fn together(model: &mut dyn Model, ctx: &mut Context, texts: &[Text]) -> Found {
    let rows = texts.iter().flat_map(|t| {
        let row = |(i, &token): (usize, &u32)| DecodeRow {
            token,
            position: i,
            row: t.first + i,
            keys: KeyRows::Range(t.first, i + 1),
            source: (0, 0),
        };
        t.ids.iter().enumerate().map(row).collect::<Vec<_>>()
    });
    let rows: Vec<DecodeRow> = rows.collect();
    let end = texts.iter().map(|t| t.first + t.ids.len()).max().unwrap_or(0);
    let mut caches = Caches::passing(model.cache_type(), model.shape(), end, 0);
    let hidden = model.decode(ctx, &rows, &mut caches).to_vec();
    let routes = ctx.routes.clone().expect("routes are kept");
    assert!(ctx.failure.is_none(), "{:?}", ctx.failure);
    let (d, mut at) = (model.shape().d_model, 0);
    let logprobs = texts.iter().map(|t| {
        let rows = &hidden[at * d..][..t.ids.len() * d];
        at += t.ids.len();
        let mut logits = vec![0.0; t.ids.len() * model.head().outputs()];
        ctx.device.linear(rows, model.head(), Epilogue::Store, &mut logits);
        let rows = logits.chunks_exact(model.head().outputs());
        let of = |(logits, &next): (&[f32], &u32)| f64::from(logits[next as usize] - log_sum_exp(logits));
        rows.zip(&t.ids[1..]).map(of).collect()
    });
    let logprobs = logprobs.collect();
    Found {
        hidden,
        routes,
        logprobs,
    }
}

/// One token after the other, in rows of their own, in turns of all texts.
fn one_by_one(model: &mut dyn Model, ctx: &mut Context, texts: &[Text]) -> Vec<f32> {
    let (d, rows) = (model.shape().d_model, texts.iter().map(|t| t.first + t.ids.len()).max());
    let mut caches = Caches::new(model.cache_type(), model.shape(), rows.unwrap_or(0), 0);
    let mut hidden = vec![0.0; rows.unwrap_or(0) * d];
    for i in 0..texts.iter().map(|t| t.ids.len()).max().unwrap_or(0) {
        let table: Vec<Vec<u32>> = texts
            .iter()
            .map(|t| (t.first..=t.first + i).map(|r| r as u32).collect())
            .collect();
        let longer = || texts.iter().zip(&table).filter(|(t, _)| i < t.ids.len());
        let row = |(n, (t, table)): (usize, (&Text, &'_ Vec<u32>))| (t.first + i, n, t.ids[i], table.clone());
        let wanted: Vec<(usize, usize, u32, Vec<u32>)> = longer().enumerate().map(row).collect();
        let rows: Vec<DecodeRow> = wanted
            .iter()
            .map(|(row, _, token, table)| DecodeRow {
                token: *token,
                position: i,
                row: *row,
                keys: KeyRows::Table(table),
                source: (0, 0),
            })
            .collect();
        let found = model.decode(ctx, &rows, &mut caches);
        for (row, n, ..) in &wanted {
            hidden[row * d..][..d].copy_from_slice(&found[n * d..][..d]);
        }
    }
    hidden
}

/// The bits of what the model in a folder makes of a text.
pub fn hidden(dir: &Path, ids: &[u32]) -> Vec<u32> {
    let text = Text {
        item: 0,
        ids: ids.to_vec(),
        first: 0,
    };
    let found = threads::run(1, |comm| {
        let (device, mut model) = (device(1), load(dir, Dtype::F32, 0, 1));
        let shape = model.shape();
        let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
        together(model.as_mut(), &mut ctx, std::slice::from_ref(&text)).hidden
    });
    bits(&found.concat())
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|x| x.to_bits()).collect()
}

/// One rank of `comm` with every `size`-th of the first `most` texts.
fn on_rank(golden: &Golden, comm: &dyn Comm, dtype: Dtype, most: usize) -> Vec<(usize, Vec<u32>)> {
    let (device, mut model) = (device(1), golden.load_as(dtype, comm.rank(), comm.size()));
    let shape = model.shape();
    let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
    let d = shape.d_model;
    let own = texts(golden).into_iter().take(most);
    let mut own = own.skip(comm.rank()).step_by(comm.size()).collect::<Vec<_>>();
    let mut first = 0;
    for text in &mut own {
        text.first = first;
        first += text.ids.len();
    }
    let found = together(model.as_mut(), &mut ctx, &own);
    let hidden = |t: &Text| (t.item, bits(&found.hidden[t.first * d..][..t.ids.len() * d]));
    own.iter().map(hidden).collect()
}

/// Reads a prompt but for its last token, and appends the likeliest token until one ends the text.
fn greedy(model: &mut dyn Model, ctx: &mut Context, prompt: &[u32], eos: &[u32], most: usize) -> Vec<u32> {
    let mut caches = Caches::new(model.cache_type(), model.shape(), 3 + prompt.len() + most, 0);
    let (before, mut last) = (&prompt[..prompt.len() - 1], prompt[prompt.len() - 1]);
    model.read(
        ctx,
        &[SourceRow {
            ids: before,
            before: 0,
            first: 3,
        }],
        &mut caches,
    );
    let mut found = Vec::new();
    while found.len() < most {
        let position = before.len() + found.len();
        let row = DecodeRow {
            token: last,
            position,
            row: 3 + position,
            keys: KeyRows::Range(3, position + 1),
            source: (0, 0),
        };
        let hidden = model.decode(ctx, &[row], &mut caches).to_vec();
        let mut logits = vec![0.0; model.head().outputs()];
        ctx.device.linear(&hidden, model.head(), Epilogue::Store, &mut logits);
        let mut best = Vec::new();
        top_k(&logits, 1, &mut best).expect("no NaN");
        last = best[0].1;
        found.push(last);
        if eos.contains(&last) {
            break;
        }
    }
    found
}

/// The bits of the last token's hidden state behind a prompt that is read in parts of so many tokens.
fn behind_parts(model: &mut dyn Model, ctx: &mut Context, prompt: &[u32], part: usize) -> Vec<u32> {
    let mut caches = Caches::new(model.cache_type(), model.shape(), 3 + prompt.len(), 0);
    let (last, ahead) = prompt.split_last().expect("a prompt has tokens");
    for (i, ids) in ahead.chunks(part).enumerate() {
        let before = i * part;
        model.read(ctx, &[SourceRow { ids, before, first: 3 }], &mut caches);
    }
    let row = DecodeRow {
        token: *last,
        position: ahead.len(),
        row: 3 + ahead.len(),
        keys: KeyRows::Range(3, prompt.len()),
        source: (0, 0),
    };
    bits(model.decode(ctx, &[row], &mut caches))
}

fn play(name: &str) {
    play_up_to(name, usize::MAX);
}

/// With the texts of at most so many tokens.
fn play_up_to(name: &str, most: usize) {
    let Some(golden) = Golden::open(name) else { return };
    let texts: Vec<Text> = texts(&golden).into_iter().take_while(|t| t.ids.len() <= most).collect();
    assert!(texts.len() > 1);
    let eos = golden.architecture().special_tokens().eos.clone();
    let alone = threads::run(1, |comm| {
        let device = device(2);
        let mut model = golden.load(0, 1);
        let shape = model.shape().clone();
        let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
        let found = together(model.as_mut(), &mut ctx, &texts);
        let mut worst = 0f64;
        for (text, logprobs) in texts.iter().zip(&found.logprobs) {
            let item = &golden.items()[text.item];
            let routed = item["routing"].as_object().is_some_and(|all| !all.is_empty());
            let layers = shape.decoder_moe.iter().zip(&found.routes);
            for (module, routes) in layers.filter(|_| routed) {
                same_routes(item, module, 0, &of_text(routes, text));
            }
            let wanted = floats(&item["score"]["logprobs"]);
            assert_eq!(logprobs.len(), wanted.len());
            let gaps = logprobs.iter().zip(&wanted).map(|(a, b)| (a - b).abs());
            let gap = gaps.fold(0.0, f64::max);
            assert!(gap < bound(name), "item {}: {logprobs:?} {wanted:?}", text.item);
            worst = worst.max(gap);
        }
        let slowly = one_by_one(model.as_mut(), &mut ctx, &texts);
        assert_eq!(bits(&slowly), bits(&found.hidden), "one token after the other");
        for text in &texts {
            let item = &golden.items()[text.item];
            let wanted = ids(&item["greedy"]["ids"]);
            let prompt = ids(&item["prompt"]);
            let found = greedy(model.as_mut(), &mut ctx, &prompt, &eos, 32);
            assert_eq!(found, wanted, "greedy of item {}", text.item);
        }
        println!("{name}: largest difference of a log-probability {worst:.1e}");
        parts_make_no_difference(model.as_mut(), &mut ctx, &texts);
        found.hidden
    });
    on_ranks(&golden, &texts, &alone[0], Dtype::F32);
}

fn parts_make_no_difference(model: &mut dyn Model, ctx: &mut Context, texts: &[Text]) {
    for text in texts {
        let whole = behind_parts(model, ctx, &text.ids, text.ids.len());
        for part in [1, 2, 5, 16, 31] {
            let found = behind_parts(model, ctx, &text.ids, part);
            assert_eq!(found, whole, "item {} in parts of {part} tokens", text.item);
        }
    }
}

/// The same bits on two and three ranks as on one.
fn on_ranks(golden: &Golden, texts: &[Text], alone: &[f32], dtype: Dtype) {
    let d = golden.architecture().shape().d_model;
    for ranks in [2, 3] {
        for (item, hidden) in threads::run(ranks, |comm| on_rank(golden, comm, dtype, texts.len())).concat() {
            let text = texts.iter().find(|t| t.item == item).expect("a text");
            let wanted = &alone[text.first * d..][..text.ids.len() * d];
            assert_eq!(hidden, bits(wanted), "{dtype:?}: item {item} on {ranks} ranks");
        }
    }
}

/// The other types: near the reference, and as equal to themselves.
fn roughly(name: &str) {
    let Some(golden) = Golden::open(name) else { return };
    let texts = texts(&golden);
    for dtype in [Dtype::Bf16, Dtype::Int8] {
        let alone = threads::run(1, |comm| {
            let device = device(2);
            let mut model = golden.load_as(dtype, 0, 1);
            let shape = model.shape().clone();
            let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
            let found = together(model.as_mut(), &mut ctx, &texts);
            let slowly = one_by_one(model.as_mut(), &mut ctx, &texts);
            assert_eq!(
                bits(&slowly),
                bits(&found.hidden),
                "{dtype:?}: one token after the other"
            );
            parts_make_no_difference(model.as_mut(), &mut ctx, &texts);
            let logprob: f64 = found.logprobs.iter().flatten().sum();
            let wanted: f64 = texts
                .iter()
                .filter_map(|t| golden.items()[t.item]["score"]["nll"].as_f64())
                .sum();
            println!("{name} {dtype:?}: {} nats, the reference {wanted}", -logprob);
            assert!(
                (logprob + wanted).abs() < 0.05 * wanted,
                "{dtype:?}: {logprob} {wanted}"
            );
            found.hidden
        });
        on_ranks(&golden, &texts, &alone[0], dtype);
    }
}

/// The routes of one text among all.
fn of_text(routes: &Routes, text: &Text) -> Routes {
    let rows = text.first * routes.top_k..(text.first + text.ids.len()) * routes.top_k;
    Routes {
        top_k: routes.top_k,
        experts: routes.experts[rows.clone()].to_vec(),
        weights: routes.weights[rows].to_vec(),
    }
}

#[test]
fn mixtral_s1() {
    play("mixtral-s1");
}

#[test]
fn mixtral_with_windows_in_bf16_shards() {
    play("mixtral-s2-bf16-shard-sw");
}

#[test]
fn mixtral_with_fused_experts() {
    play("mixtral-s3-fused-v5");
}

#[test]
fn olmoe_s1() {
    play("olmoe-s1");
}

#[test]
fn olmoe_clipped_and_renormalised() {
    play("olmoe-s2-clip-norm");
}

#[test]
fn qwen2_moe_s1() {
    play("qwen2_moe-s1");
}

#[test]
fn qwen2_moe_with_dense_layers_and_tied_head() {
    play("qwen2_moe-s2-step2-tied");
}

#[test]
fn qwen3_moe_s1() {
    play("qwen3_moe-s1");
}

#[test]
fn qwen3_moe_in_the_fifth_versions_style() {
    play("qwen3_moe-s2-v5style");
}

#[test]
fn gpt_oss_s1() {
    play("gpt_oss-s1");
}

#[test]
fn gpt_oss_in_bf16() {
    play("gpt_oss-s2-bf16");
}

#[test]
fn deepseek_v2_s1() {
    play("deepseek_v2-s1");
}

#[test]
fn deepseek_v2_lite_with_yarn() {
    play("deepseek_v2-s2-lite-yarn");
}

#[test]
fn deepseek_v3_s1() {
    play("deepseek_v3-s1");
}

#[test]
fn deepseek_v3_with_yarn() {
    play("deepseek_v3-s2-yarn");
}

#[test]
fn granitemoe_s1() {
    play("granitemoe-s1");
}

#[test]
fn granitemoe_untied() {
    play("granitemoe-s2-untied");
}

#[test]
fn phimoe_s1() {
    play("phimoe-s1");
}

#[test]
fn other_types_of_olmoe() {
    roughly("olmoe-s1");
}

#[test]
fn other_types_of_qwen2_moe() {
    roughly("qwen2_moe-s1");
}

#[test]
fn other_types_of_gpt_oss() {
    roughly("gpt_oss-s1");
}

#[test]
fn other_types_of_deepseek_v2() {
    roughly("deepseek_v2-s1");
}

#[test]
fn phimoe_up_to_its_original_positions() {
    play_up_to("phimoe-s2-longrope", 64);
}
