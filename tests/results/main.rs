//! The results room: segments, resume, merge, reading back, `show` and `merge`.

mod job;
mod killed;
mod large;
mod merged;
mod parts;
mod read;
