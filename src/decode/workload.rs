//! What a rank's running batch looks like from outside, whatever it does with its rows.

use super::batch::{Batch, Finished, Request};
use super::lockstep::Portions;
use crate::model::Model;
use crate::moe::Context;
use std::fmt;

/// What went wrong with a row on its way through the model, for who knows where the row stands.
#[derive(Debug)]
pub struct OfRow {
    /// The row's or output's number, as the caller gave it.
    pub key: u64,
    /// What went wrong.
    pub why: anyhow::Error,
}

impl fmt::Display for OfRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "output {}: {:#}", self.key, self.why)
    }
}

impl std::error::Error for OfRow {}

/// Rows on their way through the model on one rank. What it says of itself goes into the group's reports
/// ([`super::lockstep`]); its calls are collective.
pub trait Workload {
    /// A row that is taken on.
    type Request;
    /// What comes of it.
    type Finished;
    /// Takes a row on.
    fn push(&mut self, request: Self::Request);
    /// Rows to ask for.
    fn wants(&self) -> u32;
    /// Tokens that wait to be read.
    fn waiting(&self) -> usize;
    /// Outputs being decoded.
    fn active(&self) -> usize;
    /// Room for tokens to read.
    fn budget(&self) -> usize;
    /// How it reads what waits; the same on every rank.
    fn portions(&self) -> Portions;
    /// Reads what waits, or the first of it, in `calls` portions; `step` numbers the group's steps.
    fn read(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, calls: usize) -> Vec<Self::Finished>;
    /// Decodes every output one token further.
    fn step(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64) -> Vec<Self::Finished>;
}

impl Workload for Batch {
    type Request = Request;
    type Finished = Finished;

    fn push(&mut self, request: Request) {
        Batch::push(self, request);
    }

    fn wants(&self) -> u32 {
        Batch::wants(self)
    }

    fn waiting(&self) -> usize {
        Batch::waiting(self)
    }

    fn active(&self) -> usize {
        Batch::active(self)
    }

    fn budget(&self) -> usize {
        Batch::budget(self)
    }

    fn portions(&self) -> Portions {
        Batch::portions(self)
    }

    fn read(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64, calls: usize) -> Vec<Finished> {
        self.encode(ctx, model, step, calls);
        Vec::new()
    }

    fn step(&mut self, ctx: &mut Context, model: &mut dyn Model, step: u64) -> Vec<Finished> {
        Batch::step(self, ctx, model, step)
    }
}
