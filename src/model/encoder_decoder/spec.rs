//! What sets the encoder-decoder families apart: names and sizes. Inventory and weights follow from these.

use crate::model::Shape;
use crate::moe::gate::Rule;

/// Which half of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stack {
    /// Reads the source.
    Encoder,
    /// Writes the target.
    Decoder,
}

impl Stack {
    /// Both, in the order in which MoE layers are counted.
    pub const BOTH: [Stack; 2] = [Stack::Encoder, Stack::Decoder];

    /// `encoder` or `decoder`.
    pub fn name(self) -> &'static str {
        match self {
            Stack::Encoder => "encoder",
            Stack::Decoder => "decoder",
        }
    }
}

/// A sublayer's module and the norm before it, within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sublayer {
    /// The module.
    pub module: &'static str,
    /// The norm.
    pub norm: &'static str,
}

/// What a family calls its modules; a module's tensors are its `.weight` and its `.bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// Embedding, `[vocab_size, d_model]`.
    pub embedding: &'static str,
    /// What stands before `encoder` and `decoder`.
    pub root: &'static str,
    /// The layers of a stack.
    pub layers: &'static str,
    /// The norm behind a stack's last layer.
    pub final_norm: &'static str,
    /// Attention of a stack's tokens to each other.
    pub own: Sublayer,
    /// Attention of the decoder to the source.
    pub cross: Sublayer,
    /// Queries, keys, values and output of an attention.
    pub projections: [&'static str; 4],
    /// Feed-forward sublayers of encoder and decoder.
    pub feed_forward: [Sublayer; 2],
    /// First and second product of a feed-forward layer or an expert.
    pub products: [&'static str; 2],
    /// Router `[experts, d_model]` within a sparse feed-forward layer.
    pub router: &'static str,
    /// An expert within a sparse feed-forward layer, its number aside.
    pub expert: &'static str,
    /// Tensors inside the layers that checkpoints may hold and the reference passes over.
    pub unused: &'static [&'static str],
}

impl Names {
    /// The layers of a stack: what their names begin with.
    pub fn layers(&self, stack: Stack) -> String {
        format!("{}{}.{}", self.root, stack.name(), self.layers)
    }

    /// Layer `i` of a stack.
    pub fn layer(&self, stack: Stack, i: usize) -> String {
        format!("{}.{i}", self.layers(stack))
    }

    /// A sparse layer in messages and results.
    pub fn moe_layer(&self, stack: Stack, i: usize) -> String {
        format!("{}.{}.{i}", stack.name(), self.layers)
    }

    /// The norm behind a stack's last layer.
    pub fn final_norm(&self, stack: Stack) -> String {
        format!("{}{}.{}", self.root, stack.name(), self.final_norm)
    }

    /// The feed-forward sublayer of a stack's layers.
    pub fn feed_forward(&self, stack: Stack) -> Sublayer {
        self.feed_forward[stack as usize]
    }
}

/// Where positions come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Sinusoids added to embeddings; the padding token has none.
    Sinusoids {
        /// The padding token.
        pad: u32,
    },
    /// A bias on the scores of self-attention by relative position, as T5 has it: `[buckets, heads]`, held by the first
    /// layer of each stack for all of them.
    Relative {
        /// The module of the biases within the first layer's self-attention.
        module: &'static str,
        /// Buckets of relative positions.
        buckets: usize,
        /// Distance from which on all share a bucket.
        max_distance: usize,
    },
}

/// Sizes of one half.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSpec {
    /// Of each layer, whether it is sparse: has a router and experts in place of one feed-forward layer.
    pub sparse: Vec<bool>,
    /// Inner width of feed-forward layers, dense and expert alike.
    pub d_ff: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on `q . k`.
    pub attention_scale: f32,
    /// The key of `config.json` that says how many layers there are.
    pub layers_key: &'static str,
    /// Every how many layers one is sparse, as `config.json` has it.
    pub sparse_step: usize,
}

impl StackSpec {
    /// Width of queries, keys or values of all heads.
    pub fn attention_width(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// All that sets a model apart from others of its kind.
#[derive(Clone, Debug)]
pub struct Spec {
    /// `model_type`.
    pub family: &'static str,
    /// What modules are called.
    pub names: &'static Names,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Where positions come from.
    pub positions: Positions,
    /// Whether norms are layer norms and all products have a bias; otherwise norms are root-mean-square norms and none
    /// has.
    pub biases: bool,
    /// Added to the variance in norms.
    pub eps: f32,
    /// The encoder.
    pub encoder: StackSpec,
    /// The decoder; its self- and cross-attention have the same sizes.
    pub decoder: StackSpec,
    /// Experts of each sparse layer.
    pub experts: usize,
    /// The rule that chooses them.
    pub rule: Rule,
    /// Whether routers have a bias.
    pub router_bias: bool,
    /// Factor on the outputs of sparse layers.
    pub moe_scale: f32,
    /// Factor on the hidden states that the output projection takes, which is the embedding.
    pub head_scale: f32,
}

impl Spec {
    /// One half.
    pub fn stack(&self, stack: Stack) -> &StackSpec {
        match stack {
            Stack::Encoder => &self.encoder,
            Stack::Decoder => &self.decoder,
        }
    }

    /// The sparse layers in the order in which MoE layers are counted: encoder first.
    pub fn moe_layers(&self) -> Vec<(Stack, usize)> {
        let of = |stack| (0..self.stack(stack).sparse.len()).map(move |i| (stack, i));
        let all = Stack::BOTH.into_iter().flat_map(of);
        all.filter(|&(stack, i)| self.stack(stack).sparse[i]).collect()
    }

    /// The sizes that jobs need.
    pub fn shape(&self) -> Shape {
        let names = |wanted: Stack| {
            let all = self.moe_layers().into_iter().filter(|(stack, _)| *stack == wanted);
            all.map(|(stack, i)| self.names.moe_layer(stack, i)).collect()
        };
        Shape {
            encoder: true,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            layers: self.decoder.sparse.len(),
            cache_row: [self.decoder.attention_width(); 2],
            attention: 2 * self.decoder.attention_width(),
            attention_scratch: 0,
            encoder_moe: names(Stack::Encoder),
            decoder_moe: names(Stack::Decoder),
            experts: self.experts,
            top_k: self.rule.top_k(),
            d_ff: self.encoder.d_ff.max(self.decoder.d_ff),
            d_dense: [&self.encoder, &self.decoder]
                .into_iter()
                .filter(|stack| stack.sparse.contains(&false))
                .map(|stack| stack.d_ff)
                .max()
                .unwrap_or(0),
            unnumbered: match self.positions {
                Positions::Sinusoids { pad } => Some(pad),
                Positions::Relative { .. } => None,
            },
            positions: None,
            computed: None,
        }
    }
}
