//! One MoE layer at work: route, dispatch, exchange, experts, exchange back, combine.

use super::dispatch::{Owners, SendPlan, WorkPlan};
use super::gate::{Routes, Rule};
use super::shared::SharedExpert;
use super::Context;
use crate::comm::crash::fail_point;
use crate::device::{Cpu, Dtype, Epilogue, Group, Linear};
use crate::metrics::meter::Phase;
use anyhow::anyhow;
use std::sync::Arc;

/// A feed-forward expert: `down(relu(up(x)))` or `down(act(gate(x)) * up(x))`, as its layer has it.
pub struct Expert {
    /// `[d_ff, d_model]`, perhaps with bias; with gates by [`Linear::pack_gated`].
    pub up: Linear,
    /// `[d_model, d_ff]`, perhaps with bias.
    pub down: Linear,
}

/// The experts of a layer that a rank has.
pub enum Experts {
    /// All of them in memory.
    Resident(Vec<Expert>),
    /// So many, of which the context's buffer has some in its slots.
    Buffered(usize),
}

impl Experts {
    /// How many there are.
    pub fn count(&self) -> usize {
        match self {
            Experts::Resident(all) => all.len(),
            Experts::Buffered(count) => *count,
        }
    }

    /// Memory that is held for this layer alone, in bytes.
    pub fn bytes(&self) -> usize {
        match self {
            Experts::Resident(all) => all.iter().map(|e| e.up.bytes() + e.down.bytes()).sum(),
            Experts::Buffered(_) => 0,
        }
    }
}

/// A sparse feed-forward layer, of which this rank holds a shard of the experts.
pub struct MoeLayer {
    /// Number among the model's MoE layers, encoder first.
    pub index: usize,
    /// Name in messages, as in the checkpoint.
    pub name: String,
    /// Routing rule of the family.
    pub rule: Rule,
    /// `[experts, d_model]`, perhaps with bias; float32 whatever the rest is.
    pub router: Arc<Linear>,
    /// Router and rule of the MoE layer behind this one, for a buffer that guesses what it will need.
    pub next: Option<(Arc<Linear>, Rule)>,
    /// What becomes of the experts' first product: [`Epilogue::Relu`] or [`Epilogue::Gated`].
    pub epilogue: Epilogue,
    /// This rank's experts.
    pub experts: Experts,
    /// The expert that every token has.
    pub shared: Option<SharedExpert>,
    /// Where all experts are.
    pub owners: Owners,
    /// What the experts' weights are held in, on every rank alike.
    pub dtype: Dtype,
    /// Factor on the sum of the routed experts' outputs (NLLB-MoE: 1 - moe_token_dropout).
    pub scale: f32,
}

/// Tells each of the layers that tokens go through, in order, which one is next.
pub fn link<'a>(layers: impl Iterator<Item = &'a mut MoeLayer>) {
    let mut before: Option<&mut MoeLayer> = None;
    for layer in layers {
        if let Some(before) = before {
            before.next = Some((layer.router.clone(), layer.rule.clone()));
        }
        before = Some(layer);
    }
}

/// Buffers that every MoE layer of a model uses in turn; they only grow.
#[derive(Default)]
pub struct MoeBuffers {
    pub(super) logits: Vec<f32>,
    pub(super) routes: Routes,
    pub(super) send: SendPlan,
    pub(super) work: WorkPlan,
    pub(super) received: Vec<u32>,
    /// For each rank the rows that it gets and, for a buffer, the rows of each of its experts: `[ranks, 1 + experts]`.
    pub(super) sizes_out: Vec<u32>,
    pub(super) sizes_in: Vec<u32>,
    /// Rows of each of this rank's experts, `[experts]`.
    pub(super) rows: Vec<u32>,
    /// Of the next layer, where they are guessed.
    pub(super) expected: Vec<u32>,
    pub(super) guess: Routes,
    /// Rows on their way out and in, as `rows` has them.
    pub(super) out_rows: Vec<u8>,
    pub(super) in_rows: Vec<u8>,
    /// Experts and weights of the rows on their way: `[rows, 2 * top_k]`, weights as bits.
    pub(super) wanted_out: Vec<u32>,
    pub(super) wanted_in: Vec<u32>,
    pub(super) experts_in: Vec<u32>,
    pub(super) hidden: Vec<f32>,
    pub(super) outputs: Vec<f32>,
    pub(super) replies: Vec<f32>,
    pub(super) returned: Vec<f32>,
}

/// Sets the length of a buffer whose contents will be written over.
pub fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

impl MoeLayer {
    /// Adds the layer's output for `tokens` rows to `x` `[tokens, d_model]`: first that of the shared expert, which needs
    /// no other rank, then the sum over the routed ones. `normed` begins with the layer's input `[tokens, d_model]` and
    /// lends its room behind that to rows of other ranks. Collective: a rank without tokens takes part with none.
    ///
    /// A NaN among the router's logits becomes [`Context::failure`]: this rank's tokens are left alone, but it takes
    /// part in all exchanges to come, so that no other rank waits for it.
    pub fn forward(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &mut Vec<f32>, x: &mut [f32]) {
        let d = self.router.inputs();
        let tokens = x.len() / d;
        let logits = sized(&mut b.logits, tokens * self.router.outputs());
        ctx.device
            .linear(&normed[..tokens * d], &self.router, Epilogue::Store, logits);
        let routed = self
            .rule
            .route(ctx.device, logits, self.router.outputs(), &mut b.routes);
        if let Err(error) = routed.and_then(|()| fail_point("route")) {
            ctx.failure.get_or_insert_with(|| error.context(self.name.clone()));
        }
        if ctx.failure.is_some() {
            b.routes.experts.clear();
            b.routes.weights.clear();
        }
        ctx.record(self.index, &b.routes);
        ctx.meter.lap(Phase::Gate);
        b.send.fill(&b.routes, &self.owners, ctx.comm.rank());
        ctx.meter.lap(Phase::Dispatch);
        self.expect(ctx, b, &normed[..tokens * d]);
        if let (Some(shared), None) = (&self.shared, &ctx.failure) {
            shared.add(ctx.device, self.epilogue, b, &normed[..tokens * d], x);
            ctx.meter.lap(Phase::Dense);
        }
        if ctx.comm.size() > 1 {
            self.fetch(ctx, b, normed, tokens, d);
        } else {
            b.work
                .fill(&b.send.here, tokens, &[], &[], b.routes.top_k, self.experts.count());
            self.visit(ctx, b);
        }
        ctx.meter.lap(Phase::Dispatch);
        self.compute(ctx, b, normed, d);
        ctx.meter.lap(Phase::Experts);
        if ctx.comm.size() > 1 {
            self.give_back(ctx, b, d);
        }
        if ctx.failure.is_none() {
            self.combine(ctx.device, b, x, d);
        }
        ctx.meter.lap(Phase::Combine);
    }

    /// Guesses, for a buffer that wants it, what the next layer will need: what its gate chooses on this layer's input.
    fn expect(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &[f32]) {
        b.expected.clear();
        // With several ranks this one's tokens are a part of what its experts will have, perhaps none.
        let asked = ctx.buffer.as_ref().is_some_and(|buffer| buffer.asks_gates());
        let asked = asked && ctx.comm.size() == 1 && !normed.is_empty();
        let (Some((router, rule)), true, None) = (&self.next, asked, &ctx.failure) else {
            return;
        };
        let tokens = normed.len() / router.inputs();
        let logits = sized(&mut b.logits, tokens * router.outputs());
        ctx.device.linear(normed, router, Epilogue::Store, logits);
        // A guess that fails is none: the layer itself will say what is wrong.
        if rule.route(ctx.device, logits, router.outputs(), &mut b.guess).is_ok() {
            b.expected.resize(self.experts.count(), 0);
            b.guess.experts.iter().for_each(|&e| b.expected[e as usize] += 1);
        }
        ctx.meter.lap(Phase::Gate);
    }

    /// Tells the buffer, where there is one, what this layer needs on this rank: the rows of `b.rows`, or of `b.work`.
    pub(super) fn visit(&self, ctx: &mut Context, b: &mut MoeBuffers) {
        let (Some(buffer), Experts::Buffered(_)) = (&mut ctx.buffer, &self.experts) else {
            return;
        };
        if ctx.comm.size() == 1 {
            b.rows.clear();
            b.rows.extend(b.work.starts.windows(2).map(|w| (w[1] - w[0]) as u32));
        }
        let expected = (!b.expected.is_empty()).then_some(&b.expected[..]);
        buffer.begin(ctx.pass, self.index, &b.rows, expected);
    }

    fn compute(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &[f32], d: usize) {
        match &self.experts {
            Experts::Resident(experts) => {
                let all: Vec<(usize, &Expert)> = experts.iter().enumerate().collect();
                self.run(ctx.device, b, normed, d, &all);
            }
            Experts::Buffered(_) => {
                let Context {
                    buffer: Some(buffer),
                    device,
                    meter,
                    failure,
                    ..
                } = ctx
                else {
                    let error = anyhow!("{}: its experts are in a buffer, and there is none", self.name);
                    ctx.failure.get_or_insert(error);
                    return;
                };
                // Rows of no expert that runs are left as they are.
                let ran = buffer.run(meter, |meter, experts| {
                    self.run(device, b, normed, d, experts);
                    meter.lap(Phase::Experts);
                });
                if let Err(error) = ran {
                    failure.get_or_insert(error);
                }
                sized(&mut b.outputs, b.work.source.len() * d);
            }
        }
    }

    /// Both products of some of the experts (numbers among the rank's), for their rows of the plan.
    fn run(&self, device: &Cpu, b: &mut MoeBuffers, normed: &[f32], d: usize, experts: &[(usize, &Expert)]) {
        let rows = b.work.source.len();
        let Some((_, first)) = experts.first() else { return };
        let starts = &b.work.starts;
        let group = |weights: fn(&Expert) -> &Linear| -> Vec<Group<'_>> {
            let mut groups = Vec::with_capacity(experts.len());
            for &(e, expert) in experts {
                groups.push(Group {
                    weights: weights(expert),
                    rows: starts[e]..starts[e + 1],
                });
            }
            groups
        };
        let hidden = sized(&mut b.hidden, rows * first.up.outputs());
        device.grouped_linear(normed, Some(&b.work.source), &group(|e| &e.up), self.epilogue, hidden);
        let outputs = sized(&mut b.outputs, rows * d);
        device.grouped_linear(hidden, None, &group(|e| &e.down), Epilogue::Store, outputs);
    }
}
