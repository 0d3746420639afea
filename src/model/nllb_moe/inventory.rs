//! Which tensors an NLLB-MoE checkpoint must hold, of what shape, and to whom each belongs.

use super::config::NllbMoeConfig;
use super::names::{self, Stack};
use crate::model::inventory::{Expected, Owner};

/// All tensors of a model, encoder first, each once: the embedding serves encoder, decoder and output.
pub fn inventory(config: &NllbMoeConfig) -> Vec<Expected> {
    let (d, e) = (config.d_model, config.num_experts);
    let mut list = List(Vec::new());
    list.0.push(Expected {
        name: names::EMBEDDING.to_string(),
        shape: vec![config.vocab_size, d],
        owner: Owner::Dense,
    });
    let mut moe_layer = 0;
    for stack in Stack::BOTH {
        let ffn = config.ffn_dim(stack);
        for i in 0..config.layers(stack) {
            let layer = names::layer(stack, i);
            list.attention(&layer, "self_attn", d);
            if stack == Stack::Decoder {
                list.attention(&layer, "cross_attention", d);
            }
            list.norm(&format!("{layer}.ff_layer_norm"), d);
            if !config.is_sparse(stack, i) {
                list.ffn(&format!("{layer}.ffn"), d, ffn, Owner::Dense);
                continue;
            }
            list.weight(&names::router(&layer), e, d, Owner::Dense);
            if config.router_bias {
                list.bias(&names::router(&layer), e, Owner::Dense);
            }
            for expert in 0..e {
                list.ffn(
                    &names::expert(&layer, expert),
                    d,
                    ffn,
                    Owner::Expert {
                        layer: moe_layer,
                        expert,
                    },
                );
            }
            moe_layer += 1;
        }
        list.norm(&names::final_norm(stack), d);
    }
    list.0
}

/// Why a tensor inside a layer, absent from the inventory, contradicts the configuration; `None` for one outside.
pub fn surplus(name: &str, config: &NllbMoeConfig) -> Option<String> {
    for stack in Stack::BOTH {
        let Some(rest) = name.strip_prefix(&format!("model.{}.layers.", stack.name())) else {
            continue;
        };
        let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
        let Ok(layer) = layer.parse::<usize>() else {
            return Some("a layer has a number".to_string());
        };
        let key = stack.name();
        if layer >= config.layers(stack) {
            return Some(format!("`{key}_layers` is {}", config.layers(stack)));
        }
        let sparse = config.is_sparse(stack, layer);
        let routed = part.starts_with("ffn.experts.") || part.starts_with("ffn.router.");
        return Some(if routed && !sparse {
            let step = if stack == Stack::Encoder {
                config.encoder_sparse_step
            } else {
                config.decoder_sparse_step
            };
            format!("with `{key}_sparse_step` {step}, layer {layer} is dense")
        } else if part.starts_with("ffn.experts.") {
            format!(
                "`num_experts` is {}, so experts are numbered 0 to {}",
                config.num_experts,
                config.num_experts - 1
            )
        } else if part == "ffn.router.classifier.bias" {
            "`router_bias` is false".to_string()
        } else {
            format!(
                "an NLLB-MoE {} layer has no such part",
                if sparse { "sparse" } else { "dense" }
            )
        });
    }
    None
}

/// The list under construction; shapes follow PyTorch's `[out, in]`.
struct List(Vec<Expected>);

impl List {
    fn weight(&mut self, module: &str, rows: usize, columns: usize, owner: Owner) {
        self.0.push(Expected {
            name: names::weight(module),
            shape: vec![rows, columns],
            owner,
        });
    }

    fn bias(&mut self, module: &str, rows: usize, owner: Owner) {
        self.0.push(Expected {
            name: names::bias(module),
            shape: vec![rows],
            owner,
        });
    }

    fn linear(&mut self, module: &str, rows: usize, columns: usize, owner: Owner) {
        self.weight(module, rows, columns, owner);
        self.bias(module, rows, owner);
    }

    fn norm(&mut self, module: &str, width: usize) {
        self.0.push(Expected {
            name: names::weight(module),
            shape: vec![width],
            owner: Owner::Dense,
        });
        self.bias(module, width, Owner::Dense);
    }

    /// Four projections and the norm before them.
    fn attention(&mut self, layer: &str, kind: &str, width: usize) {
        for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            self.linear(&format!("{layer}.{kind}.{projection}"), width, width, Owner::Dense);
        }
        self.norm(&format!("{layer}.{kind}_layer_norm"), width);
    }

    fn ffn(&mut self, module: &str, width: usize, inner: usize, owner: Owner) {
        self.linear(&format!("{module}.fc1"), inner, width, owner);
        self.linear(&format!("{module}.fc2"), width, inner, owner);
    }
}
