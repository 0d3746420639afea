//! The results room: segments, resume, merge, reading back, `show` and `merge`.

#[path = "../datasets/mod.rs"]
mod datasets;
mod job;
mod killed;
mod large;
mod merged;
mod parts;
mod read;
