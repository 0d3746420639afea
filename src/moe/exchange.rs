//! Rows on their way: to the ranks that hold their experts, and outputs back home.

use super::combine::{block, weighted_sum, ELEMENT};
use super::dispatch::Reply;
use super::layer::{sized, MoeBuffers, MoeLayer};
use super::rows::{pack, row_bytes, unpack};
use super::Context;
use crate::comm::Part;
use crate::device::Dtype;
use crate::metrics::meter::Phase;

impl MoeLayer {
    /// Sizes, then exactly those rows, behind the own ones in `normed`; then the plan of this rank's work.
    pub(super) fn fetch(&self, ctx: &mut Context, b: &mut MoeBuffers, normed: &mut Vec<f32>, tokens: usize, d: usize) {
        let (k, width) = (b.routes.top_k, row_bytes(self.dtype, d));
        let send = &b.send;
        let (out, wanted) = (&mut b.out_rows, &mut b.wanted_out);
        let received = sized(&mut b.received, ctx.comm.size());
        let (block, device) = (block(1, d), ctx.device);
        ctx.comm.all_to_all(&send.rows, received, &mut || {
            let row = |t: u32| &normed[t as usize * d..][..d];
            let places = sized(out, send.tokens.len() * width).chunks_mut(block * width);
            let mut blocks: Vec<_> = places.zip(send.tokens.chunks(block)).collect();
            let nanoseconds = (send.tokens.len() * d) as f64 * ELEMENT;
            device.for_each_of(&mut blocks, nanoseconds, |_, (places, tokens)| {
                let places = places.chunks_exact_mut(width).zip(*tokens);
                places.for_each(|(to, &t)| pack(self.dtype, row(t), to));
            });
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
        let out = &b.out_rows[..send.tokens.len() * width];
        // Float32 rows arrive where they are used.
        let into = match self.dtype {
            Dtype::F32 => bytemuck::cast_slice_mut(room),
            _ => sized(&mut b.in_rows, arriving * width),
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
        if self.dtype != Dtype::F32 {
            let room = normed[tokens * d..(tokens + arriving) * d].chunks_mut(block * d);
            let mut blocks: Vec<_> = room.zip(b.in_rows.chunks(block * width)).collect();
            let nanoseconds = (arriving * d) as f64 * ELEMENT;
            device.for_each_of(&mut blocks, nanoseconds, |_, (room, arrived)| {
                let rows = room.chunks_exact_mut(d).zip(arrived.chunks_exact(width));
                rows.for_each(|(row, from)| unpack(self.dtype, from, row));
            });
        }
        ctx.meter.lap(Phase::Exchange);
        b.experts_in.clear();
        b.wanted_in[..arriving * 2 * k]
            .chunks_exact(2 * k)
            .for_each(|row| b.experts_in.extend_from_slice(&row[..k]));
        b.work
            .fill(&b.send.here, tokens, received, &b.experts_in, k, self.experts.len());
    }

    /// Outputs for other ranks' tokens travel home: summed where this rank holds all of a token's experts.
    pub(super) fn give_back(&self, ctx: &mut Context, b: &mut MoeBuffers, d: usize) {
        let (k, device) = (b.routes.top_k, ctx.device);
        let replies = sized(&mut b.replies, b.work.back.iter().sum::<u32>() as usize * d);
        let (block, nanoseconds) = (block(k, d), (replies.len() * k) as f64 * ELEMENT);
        let (outputs, place, wanted) = (&b.outputs, &b.work.place, b.wanted_in.chunks(block * 2 * k));
        let mut room = &mut *replies;
        let mut blocks: Vec<_> = (b.work.replies.chunks(block).zip(wanted))
            .map(|(replies, wanted)| {
                let rows: usize = replies.iter().map(Reply::rows).sum();
                (replies, wanted, room.split_off_mut(..rows * d).expect("a row a reply"))
            })
            .collect();
        device.for_each_of(&mut blocks, nanoseconds, |_, (replies, wanted, room)| {
            let mut rows = room.chunks_exact_mut(d);
            for (reply, wanted) in replies.iter().zip(wanted.chunks_exact(2 * k)) {
                let output = |a: u32| &outputs[place[a as usize] as usize * d..][..d];
                if reply.summed {
                    let of = |j: usize| output(reply.assignments.start + j as u32);
                    let term = |j: usize| (f32::from_bits(wanted[k + j]), of(j));
                    let row = rows.next().expect("a row a reply");
                    weighted_sum(k, term, |at, sum| at.copy_from_slice(sum), row);
                } else {
                    let outputs = reply.assignments.clone().map(output);
                    rows.by_ref()
                        .zip(outputs)
                        .for_each(|(row, output)| row.copy_from_slice(output));
                }
            }
        });
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
}
