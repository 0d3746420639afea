//! Decoding: from encoded sentences to finished translations, whatever family the model is.
//!
//! [`search`] decides what a sentence's next tokens are (greedy, sampled or beam, as Hugging Face's `generate` does), [`slots`]
//! where their keys and values lie, [`batch`] runs many sentences at once and takes in new ones as others end, and
//! [`lockstep`] is what the ranks of a group agree on before every step.

pub mod batch;
pub mod beam;
pub mod candidates;
pub mod greedy;
pub mod limits;
pub mod lockstep;
pub mod random;
pub mod reading;
pub mod sample;
pub mod score;
pub mod search;
pub mod slots;
pub mod stop;
pub mod trace;
pub mod windows;
pub mod workload;
