//! `sluice study buffer` on traces of real runs and on made ones: its figures beside slow counts, its files, its refusals.

mod demo;
mod made;
mod place;
mod refused;
mod slow;
