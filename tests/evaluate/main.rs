//! `sluice evaluate` on files with known rows: the figures of the measures themselves, references by language, sums over
//! shards, refusals, exit codes.

mod place;
mod scores;
mod texts;
