//! What the tensors of an NLLB-MoE checkpoint are called.
//!
//! Functions give a module's path without a final dot (`model.encoder.layers.3.ffn`); [`weight`] and [`bias`] name its
//! tensors.

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

/// The embedding `[vocab_size, d_model]`, which is the output projection too.
pub const EMBEDDING: &str = "model.shared.weight";

/// Layer `i` of a stack.
pub fn layer(stack: Stack, i: usize) -> String {
    format!("model.{}.layers.{i}", stack.name())
}

/// A sparse layer in messages and results.
pub fn moe_layer(stack: Stack, i: usize) -> String {
    format!("{}.layers.{i}", stack.name())
}

/// Layer `i` of the encoder.
pub fn encoder_layer(i: usize) -> String {
    layer(Stack::Encoder, i)
}

/// Layer `i` of the decoder.
pub fn decoder_layer(i: usize) -> String {
    layer(Stack::Decoder, i)
}

/// The norm behind a stack's last layer.
pub fn final_norm(stack: Stack) -> String {
    format!("model.{}.layer_norm", stack.name())
}

/// The router of a sparse layer: weight `[num_experts, d_model]`.
pub fn router(layer: &str) -> String {
    format!("{layer}.ffn.router.classifier")
}

/// Expert `e` of a sparse layer; its `fc1` is `[ffn, d_model]`, its `fc2` `[d_model, ffn]`.
pub fn expert(layer: &str, e: usize) -> String {
    format!("{layer}.ffn.experts.expert_{e}")
}

/// The weight of a module.
pub fn weight(module: &str) -> String {
    format!("{module}.weight")
}

/// The bias of a module.
pub fn bias(module: &str) -> String {
    format!("{module}.bias")
}
