//! NLLB-MoE: the encoder-decoder translation model with top-2 routed experts ("No Language Left Behind", 2022).

pub mod config;
pub mod inventory;
pub mod names;
