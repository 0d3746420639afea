//! What a decoder-only family computes, as a plain description.

use super::config::Config;
use super::latent;
use super::rope::Rope;
use crate::device::Activation;
use crate::model::{Shape, SpecialTokens};
use crate::moe::gate::Rule;
use anyhow::Result;

/// A decoder-only model: `h += attention(norm(h))`, `h += feed_forward(norm(h))`, layer by layer, and a norm behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct Spec {
    /// `model_type`.
    pub family: &'static str,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Rows of embedding and output projection.
    pub vocab_size: usize,
    /// Positions that the model was trained for.
    pub positions: Option<usize>,
    /// Special tokens.
    pub special: SpecialTokens,
    /// Kind of all norms of the residual stream.
    pub norm: NormKind,
    /// Added to the variance in them.
    pub eps: f32,
    /// Attention, alike in all layers but for windows.
    pub attention: Attention,
    /// Positions.
    pub rope: Rope,
    /// The layers.
    pub layers: Vec<LayerSpec>,
    /// Experts, alike in all sparse layers.
    pub moe: MoeSpec,
    /// Factor on embeddings.
    pub embedding_scale: f32,
    /// Factor on logits; the last norm's weights take it up.
    pub logits_scale: f32,
    /// Whether the output projection is the embedding, unless the checkpoint has another.
    pub tied: bool,
    /// Whether the output projection has a bias.
    pub head_bias: bool,
    /// Layers behind the last one that a checkpoint may hold, which predict tokens further on.
    pub further_layers: usize,
}

/// A norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square, without a bias.
    Rms,
    /// Mean and variance, with a bias.
    Layer,
}

/// A layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// How many tokens it looks back on, itself included; all if none.
    pub window: Option<usize>,
    /// Inner width of its dense feed-forward part; none if it is sparse.
    pub dense: Option<usize>,
}

/// How keys and values are made.
#[derive(Clone, Debug, PartialEq)]
pub enum Attention {
    /// Grouped-query attention.
    Grouped(Grouped),
    /// Multi-head latent attention.
    Latent(Latent),
}

/// Grouped-query attention (Ainslie et al. 2023).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grouped {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of those of queries.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Whether projections to queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection from the heads has one.
    pub out_bias: bool,
    /// Norms of queries and keys, before they are rotated.
    pub qk_norm: QkNorm,
    /// Where queries, keys and values are cut off (`clip_qkv`).
    pub clip: Option<f32>,
    /// Whether each head has a further logit in its softmax.
    pub sinks: bool,
    /// Factor on scores.
    pub scale: f32,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over all heads together.
    Whole,
    /// Over each head.
    Heads,
}

/// Multi-head latent attention (DeepSeek-V2, section 2.1).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latent {
    /// Heads.
    pub heads: usize,
    /// Width of the latent queries; they are projected at once if none.
    pub q_lora: Option<usize>,
    /// Width of the latent keys and values, which are cached.
    pub kv_lora: usize,
    /// Elements of a head of queries and keys that are not rotated.
    pub nope: usize,
    /// Those that are.
    pub rope: usize,
    /// Elements of a head of values.
    pub value: usize,
    /// Whether the projections from and to the residual stream have biases.
    pub bias: bool,
    /// Factor on scores.
    pub scale: f32,
}

/// The sparse layers' feed-forward part.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeSpec {
    /// Experts of a layer.
    pub experts: usize,
    /// Inner width of an expert.
    pub width: usize,
    /// Which ones a token goes to; a [`Rule::Sigmoid`]'s bias is the checkpoint's.
    pub rule: Rule,
    /// What their gates do.
    pub activation: Activation,
    /// What tensors are called.
    pub names: MoeNames,
    /// A feed-forward part that every token goes through besides.
    pub shared: Option<Shared>,
}

/// Tensors of a sparse layer, as the hub has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MoeNames {
    /// The module, after the layer's.
    pub module: &'static str,
    /// The router, after the module's name.
    pub router: &'static str,
    /// How the experts are stored.
    pub storage: Storage,
}

/// How a layer's experts are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Each in three tensors `experts.{e}.{name}.weight`: gate and up `[width, d_model]`, down `[d_model, width]`.
    Each {
        /// Names of gate, up and down.
        names: [&'static str; 3],
    },
    /// All in two tensors: gates and up projections `[experts, 2 width, d_model]`, gates first, and down projections
    /// `[experts, d_model, width]`.
    Stacked {
        /// Their names.
        names: [&'static str; 2],
    },
    /// GPT-OSS: `experts.gate_up_proj` `[experts, d_model, 2 width]`, gates in even columns, `experts.down_proj` `[experts,
    /// width, d_model]`, and a bias of each.
    Interleaved,
    /// The same in MXFP4 (`_blocks` and `_scales` in place of the weights) and transposed: `[experts, 2 width, d_model]`, gates
    /// in even rows, and `[experts, d_model, width]`.
    Mxfp4,
}

/// A feed-forward part beside the experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Inner width.
    pub width: usize,
    /// Its module, after the layer's.
    pub name: &'static str,
    /// A row whose product with a token's input, through a sigmoid, is a factor on its output.
    pub gate: Option<&'static str>,
}

/// The names that most families' experts have.
pub const PLAIN: MoeNames = MoeNames {
    module: "mlp",
    router: "gate",
    storage: Storage::Each {
        names: ["gate_proj", "up_proj", "down_proj"],
    },
};

/// The names that transformers 5 gives experts of any family when it writes its own form.
const V5: MoeNames = MoeNames {
    module: "mlp",
    router: "gate",
    storage: Storage::Stacked {
        names: ["experts.gate_up_proj", "experts.down_proj"],
    },
};

/// What a family's file says: all that it has otherwise than the skeleton.
pub struct Family {
    /// `model_type`.
    pub name: &'static str,
    /// `rms_norm_eps` where the configuration is silent.
    pub eps: f64,
    /// `rope_theta` where the configuration is silent.
    pub theta: f64,
    /// Key of the number of experts.
    pub experts: &'static str,
    /// Key of an expert's inner width.
    pub width: &'static str,
    /// Reads how keys and values are made.
    pub attention: fn(&Config<'_>) -> Result<Attention>,
    /// Changes what the family has otherwise than most families share, and refuses what isn't computed.
    pub differs: fn(&Config<'_>, &mut Spec) -> Result<()>,
}

impl Spec {
    /// What a family computes with this `config.json`.
    ///
    /// # Errors
    /// Names the key that is missing, absurd, or set to what is not computed here.
    pub fn read(config: &Config<'_>, family: &Family) -> Result<Spec> {
        let mut spec = Spec::skeleton(config, family)?;
        (family.differs)(config, &mut spec)?;
        Ok(spec)
    }

    /// What most families share: every layer sparse and without a window, a softmax over the experts chosen,
    /// root-mean-square norms.
    fn skeleton(config: &Config<'_>, family: &Family) -> Result<Spec> {
        let attention = (family.attention)(config)?;
        let vocab_size = config.vocab_size()?;
        let (experts, top_k) = config.experts(family.experts)?;
        let dim = match &attention {
            Attention::Grouped(a) => a.head_dim,
            Attention::Latent(a) => a.rope,
        };
        let layer = LayerSpec {
            window: None,
            dense: None,
        };
        let rope = config.rope(dim, family.theta)?;
        Ok(Spec {
            family: family.name,
            d_model: config.width("hidden_size")?,
            vocab_size,
            positions: rope.end().or(config.positions()?),
            special: config.special_tokens(vocab_size)?,
            norm: NormKind::Rms,
            eps: config.eps(family.eps)?,
            attention,
            rope,
            layers: vec![layer; config.layers()?],
            moe: MoeSpec {
                experts,
                width: config.width(family.width)?,
                rule: Rule::top(top_k),
                activation: Activation::Silu,
                names: PLAIN,
                shared: None,
            },
            embedding_scale: 1.0,
            logits_scale: 1.0,
            tied: config.switch_or("tie_word_embeddings", false)?,
            head_bias: false,
            further_layers: 0,
        })
    }

    /// Gives every layer the same window.
    pub fn look_back(&mut self, window: Option<usize>) {
        self.layers.iter_mut().for_each(|layer| layer.window = window);
    }

    /// Makes layers dense, of an inner width, as `dense` says for each.
    pub fn make_dense(&mut self, dense: &[bool], width: usize) {
        for (layer, _) in self.layers.iter_mut().zip(dense).filter(|(_, dense)| **dense) {
            layer.dense = Some(width);
        }
    }

    /// Numbers of the sparse layers.
    pub fn sparse(&self) -> impl Iterator<Item = usize> + '_ {
        let sparse = |(i, layer): (usize, &LayerSpec)| layer.dense.is_none().then_some(i);
        self.layers.iter().enumerate().filter_map(sparse)
    }

    /// The sizes that jobs need.
    pub fn shape(&self) -> Shape {
        Shape {
            encoder: false,
            d_model: self.d_model,
            vocab_size: self.vocab_size,
            layers: self.layers.len(),
            cache_row: match &self.attention {
                Attention::Grouped(a) => [a.kv_heads * a.head_dim; 2],
                Attention::Latent(a) => [a.kv_lora + a.rope, 0],
            },
            attention: match &self.attention {
                Attention::Grouped(a) => 2 * a.heads * a.head_dim,
                Attention::Latent(_) => 0,
            },
            attention_scratch: match &self.attention {
                Attention::Grouped(_) => 0,
                Attention::Latent(a) => latent::scratch(a),
            },
            encoder_moe: Vec::new(),
            decoder_moe: self.sparse().map(|i| format!("layers.{i}")).collect(),
            experts: self.moe.experts,
            top_k: self.moe.rule.top_k(),
            d_ff: self.moe.width,
            d_dense: self.layers.iter().filter_map(|layer| layer.dense).max().unwrap_or(0),
            unnumbered: None,
            positions: self.positions,
            computed: self.rope.end(),
        }
    }

    /// What the tensors of sparse layers are called in a checkpoint that has those that `stored` says.
    pub fn moe_names(&self, stored: &dyn Fn(&str) -> bool) -> MoeNames {
        let Some(i) = self.sparse().next() else {
            return self.moe.names;
        };
        let has = |name: &str| stored(&format!("model.layers.{i}.mlp.experts.{name}"));
        match self.moe.names.storage {
            Storage::Each { .. } if has("gate_up_proj") => V5,
            Storage::Interleaved if has("gate_up_proj_blocks") => MoeNames {
                storage: Storage::Mxfp4,
                ..self.moe.names
            },
            _ => self.moe.names,
        }
    }
}
