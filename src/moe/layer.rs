//! One MoE layer at work: route, dispatch, exchange, experts, exchange back, combine.

use super::dispatch::{Output, Owners, SendPlan, WorkPlan};
use super::gate::{Routes, Rule};
use super::Context;
use crate::comm::{crash::fail_point, Part};
use crate::device::{Cpu, Dtype, Epilogue, Group, Linear};
use crate::metrics::meter::Phase;
use half::bf16;

/// A feed-forward expert: `down(relu(up(x)))`.
pub struct Expert {
    /// `[d_ff, d_model]` with bias.
    pub up: Linear,
    /// `[d_model, d_ff]` with bias.
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
    /// `[experts, d_model]`, float32 whatever the rest is.
    pub router: Linear,
    /// This rank's experts.
    pub experts: Vec<Expert>,
    /// Where all experts are.
    pub owners: Owners,
    /// What the experts' weights are held in, on every rank alike.
    pub dtype: Dtype,
    /// Factor on the sum of the outputs (NLLB-MoE: 1 - moe_token_dropout).
    pub scale: f32,
}

/// Buffers that every MoE layer of a model uses in turn; they only grow.
#[derive(Default)]
pub struct MoeBuffers {
    logits: Vec<f32>,
    routes: Routes,
    send: SendPlan,
    work: WorkPlan,
    received: Vec<u32>,
    /// Rows on their way out and in, as the experts take them: float32 or bfloat16.
    out_f32: Vec<f32>,
    out_bf16: Vec<bf16>,
    in_bf16: Vec<bf16>,
    /// Experts and weights of the rows on their way: `[rows, 2 * top_k]`, weights as bits.
    wanted_out: Vec<u32>,
    wanted_in: Vec<u32>,
    experts_in: Vec<u32>,
    hidden: Vec<f32>,
    outputs: Vec<f32>,
    replies: Vec<f32>,
    returned: Vec<f32>,
}

/// Sets the length of a buffer whose contents will be written over.
pub fn sized<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}

impl MoeLayer {
    /// Adds the layer's output for `tokens` rows to `x` `[tokens, d_model]`. `normed` begins with the layer's input
    /// `[tokens, d_model]` and lends its room behind that to rows of other ranks. Collective: a rank without tokens
    /// takes part with none.
    ///
    /// A NaN among the router's logits becomes [`Context::failure`]: this rank's tokens are left alone, but it takes
    /// part in all exchanges to come, so that no other rank waits for it.
    pub fn forward(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &mut Vec<f32>, x: &mut [f32]) {
        let d = self.router.inputs();
        let tokens = x.len() / d;
        let logits = sized(&mut b.logits, tokens * self.router.outputs());
        ctx.device
            .linear(&normed[..tokens * d], &self.router, Epilogue::Store, logits);
        let routed = self.rule.route(logits, self.router.outputs(), &mut b.routes);
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
            self.combine(b, x, d);
        }
        ctx.meter.lap(Phase::Combine);
    }

    /// Sizes, then exactly those rows, behind the own ones in `normed`; then the plan of this rank's work.
    fn fetch(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &mut Vec<f32>, tokens: usize, d: usize) {
        // bfloat16 experts round their inputs anyway: sending them rounded changes no bit.
        let (k, bf) = (b.routes.top_k, self.dtype == Dtype::Bf16);
        let send = &b.send;
        let (out_f32, out_bf16, wanted) = (&mut b.out_f32, &mut b.out_bf16, &mut b.wanted_out);
        let received = sized(&mut b.received, ctx.comm.size());
        ctx.comm.all_to_all(&send.rows, received, &mut || {
            let row = |t: u32| &normed[t as usize * d..][..d];
            if bf {
                out_bf16.clear();
                send.tokens
                    .iter()
                    .for_each(|&t| out_bf16.extend(row(t).iter().map(|&v| bf16::from_f32(v))));
            } else {
                out_f32.clear();
                send.tokens.iter().for_each(|&t| out_f32.extend_from_slice(row(t)));
            }
            wanted.clear();
            for (experts, weights) in send.experts.chunks_exact(k).zip(send.weights.chunks_exact(k)) {
                wanted.extend_from_slice(experts);
                wanted.extend(weights.iter().map(|w| w.to_bits()));
            }
        });
        ctx.meter.lap(Phase::Sizes);
        let arriving = received.iter().sum::<u32>() as usize;
        let room = &mut sized(normed, (tokens + arriving) * d)[tokens * d..];
        let wanted_in = sized(&mut b.wanted_in, arriving * 2 * k);
        let in_bf16 = sized(&mut b.in_bf16, if bf { arriving * d } else { 0 });
        let (out, into, width): (&[u8], &mut [u8], usize) = match bf {
            true => (bytemuck::cast_slice(out_bf16), bytemuck::cast_slice_mut(in_bf16), 2 * d),
            false => (bytemuck::cast_slice(out_f32), bytemuck::cast_slice_mut(room), 4 * d),
        };
        ctx.meter.moved(Phase::Exchange, out.len() + wanted.len() * 4);
        let rows = Part {
            send: out,
            send_rows: &send.rows,
            recv: into,
            recv_rows: received,
            row_bytes: width,
        };
        let (out, into) = (bytemuck::cast_slice(wanted), bytemuck::cast_slice_mut(wanted_in));
        let meta = Part {
            send: out,
            send_rows: &send.rows,
            recv: into,
            recv_rows: received,
            row_bytes: 8 * k,
        };
        ctx.comm.exchange(&mut [rows, meta]);
        if bf {
            let room = &mut normed[tokens * d..(tokens + arriving) * d];
            room.iter_mut()
                .zip(&b.in_bf16[..])
                .for_each(|(to, from)| *to = from.to_f32());
        }
        ctx.meter.lap(Phase::Exchange);
        b.experts_in.clear();
        b.wanted_in[..arriving * 2 * k]
            .chunks_exact(2 * k)
            .for_each(|row| b.experts_in.extend_from_slice(&row[..k]));
        b.work
            .fill(&b.send.here, tokens, received, &b.experts_in, k, self.experts.len());
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
        device.grouped_linear(normed, Some(&b.work.source), &group(|e| &e.up), Epilogue::Relu, hidden);
        let outputs = sized(&mut b.outputs, rows * d);
        device.grouped_linear(hidden, None, &group(|e| &e.down), Epilogue::Store, outputs);
    }

    /// Outputs for other ranks' tokens travel home: summed where this rank holds all of a token's experts.
    fn give_back(&self, ctx: &mut Context, b: &mut MoeBuffers, d: usize) {
        let k = b.routes.top_k;
        let replies = sized(&mut b.replies, b.work.back.iter().sum::<u32>() as usize * d);
        let mut rows = replies.chunks_exact_mut(d);
        for (reply, wanted) in b.work.replies.iter().zip(b.wanted_in.chunks_exact(2 * k)) {
            let output = |a: u32| &b.outputs[b.work.place[a as usize] as usize * d..][..d];
            if reply.summed {
                let term = |j: usize| {
                    (
                        f32::from_bits(wanted[k + j]),
                        output(reply.assignments.start + j as u32),
                    )
                };
                weighted_sum(
                    k,
                    term,
                    |at, sum| at.copy_from_slice(sum),
                    rows.next().expect("a row a reply"),
                );
            } else {
                let each = reply.assignments.clone();
                each.for_each(|a| rows.next().expect("a row a choice").copy_from_slice(output(a)));
            }
        }
        ctx.meter.lap(Phase::Combine);
        let back = sized(&mut b.returned, b.send.back.iter().sum::<u32>() as usize * d);
        ctx.meter.moved(Phase::Exchange, replies.len() * 4);
        let (send, recv) = (bytemuck::cast_slice(replies), bytemuck::cast_slice_mut(back));
        let part = Part {
            send,
            send_rows: &b.work.back,
            recv,
            recv_rows: &b.send.back,
            row_bytes: 4 * d,
        };
        ctx.comm.exchange(&mut [part]);
        ctx.meter.lap(Phase::Exchange);
    }

    /// `x += scale * sum over choices of weight * output`, in the gate's order.
    fn combine(&self, b: &MoeBuffers, x: &mut [f32], d: usize) {
        let k = b.routes.top_k;
        let add = |x: &mut [f32], sum: &[f32]| x.iter_mut().zip(sum).for_each(|(x, y)| *x += self.scale * y);
        for (t, row) in x.chunks_exact_mut(d).enumerate() {
            let output = |j: usize| match b.send.outputs[t * k + j] {
                Output::Here(a) => &b.outputs[b.work.place[a as usize] as usize * d..][..d],
                Output::Back(r) | Output::Summed(r) => &b.returned[r as usize * d..][..d],
            };
            match b.send.outputs[t * k] {
                Output::Summed(_) => add(row, output(0)),
                _ => weighted_sum(k, |j| (b.routes.weights[t * k + j], output(j)), add, row),
            }
        }
    }
}

/// Hands `put` the sum of `weight * row` over `terms` terms, piece by piece, with the pieces of `out` they belong to.
///
/// One order for every caller (first term stored, later ones added): a sum made on another rank has the same bits.
fn weighted_sum<'a>(
    terms: usize,
    term: impl Fn(usize) -> (f32, &'a [f32]),
    put: impl Fn(&mut [f32], &[f32]),
    out: &mut [f32],
) {
    const PIECE: usize = 64;
    let mut sum = [0f32; PIECE];
    for (i, piece) in out.chunks_mut(PIECE).enumerate() {
        let sum = &mut sum[..piece.len()];
        for j in 0..terms {
            let (weight, row) = term(j);
            let row = &row[i * PIECE..][..sum.len()];
            match j {
                0 => sum.iter_mut().zip(row).for_each(|(s, v)| *s = weight * v),
                _ => sum.iter_mut().zip(row).for_each(|(s, v)| *s += weight * v),
            }
        }
        put(piece, sum);
    }
}
