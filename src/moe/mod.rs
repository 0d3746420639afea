//! The paper: gate, dispatch, exchange, experts, combine.
pub mod dispatch;
pub mod gate;
