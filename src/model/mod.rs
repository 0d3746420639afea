//! Transformer families, one folder each.

pub mod nllb_moe;
