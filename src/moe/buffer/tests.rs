//! Slow twins of the state machine.
