//! One MoE layer at work: route, dispatch, exchange, experts, exchange back, combine.

use super::dispatch::{Owners, SendPlan, WorkPlan};
use super::gate::{Routes, Rule};
use super::shared::SharedExpert;
use super::Context;
use crate::comm::crash::fail_point;
use crate::device::{Cpu, Dtype, Epilogue, Group, Linear};
use crate::metrics::meter::Phase;

/// A feed-forward expert: `down(relu(up(x)))` or `down(act(gate(x)) * up(x))`, as its layer has it.
pub struct Expert {
    /// `[d_ff, d_model]`, perhaps with bias; with gates by [`Linear::pack_gated`].
    pub up: Linear,
    /// `[d_model, d_ff]`, perhaps with bias.
    pub down: Linear,
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
    pub router: Linear,
    /// What becomes of the experts' first product: [`Epilogue::Relu`] or [`Epilogue::Gated`].
    pub epilogue: Epilogue,
    /// This rank's experts.
    pub experts: Vec<Expert>,
    /// The expert that every token has.
    pub shared: Option<SharedExpert>,
    /// Where all experts are.
    pub owners: Owners,
    /// What the experts' weights are held in, on every rank alike.
    pub dtype: Dtype,
    /// Factor on the sum of the routed experts' outputs (NLLB-MoE: 1 - moe_token_dropout).
    pub scale: f32,
}

/// Buffers that every MoE layer of a model uses in turn; they only grow.
#[derive(Default)]
pub struct MoeBuffers {
    pub(super) logits: Vec<f32>,
    pub(super) routes: Routes,
    pub(super) send: SendPlan,
    pub(super) work: WorkPlan,
    pub(super) received: Vec<u32>,
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
        if let (Some(shared), None) = (&self.shared, &ctx.failure) {
            shared.add(ctx.device, self.epilogue, b, &normed[..tokens * d], x);
            ctx.meter.lap(Phase::Dense);
        }
        if ctx.comm.size() > 1 {
            self.fetch(ctx, b, normed, tokens, d);
        } else {
            b.work
                .fill(&b.send.here, tokens, &[], &[], b.routes.top_k, self.experts.len());
        }
        ctx.meter.lap(Phase::Dispatch);
        self.compute(ctx.device, b, normed, d);
        ctx.meter.lap(Phase::Experts);
        if ctx.comm.size() > 1 {
            self.give_back(ctx, b, d);
        }
        if ctx.failure.is_none() {
            self.combine(ctx.device, b, x, d);
        }
        ctx.meter.lap(Phase::Combine);
    }

    fn compute(&self, device: &Cpu, b: &mut MoeBuffers, normed: &[f32], d: usize) {
        let rows = b.work.source.len();
        let Some(first) = self.experts.first() else { return };
        let group = |weights: fn(&Expert) -> &Linear| -> Vec<Group<'_>> {
            let rows = b.work.starts.windows(2).map(|w| w[0]..w[1]);
            self.experts
                .iter()
                .zip(rows)
                .map(|(e, rows)| Group {
                    weights: weights(e),
                    rows,
                })
                .collect()
        };
        let hidden = sized(&mut b.hidden, rows * first.up.outputs());
        device.grouped_linear(normed, Some(&b.work.source), &group(|e| &e.up), self.epilogue, hidden);
        let outputs = sized(&mut b.outputs, rows * d);
        device.grouped_linear(hidden, None, &group(|e| &e.down), Epilogue::Store, outputs);
    }
}
