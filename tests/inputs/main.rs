//! Every odd input of `docs/inputs.md`.

mod damaged;
mod formats;
mod input;
mod lines;
mod several;
mod windows;
