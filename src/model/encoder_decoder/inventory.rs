//! Which tensors an encoder-decoder's checkpoint must hold, of what shape, and to whom each belongs.

use super::spec::{Positions, Spec, Stack, Sublayer};
use crate::model::inventory::{Expected, Owner};

impl Spec {
    /// All tensors of a model, encoder first, each once: the embedding serves encoder, decoder and output.
    pub fn inventory(&self) -> Vec<Expected> {
        let mut list = List {
            spec: self,
            tensors: Vec::new(),
        };
        list.weight(self.names.embedding, self.vocab_size, self.d_model, Owner::Dense);
        let mut moe_layer = 0;
        for stack in Stack::BOTH {
            for (i, &sparse) in self.stack(stack).sparse.iter().enumerate() {
                list.layer(stack, i, sparse.then_some(moe_layer));
                moe_layer += sparse as usize;
            }
            list.norm(&self.names.final_norm(stack));
        }
        list.tensors
    }

    /// Why a tensor inside a layer, absent from the inventory, contradicts the configuration; `None` for one outside.
    pub fn surplus(&self, tensor: &str) -> Option<String> {
        if self.names.unused.contains(&tensor) {
            return None;
        }
        let inside = |stack| {
            Some((
                stack,
                tensor.strip_prefix(&self.names.layers(stack))?.strip_prefix('.')?,
            ))
        };
        let (stack, rest) = Stack::BOTH.into_iter().find_map(inside)?;
        let (layer, part) = rest.split_once('.').unwrap_or((rest, ""));
        let Ok(layer) = layer.parse::<usize>() else {
            return Some("a layer has a number".to_string());
        };
        let sizes = self.stack(stack);
        let Some(&sparse) = sizes.sparse.get(layer) else {
            return Some(format!("`{}` is {}", sizes.layers_key, sizes.sparse.len()));
        };
        let within = self.names.feed_forward(stack).module;
        let is = |what: &str| part.starts_with(&format!("{within}.{what}"));
        Some(if !sparse && (is(self.names.expert) || is(self.names.router)) {
            let (stack, step) = (stack.name(), sizes.sparse_step);
            format!("with `{stack}_sparse_step` {step}, layer {layer} is dense")
        } else if is(self.names.expert) && self.experts > 0 {
            let (all, last) = (self.experts, self.experts - 1);
            format!("`num_experts` is {all}, so experts are numbered 0 to {last}")
        } else if is(self.names.router) && part.ends_with(".bias") {
            "`router_bias` is false".to_string()
        } else {
            let kind = if sparse { "sparse" } else { "dense" };
            format!("a {kind} {} layer of {} has no such part", stack.name(), self.family)
        })
    }
}

/// The list under construction; shapes follow PyTorch's `[out, in]`.
struct List<'a> {
    spec: &'a Spec,
    tensors: Vec<Expected>,
}

impl List<'_> {
    fn push(&mut self, name: String, shape: Vec<usize>, owner: Owner) {
        self.tensors.push(Expected { name, shape, owner });
    }

    fn weight(&mut self, module: &str, rows: usize, columns: usize, owner: Owner) {
        self.push(format!("{module}.weight"), vec![rows, columns], owner);
    }

    fn bias(&mut self, module: &str, rows: usize, owner: Owner) {
        self.push(format!("{module}.bias"), vec![rows], owner);
    }

    fn linear(&mut self, module: &str, rows: usize, columns: usize, owner: Owner) {
        self.weight(module, rows, columns, owner);
        if self.spec.biases {
            self.bias(module, rows, owner);
        }
    }

    fn norm(&mut self, module: &str) {
        let width = self.spec.d_model;
        self.push(format!("{module}.weight"), vec![width], Owner::Dense);
        if self.spec.biases {
            self.bias(module, width, Owner::Dense);
        }
    }

    /// Layer `i` of a stack, of which number it may be among the MoE layers.
    fn layer(&mut self, stack: Stack, i: usize, moe_layer: Option<usize>) {
        let (spec, names) = (self.spec, self.spec.names);
        let (layer, sizes) = (names.layer(stack, i), spec.stack(stack));
        self.attention(&layer, names.own, sizes.attention_width());
        if let (0, Positions::Relative { module, buckets, .. }) = (i, spec.positions) {
            let module = format!("{layer}.{}.{module}", names.own.module);
            self.weight(&module, buckets, sizes.heads, Owner::Dense);
        }
        if stack == Stack::Decoder {
            self.attention(&layer, names.cross, sizes.attention_width());
        }
        let feed_forward = names.feed_forward(stack);
        self.norm(&format!("{layer}.{}", feed_forward.norm));
        let module = format!("{layer}.{}", feed_forward.module);
        let Some(number) = moe_layer else {
            return self.feed_forward(&module, sizes.d_ff, Owner::Dense);
        };
        let router = format!("{module}.{}", names.router);
        self.weight(&router, spec.experts, spec.d_model, Owner::Dense);
        if spec.router_bias {
            self.bias(&router, spec.experts, Owner::Dense);
        }
        for expert in 0..spec.experts {
            let owner = Owner::Expert { layer: number, expert };
            self.feed_forward(&format!("{module}.{}{expert}", names.expert), sizes.d_ff, owner);
        }
    }

    /// Four projections and the norm before them.
    fn attention(&mut self, layer: &str, part: Sublayer, width: usize) {
        let d = self.spec.d_model;
        let [q, k, v, out] = self.spec.names.projections;
        for projection in [q, k, v] {
            self.linear(&format!("{layer}.{}.{projection}", part.module), width, d, Owner::Dense);
        }
        self.linear(&format!("{layer}.{}.{out}", part.module), d, width, Owner::Dense);
        self.norm(&format!("{layer}.{}", part.norm));
    }

    fn feed_forward(&mut self, module: &str, d_ff: usize, owner: Owner) {
        let (d, [up, down]) = (self.spec.d_model, self.spec.names.products);
        self.linear(&format!("{module}.{up}"), d_ff, d, owner);
        self.linear(&format!("{module}.{down}"), d, d_ff, owner);
    }
}
