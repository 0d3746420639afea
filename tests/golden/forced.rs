//! Teacher forcing: log-probabilities and routes of given targets against the reference's.

use crate::{device, dropped, floats, ids, Golden};
use serde_json::Value;
use sluicegate::comm::threads;
use sluicegate::device::{log_sum_exp, Epilogue, KeyRows};
use sluicegate::model::cache::{Caches, DecodeRow, SourceRow};
use sluicegate::model::Model;
use sluicegate::moe::gate::Routes;
use sluicegate::moe::Context;

/// What the reference's router of an MoE layer did with an item.
fn routing<'a>(item: &'a Value, module: &str) -> &'a Value {
    let all = item["routing"].as_object().expect("routing");
    let of = all.iter().find(|(router, _)| router.contains(&format!("{module}.")));
    of.unwrap_or_else(|| panic!("no routing of {module}")).1
}

/// Compares the routes of a run of tokens with the golden's: the same experts; equal weights.
pub fn same_routes(item: &Value, module: &str, at: usize, routes: &Routes) {
    let wanted = routing(item, module);
    for t in 0..routes.tokens() {
        let row = t * routes.top_k..(t + 1) * routes.top_k;
        let chosen: Vec<(u32, f64)> = row.map(|i| (routes.experts[i], f64::from(routes.weights[i]))).collect();
        let weights = floats(&wanted["w"][at + t]);
        let reference: Vec<(u32, f64)> = ids(&wanted["ids"][at + t]).into_iter().zip(weights).collect();
        assert_eq!(chosen.len(), reference.len());
        for (expert, weight) in reference {
            let found = chosen.iter().find(|c| c.0 == expert).map(|c| c.1);
            assert!(
                found.is_some_and(|w| (w - weight).abs() < 1e-4),
                "{module}, token {}: {chosen:?}, {expert} {weight}",
                at + t
            );
        }
    }
}

/// Log-probabilities of an item's labels, token by token; routes are checked on the way.
fn score(golden: &Golden, model: &mut dyn Model, ctx: &mut Context, item: &Value) -> Vec<f64> {
    let (source, labels) = (ids(&item["score"]["src"]), ids(&item["score"]["labels"]));
    let start = golden.token("decoder_start_token_id").expect("a start token");
    let pad = golden.token("pad_token_id");
    let mut caches = Caches::new(model.cache_type(), model.shape(), labels.len(), source.len());
    let (encoder, decoder) = (model.shape().encoder_moe.clone(), model.shape().decoder_moe.clone());
    model.read(
        ctx,
        &[SourceRow {
            ids: &source,
            before: 0,
            first: 0,
        }],
        &mut caches,
    );
    let routes = ctx.routes.clone().expect("routes are kept");
    encoder
        .iter()
        .zip(&routes)
        .for_each(|(module, r)| same_routes(item, module, 0, r));
    let mut found = Vec::new();
    for (position, &label) in labels.iter().enumerate() {
        let token = if position == 0 { start } else { labels[position - 1] };
        let (keys, source) = (KeyRows::Range(0, position + 1), (0, source.len()));
        // The reference gives padding tokens typed in the text no position of their own.
        let before = labels[..position].iter().take(position.saturating_sub(1));
        let numbered = before.filter(|&&l| Some(l) != pad).count() + (position > 0) as usize;
        let row = DecodeRow {
            token,
            position: numbered,
            row: position,
            keys,
            source,
        };
        let hidden = model.decode(ctx, &[row], &mut caches).to_vec();
        let routes = ctx.routes.clone().expect("routes are kept");
        let in_decoder = decoder.iter().zip(&routes[encoder.len()..]);
        in_decoder.for_each(|(module, r)| same_routes(item, module, position, r));
        let mut logits = vec![0.0; model.head().outputs()];
        ctx.device.linear(&hidden, model.head(), Epilogue::Store, &mut logits);
        found.push(f64::from(logits[label as usize] - log_sum_exp(&logits)));
    }
    found
}

/// Compares all items but those, `exempt` of them, of which the reference drops tokens.
fn play(name: &str, exempt: usize) {
    let Some(golden) = Golden::open(name) else { return };
    let whole: Vec<&Value> = golden.items().iter().filter(|item| !dropped(item, "")).collect();
    assert_eq!(golden.items().len() - whole.len(), exempt);
    threads::run(1, |comm| {
        let device = device(2);
        let mut model = golden.load(0, 1);
        let shape = model.shape();
        let mut ctx = Context::new(&device, comm, shape.moe_layers(), shape.experts, true);
        let mut worst = 0f64;
        for (i, item) in whole.iter().enumerate() {
            let found = score(&golden, model.as_mut(), &mut ctx, item);
            let wanted = floats(&item["score"]["logprobs"]);
            assert_eq!(found.len(), wanted.len());
            let gap = found
                .iter()
                .zip(&wanted)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(gap < 1e-4, "item {i}: {found:?} {wanted:?}");
            worst = worst.max(gap);
        }
        println!("{name}: largest difference of a log-probability {worst:.1e}");
    });
}

#[test]
fn nllb_moe_s1_gives_the_references_log_probabilities_and_routes() {
    play("nllb-moe-s1", 0);
}

#[test]
fn nllb_moe_s2_gives_the_references_log_probabilities_and_routes() {
    play("nllb-moe-s2-bf16-shard-bias", 0);
}

#[test]
fn switch_s1_gives_the_references_log_probabilities_and_routes() {
    play("switch-s1", 0);
}

#[test]
fn switch_s3_gives_the_references_log_probabilities_and_routes() {
    play("switch-s3-shard", 1);
}

/// The reference drops what an expert gets beyond 4 tokens of a sentence; here nothing is dropped.
#[test]
fn where_switch_drops_tokens_the_user_is_told_and_the_rest_is_the_references() {
    let Some(golden) = Golden::open("switch-s2-drop4") else {
        return;
    };
    let warnings = golden.architecture().warnings();
    assert!(
        warnings.iter().any(|w| w.contains("`expert_capacity` is 4")),
        "{warnings:?}"
    );
    play("switch-s2-drop4", 18);
}
