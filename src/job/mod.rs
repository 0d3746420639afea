//! What a user runs, one file each.

pub mod doctor;
