//! The tensors of a decoder-only checkpoint.

use super::spec::{Attention, NormKind, QkNorm, Spec, Storage};
use crate::model::inventory::{Expected, Owner};

/// The embedding, `[vocab_size, d_model]`.
pub const EMBEDDING: &str = "model.embed_tokens";
/// The output projection where it is not the embedding alone, `[vocab_size, d_model]`.
pub const HEAD: &str = "lm_head";
/// The norm behind the last layer.
pub const NORM: &str = "model.norm";

/// Layer `i`.
pub fn layer(i: usize) -> String {
    format!("model.layers.{i}")
}

/// Whether the output projection has weights of its own in the checkpoint. It may though the configuration says that it is the
/// embedding; they count then, as they do in the reference.
pub fn has_head(spec: &Spec, stored: &dyn Fn(&str) -> bool) -> bool {
    !spec.tied || stored(&format!("{HEAD}.weight"))
}

/// All tensors that the description asks for, each once. `stored` says whether the checkpoint has one of a name, as experts
/// are stored in several forms.
pub fn inventory(spec: &Spec, stored: &dyn Fn(&str) -> bool) -> Vec<Expected> {
    let d = spec.d_model;
    let mut list = List {
        expected: Vec::new(),
        stored,
        norm_bias: spec.norm == NormKind::Layer,
    };
    list.plain(&format!("{EMBEDDING}.weight"), &[spec.vocab_size, d]);
    for (i, what) in spec.layers.iter().enumerate() {
        let layer = layer(i);
        list.norm(&format!("{layer}.input_layernorm"), d);
        list.attention(&format!("{layer}.self_attn"), spec);
        list.norm(&format!("{layer}.post_attention_layernorm"), d);
        match what.dense {
            Some(width) => list.gated(&format!("{layer}.mlp"), d, width, Owner::Dense),
            None => list.sparse(spec, i),
        }
    }
    list.norm(NORM, d);
    if has_head(spec, stored) {
        list.linear(HEAD, spec.vocab_size, d, spec.head_bias);
    }
    list.expected
}

/// Why a tensor inside a layer, absent from the inventory, contradicts the description; `None` for one that may be passed
/// over.
pub fn surplus(spec: &Spec, name: &str) -> Option<String> {
    if name == format!("{HEAD}.bias") {
        return Some("config.json has no `lm_head_bias`".to_string());
    }
    let rest = name.strip_prefix("model.layers.")?;
    let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
    let Ok(layer) = layer.parse::<usize>() else {
        return Some("a layer has a number".to_string());
    };
    let layers = spec.layers.len();
    let further = layers..layers + spec.further_layers;
    if further.contains(&layer) || part.ends_with("rotary_emb.inv_freq") {
        return None;
    }
    Some(match spec.layers.get(layer) {
        None => format!("`num_hidden_layers` is {layers}"),
        Some(what) if part.contains(".experts.") && what.dense.is_some() => {
            format!("as config.json has it, layer {layer} is dense")
        }
        Some(_) if part.contains(".experts.") => {
            format!("config.json has {} experts a layer, numbered from 0", spec.moe.experts)
        }
        Some(what) => {
            let kind = if what.dense.is_some() { "dense" } else { "sparse" };
            format!(
                "a {kind} layer of {} has no such part as config.json has it",
                spec.family
            )
        }
    })
}

/// The list under construction; shapes follow PyTorch's `[out, in]`.
struct List<'a> {
    expected: Vec<Expected>,
    stored: &'a dyn Fn(&str) -> bool,
    norm_bias: bool,
}

impl List<'_> {
    fn push(&mut self, name: String, shape: &[usize], owner: Owner) {
        self.expected.push(Expected {
            name,
            shape: shape.to_vec(),
            owner,
        });
    }

    fn plain(&mut self, name: &str, shape: &[usize]) {
        self.push(name.to_string(), shape, Owner::Dense);
    }

    fn weight(&mut self, module: &str, rows: usize, columns: usize, owner: Owner) {
        self.push(format!("{module}.weight"), &[rows, columns], owner);
    }

    fn linear(&mut self, module: &str, rows: usize, columns: usize, bias: bool) {
        self.weight(module, rows, columns, Owner::Dense);
        if bias {
            self.plain(&format!("{module}.bias"), &[rows]);
        }
    }

    fn norm(&mut self, module: &str, width: usize) {
        self.plain(&format!("{module}.weight"), &[width]);
        if self.norm_bias {
            self.plain(&format!("{module}.bias"), &[width]);
        }
    }

    fn gated(&mut self, module: &str, d: usize, width: usize, owner: Owner) {
        self.weight(&format!("{module}.gate_proj"), width, d, owner);
        self.weight(&format!("{module}.up_proj"), width, d, owner);
        self.weight(&format!("{module}.down_proj"), d, width, owner);
    }

    fn attention(&mut self, name: &str, spec: &Spec) {
        let d = spec.d_model;
        let part = |part: &str| format!("{name}.{part}");
        match spec.attention {
            Attention::Grouped(a) => {
                let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
                self.linear(&part("q_proj"), q, d, a.qkv_bias);
                self.linear(&part("k_proj"), kv, d, a.qkv_bias);
                self.linear(&part("v_proj"), kv, d, a.qkv_bias);
                self.linear(&part("o_proj"), d, q, a.out_bias);
                let norms = match a.qk_norm {
                    QkNorm::None => None,
                    QkNorm::Whole => Some([q, kv]),
                    QkNorm::Heads => Some([a.head_dim; 2]),
                };
                if let Some([q, k]) = norms {
                    self.plain(&part("q_norm.weight"), &[q]);
                    self.plain(&part("k_norm.weight"), &[k]);
                }
                if a.sinks {
                    self.plain(&part("sinks"), &[a.heads]);
                }
            }
            Attention::Latent(a) => {
                let q = a.heads * (a.nope + a.rope);
                match a.q_lora {
                    Some(rank) => {
                        self.linear(&part("q_a_proj"), rank, d, a.bias);
                        self.plain(&part("q_a_layernorm.weight"), &[rank]);
                        self.linear(&part("q_b_proj"), q, rank, false);
                    }
                    None => self.linear(&part("q_proj"), q, d, false),
                }
                self.linear(&part("kv_a_proj_with_mqa"), a.kv_lora + a.rope, d, a.bias);
                self.plain(&part("kv_a_layernorm.weight"), &[a.kv_lora]);
                self.linear(&part("kv_b_proj"), a.heads * (a.nope + a.value), a.kv_lora, false);
                self.linear(&part("o_proj"), d, a.heads * a.value, a.bias);
            }
        }
    }

    fn sparse(&mut self, spec: &Spec, i: usize) {
        let (layer, moe, d) = (layer(i), &spec.moe, spec.d_model);
        let names = spec.moe_names(self.stored);
        let module = format!("{layer}.{}", names.module);
        let (e, width) = (moe.experts, moe.width);
        let index = spec.sparse().take_while(|&sparse| sparse < i).count();
        let all = Owner::Experts { layer: index };
        let router = format!("{module}.{}", names.router);
        let interleaved = matches!(names.storage, Storage::Interleaved | Storage::Mxfp4);
        self.linear(&router, e, d, interleaved);
        if matches!(moe.rule, crate::moe::gate::Rule::Sigmoid { .. }) {
            self.plain(&format!("{router}.e_score_correction_bias"), &[e]);
        }
        let of = |part: &str| format!("{module}.{part}");
        match names.storage {
            Storage::Each {
                names: [gate, up, down],
            } => {
                for expert in 0..e {
                    let owner = Owner::Expert { layer: index, expert };
                    let of = |part: &str| format!("{module}.experts.{expert}.{part}");
                    self.weight(&of(gate), width, d, owner);
                    self.weight(&of(up), width, d, owner);
                    self.weight(&of(down), d, width, owner);
                }
            }
            Storage::Stacked { names: [gate_up, down] } => {
                self.push(of(gate_up), &[e, 2 * width, d], all);
                self.push(of(down), &[e, d, width], all);
            }
            Storage::Interleaved => {
                self.push(of("experts.gate_up_proj"), &[e, d, 2 * width], all);
                self.push(of("experts.down_proj"), &[e, width, d], all);
            }
            Storage::Mxfp4 => {
                self.push(of("experts.gate_up_proj"), &[e, 2 * width, d], all);
                self.push(of("experts.down_proj"), &[e, d, width], all);
            }
        }
        if interleaved {
            self.push(of("experts.gate_up_proj_bias"), &[e, 2 * width], all);
            self.push(of("experts.down_proj_bias"), &[e, d], all);
        }
        if let Some(shared) = moe.shared {
            self.gated(&format!("{layer}.{}", shared.name), d, shared.width, Owner::Dense);
            if let Some(gate) = shared.gate {
                self.weight(&format!("{layer}.{gate}"), 1, d, Owner::Dense);
            }
        }
    }
}
