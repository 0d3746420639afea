//! Descriptions that families make of the hub's `config.json`, and of absurd ones.

use super::config::Config;
use super::rope::Scaling;
use super::spec::{Attention, Family, QkNorm, Spec};
use crate::device::Activation;
use crate::model::{
    self, deepseek, deepseek_v2, deepseek_v3, gpt_oss, granitemoe, mixtral, olmoe, phimoe, qwen2_moe, qwen3_moe,
};
use crate::moe::gate::{Groups, Rule};
use anyhow::Result;
use serde_json::{json, Value};
use std::path::Path;

fn read(config: &Value, family: &Family) -> Result<Spec> {
    Spec::read(&Config::new(config, Path::new("m/config.json"))?, family)
}

/// A small configuration of what all families have.
fn small() -> Value {
    json!({
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_hidden_layers": 4,
        "num_key_value_heads": 2, "vocab_size": 700, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
        "num_experts_per_tok": 2, "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8,
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, "eos_token_id": 2, "bos_token_id": 1,
        "sliding_window": 16, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 12, "n_shared_experts": 2, "first_k_dense_replace": 1, "n_group": 4, "topk_group": 2,
    })
}

fn with(key: &str, value: Value) -> Value {
    let mut config = small();
    config[key] = value;
    config
}

const ALL: [&Family; 10] = [
    &mixtral::FAMILY,
    &olmoe::FAMILY,
    &qwen2_moe::FAMILY,
    &qwen3_moe::FAMILY,
    &gpt_oss::FAMILY,
    &deepseek::FAMILY,
    &deepseek_v2::FAMILY,
    &deepseek_v3::FAMILY,
    &granitemoe::FAMILY,
    &phimoe::FAMILY,
];

#[test]
fn every_family_is_known_by_its_name() {
    for family in ALL {
        let name = family.name;
        assert_eq!(read(&small(), family).unwrap().family, name);
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("config.json"),
            with("model_type", json!(name)).to_string(),
        )
        .unwrap();
        assert_eq!(model::read_config(dir.path()).unwrap().family(), name);
    }
}

#[test]
fn each_bad_value_is_named_by_its_key() {
    let all = [
        "mixtral",
        "olmoe",
        "qwen2_moe",
        "qwen3_moe",
        "gpt_oss",
        "deepseek",
        "deepseek_v2",
        "deepseek_v3",
    ];
    let qwen = &["qwen2_moe", "qwen3_moe"][..];
    let latent = &["deepseek_v2", "deepseek_v3"][..];
    let cases: [(&[&str], &str, Value); 41] = [
        (&all, "hidden_act", json!("gelu")),
        (&all, "hidden_size", json!(null)),
        (&all, "hidden_size", json!(0)),
        (&all, "num_hidden_layers", json!(1 << 20)),
        (&all, "vocab_size", json!(-1)),
        (&all, "num_experts_per_tok", json!(9)),
        (&all, "rms_norm_eps", json!(-1.0)),
        (&all, "eos_token_id", json!(700)),
        (&all, "eos_token_id", json!([2, 700])),
        (&all, "bos_token_id", json!("one")),
        (&all, "rope_theta", json!(0.5)),
        (&all, "tie_word_embeddings", json!(1)),
        (&all[..6], "num_key_value_heads", json!(3)),
        (&all[..6], "num_attention_heads", json!(6)),
        (&all[..6], "head_dim", json!(15)),
        (&all, "rope_scaling", json!({"rope_type": "llama3", "factor": 2.0})),
        (&["mixtral"], "sliding_window", json!("wide")),
        (&["olmoe"], "clip_qkv", json!(-1.0)),
        (&["olmoe"], "norm_topk_prob", json!("no")),
        (&["qwen2_moe"], "use_sliding_window", json!(true)),
        (
            &["qwen2_moe"],
            "layer_types",
            json!([
                "full_attention",
                "full_attention",
                "full_attention",
                "sliding_attention"
            ]),
        ),
        (&["qwen2_moe"], "shared_expert_intermediate_size", json!(null)),
        (qwen, "decoder_sparse_step", json!(0)),
        (qwen, "mlp_only_layers", json!([-1])),
        (qwen, "moe_intermediate_size", json!(null)),
        (&["gpt_oss"], "sliding_window", json!(null)),
        (&["gpt_oss"], "layer_types", json!(["full_attention"])),
        (&["gpt_oss"], "swiglu_limit", json!(0.0)),
        (&["deepseek", "deepseek_v2"], "scoring_func", json!("sigmoid")),
        (&["deepseek_v3"], "scoring_func", json!("softmax")),
        (&["deepseek_v3"], "topk_method", json!("greedy")),
        (&["deepseek_v3"], "n_group", json!(3)),
        (&["deepseek_v3"], "n_group", json!(8)),
        (&["deepseek_v3"], "topk_group", json!(9)),
        (&["deepseek_v2"], "topk_method", json!("noaux_tc")),
        (&["deepseek_v2"], "mlp_bias", json!(true)),
        (&["deepseek", "deepseek_v2", "deepseek_v3"], "moe_layer_freq", json!(2)),
        (
            &["deepseek", "deepseek_v2", "deepseek_v3"],
            "first_k_dense_replace",
            json!(-1),
        ),
        (latent, "kv_lora_rank", json!(null)),
        (latent, "qk_rope_head_dim", json!(7)),
        (latent, "q_lora_rank", json!(0)),
    ];
    for (families, key, value) in cases {
        for family in ALL.iter().filter(|family| families.contains(&family.name)) {
            let name = family.name;
            let found = read(&with(key, value.clone()), family);
            let error = format!("{:#}", found.expect_err(&format!("{name}: {key} = {value}")));
            let named = if key == "rope_scaling" { "rope_type" } else { key };
            assert!(
                error.contains("m/config.json") && error.contains(&format!("`{named}`")),
                "{name}: {error}"
            );
        }
    }
}

#[test]
fn rotary_positions_are_read_in_both_styles() {
    let old = with("rope_theta", json!(5e5));
    let new = with("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5}));
    let [old, new] = [old, new].map(|config| read(&config, &mixtral::FAMILY).unwrap().rope);
    assert_eq!((old.theta, &old), (5e5, &new));
    for key in ["type", "rope_type"] {
        let linear = json!({key: "linear", "factor": 4.0});
        let rope = read(&with("rope_scaling", linear), &qwen3_moe::FAMILY).unwrap().rope;
        assert_eq!(rope.scaling, Scaling::Linear { factor: 4.0 });
    }
    let ratio = json!({"type": "yarn", "original_max_position_embeddings": 64});
    match read(&with("rope_scaling", ratio), &olmoe::FAMILY).unwrap().rope.scaling {
        Scaling::Yarn(yarn) => assert_eq!((yarn.factor, yarn.truncate), (4.0, true)),
        other => panic!("{other:?}"),
    }
    for (key, value) in [
        ("factor", json!(0)),
        ("beta_fast", json!("x")),
        ("partial_rotary_factor", json!(0.5)),
    ] {
        let mut yarn = json!({"type": "yarn", "factor": 2.0});
        yarn[key] = value;
        let error = format!("{:#}", read(&with("rope_scaling", yarn), &olmoe::FAMILY).unwrap_err());
        assert!(
            error.contains("rope_scaling") && error.contains(&format!("`{key}`")),
            "{error}"
        );
    }
    match read(&small(), &gpt_oss::FAMILY).unwrap().rope.scaling {
        Scaling::Yarn(yarn) => assert_eq!((yarn.factor, yarn.original, yarn.truncate), (32.0, 4096, false)),
        other => panic!("{other:?}"),
    }
}

/// What transformers 5.23 and 4.57 take where `config.json` says nothing.
#[test]
fn a_silent_configuration_has_the_reference_s_base_of_rotary_positions() {
    for family in ALL {
        let expected = match family.name {
            "mixtral" | "phimoe" => 1e6,
            "gpt_oss" => 150_000.0,
            _ => 1e4,
        };
        assert_eq!(read(&small(), family).unwrap().rope.theta, expected, "{}", family.name);
    }
}

#[test]
fn a_switch_that_is_null_is_off_whatever_a_missing_one_is() {
    let interleaved = |config: &Value| read(config, &deepseek_v3::FAMILY).unwrap().rope.interleaved;
    assert!(interleaved(&small()) && !interleaved(&with("rope_interleave", json!(null))));
    let renormalises = |config: &Value| match read(config, &deepseek_v3::FAMILY).unwrap().moe.rule {
        Rule::Sigmoid { renormalise, .. } => renormalise,
        other => panic!("{other:?}"),
    };
    assert!(renormalises(&small()) && !renormalises(&with("norm_topk_prob", json!(null))));
    let yarn = json!({"type": "yarn", "factor": 2.0, "truncate": null});
    match read(&with("rope_scaling", yarn), &olmoe::FAMILY).unwrap().rope.scaling {
        Scaling::Yarn(yarn) => assert!(!yarn.truncate),
        other => panic!("{other:?}"),
    }
}

#[test]
fn layers_are_dense_or_have_windows_as_the_configuration_says() {
    let dense = |spec: &Spec| spec.layers.iter().map(|l| l.dense).collect::<Vec<_>>();
    let windows = |spec: &Spec| spec.layers.iter().map(|l| l.window).collect::<Vec<_>>();
    let mut config = with("decoder_sparse_step", json!(2));
    config["mlp_only_layers"] = json!([3]);
    let spec = read(&config, &qwen3_moe::FAMILY).unwrap();
    assert_eq!(dense(&spec), [Some(96), None, Some(96), Some(96)]);
    assert_eq!(spec.shape().decoder_moe, ["layers.1"]);
    assert_eq!(windows(&spec), [None; 4]);
    let sliding = read(&with("use_sliding_window", json!(true)), &qwen3_moe::FAMILY).unwrap();
    assert_eq!(windows(&sliding), [Some(16); 4]);
    assert_eq!(windows(&read(&small(), &mixtral::FAMILY).unwrap()), [Some(16); 4]);
    assert_eq!(
        windows(&read(&small(), &gpt_oss::FAMILY).unwrap()),
        [Some(16), None, Some(16), None]
    );
    assert_eq!(
        dense(&read(&small(), &deepseek_v2::FAMILY).unwrap()),
        [Some(96), None, None, None]
    );
    // A dense layer's inner rows lie beside those of experts: the widest counts, however few layers are dense.
    let sparse = read(&with("first_k_dense_replace", json!(0)), &deepseek_v2::FAMILY).unwrap();
    let [few, none] = [&read(&small(), &deepseek_v2::FAMILY).unwrap(), &sparse].map(Spec::shape);
    assert_eq!((few.d_ff, few.d_dense, none.d_dense), (32, 96, 0));
    assert_eq!(few.activation_bytes() - none.activation_bytes(), 4 * 96);
    let mut silent = small();
    silent.as_object_mut().unwrap().remove("first_k_dense_replace");
    assert_eq!(
        dense(&read(&silent, &deepseek_v3::FAMILY).unwrap()),
        [Some(96), Some(96), Some(96), None]
    );
}

#[test]
fn routing_follows_the_family() {
    let softmax = |renormalise, groups, factor| Rule::Softmax {
        top_k: 2,
        groups,
        renormalise,
        factor,
    };
    let rule = |config: &Value, family| read(config, family).unwrap().moe.rule;
    assert_eq!(rule(&small(), &mixtral::FAMILY), softmax(true, None, 1.0));
    assert_eq!(rule(&small(), &olmoe::FAMILY), softmax(false, None, 1.0));
    assert_eq!(
        rule(&with("norm_topk_prob", json!(true)), &qwen3_moe::FAMILY),
        softmax(true, None, 1.0)
    );
    assert_eq!(rule(&small(), &gpt_oss::FAMILY), softmax(true, None, 1.0));
    let mut v2 = with("topk_method", json!("group_limited_greedy"));
    for (key, value) in [
        ("n_group", json!(4)),
        ("topk_group", json!(2)),
        ("routed_scaling_factor", json!(1.5)),
    ] {
        v2[key] = value;
    }
    v2["norm_topk_prob"] = json!(true);
    let groups = Some(Groups { count: 4, kept: 2 });
    assert_eq!(rule(&v2, &deepseek_v2::FAMILY), softmax(false, groups, 1.5));
    v2["topk_method"] = json!("noaux_tc");
    match rule(&v2, &deepseek_v3::FAMILY) {
        Rule::Sigmoid {
            groups: found,
            renormalise,
            factor,
            ..
        } => assert_eq!((found, renormalise, factor), (groups, true, 1.5)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn attention_and_what_stands_beside_the_experts_follow_the_family() {
    let grouped = |family| match read(&small(), family).unwrap().attention {
        Attention::Grouped(found) => found,
        Attention::Latent(found) => panic!("{found:?}"),
    };
    assert_eq!(
        (grouped(&mixtral::FAMILY).qkv_bias, grouped(&mixtral::FAMILY).qk_norm),
        (false, QkNorm::None)
    );
    assert_eq!(
        (grouped(&olmoe::FAMILY).qk_norm, grouped(&qwen3_moe::FAMILY).qk_norm),
        (QkNorm::Whole, QkNorm::Heads)
    );
    assert_eq!(
        (
            grouped(&qwen2_moe::FAMILY).qkv_bias,
            grouped(&qwen2_moe::FAMILY).out_bias
        ),
        (true, false)
    );
    assert_eq!(
        (grouped(&gpt_oss::FAMILY).out_bias, grouped(&gpt_oss::FAMILY).sinks),
        (true, true)
    );
    assert_eq!(grouped(&mixtral::FAMILY).scale, 0.25);
    // Heads may be wider than the residual stream.
    let wide = read(&with("head_dim", json!(64)), &qwen3_moe::FAMILY).unwrap().shape();
    assert_eq!(
        wide.attention,
        2 * small()["num_attention_heads"].as_u64().unwrap() as usize * 64
    );
    let mut yarn = with(
        "rope_scaling",
        json!({"type": "yarn", "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0}),
    );
    yarn["q_lora_rank"] = json!(null);
    let spec = read(&yarn, &deepseek_v3::FAMILY).unwrap();
    let shape = spec.shape();
    let Attention::Latent(latent) = spec.attention else {
        panic!()
    };
    assert!((latent.scale - 24f32.powf(-0.5) * (0.1 * 40f32.ln() + 1.0).powi(2)).abs() < 1e-6);
    assert_eq!((latent.q_lora, shape.cache_row), (None, [40, 0]));
    // Latent queries of all heads are held for 256 rows, not for all that are read.
    assert!(shape.attention == 0 && shape.attention_scratch >= 256 * latent.heads * 2 * (latent.kv_lora + latent.rope));
    assert!(spec.rope.interleaved && spec.rope.magnitude() == 1.0);
    let shared = |family| {
        read(&small(), family)
            .unwrap()
            .moe
            .shared
            .map(|s| (s.width, s.gate.is_some()))
    };
    assert_eq!(shared(&qwen2_moe::FAMILY), Some((48, true)));
    assert_eq!(shared(&deepseek::FAMILY), Some((64, false)));
    assert_eq!(shared(&olmoe::FAMILY), None);
    let clamped = Activation::ClampedSwish {
        alpha: 1.702,
        limit: 7.0,
    };
    assert_eq!(read(&small(), &gpt_oss::FAMILY).unwrap().moe.activation, clamped);
}

#[test]
fn special_tokens_may_be_several_or_strange() {
    let tokens = |key: &str, value| read(&with(key, value), &qwen3_moe::FAMILY).unwrap().special;
    assert_eq!(tokens("eos_token_id", json!([5, 6])).eos, [5, 6]);
    assert_eq!(tokens("eos_token_id", json!(null)).eos, Vec::<u32>::new());
    assert_eq!(tokens("pad_token_id", json!(-1)).pad, None);
    assert_eq!(tokens("pad_token_id", json!(3)).pad, Some(3));
}

#[test]
fn tensors_without_a_place_are_refused_with_a_reason() {
    let spec = read(&small(), &deepseek_v3::FAMILY).unwrap();
    let why = |name: &str| super::inventory::surplus(&spec, name);
    for (name, reason) in [
        ("lm_head.bias", "`lm_head_bias`"),
        ("model.layers.x.mlp.gate.weight", "number"),
        ("model.layers.9.input_layernorm.weight", "`num_hidden_layers` is 4"),
        ("model.layers.0.mlp.experts.0.up_proj.weight", "layer 0 is dense"),
        ("model.layers.1.mlp.experts.8.up_proj.weight", "8 experts"),
        ("model.layers.1.mlp.gate.bias", "sparse layer of deepseek_v3"),
    ] {
        assert!(
            why(name).is_some_and(|found| found.contains(reason)),
            "{name}: {:?}",
            why(name)
        );
    }
    for name in [
        "lm_head.weight",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
        "model.layers.4.eh_proj.weight",
    ] {
        assert_eq!(why(name), None, "{name}");
    }
}

#[test]
fn a_stored_head_is_asked_for_though_it_is_said_to_be_the_embedding() {
    let tied = read(&with("tie_word_embeddings", json!(true)), &olmoe::FAMILY).unwrap();
    let asked = |spec: &Spec, stored: bool| {
        let all = super::inventory::inventory(spec, &|name| stored && name == "lm_head.weight");
        let head = all.into_iter().find(|t| t.name == "lm_head.weight");
        head.map(|t| t.shape)
    };
    assert_eq!(asked(&tied, false), None);
    assert_eq!(asked(&tied, true), Some(vec![700, 64]));
    let untied = read(&small(), &olmoe::FAMILY).unwrap();
    assert_eq!(asked(&untied, false), Some(vec![700, 64]));
    assert!(super::inventory::surplus(&tied, "lm_head.bias").is_some());
}

#[test]
fn experts_are_found_in_either_form() {
    let spec = read(&small(), &mixtral::FAMILY).unwrap();
    let count = |stored: &dyn Fn(&str) -> bool, part: &str| {
        let all = super::inventory::inventory(&spec, stored);
        all.iter().filter(|t| t.name.contains(part)).count()
    };
    assert_eq!(count(&|_| false, "block_sparse_moe.experts"), 4 * 8 * 3);
    let fused = |name: &str| name.ends_with("mlp.experts.gate_up_proj");
    assert_eq!(
        (count(&fused, "mlp.experts"), count(&fused, "block_sparse_moe")),
        (8, 0)
    );
    assert_eq!(count(&fused, "mlp.gate.weight"), 4);
}
