//! Model folders as they come: torn, foreign, incomplete, of another model; and the real ones.

mod files;
mod formats;
mod reference;
mod small_model;
mod weights;
