//! Rows on their way: to the ranks that hold their experts, and outputs back home.

use super::combine::{block, weighted_sum, ELEMENT};
use super::dispatch::{Owners, Reply, SendPlan};
use super::gate::Routes;
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
        let (ranks, buffered) = (ctx.comm.size(), ctx.buffer.is_some());
        let each = sizes(&mut b.sizes_out, send, &b.routes, &self.owners, buffered);
        let arriving = sized(&mut b.sizes_in, ranks * each);
        let (block, device) = (block(1, d), ctx.device);
        ctx.comm.all_to_all(&b.sizes_out, arriving, &mut || {
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
        b.received.clear();
        b.received
            .extend(b.sizes_in[..ranks * each].chunks_exact(each).map(|from| from[0]));
        if buffered {
            b.rows.clear();
            b.rows.resize(self.experts.count(), 0);
            b.send.here.iter().for_each(|a| b.rows[a.expert as usize] += 1);
            for from in b.sizes_in[..ranks * each].chunks_exact(each) {
                b.rows.iter_mut().zip(&from[1..]).for_each(|(rows, n)| *rows += n);
            }
            // What is missing is read while rows travel.
            self.visit(ctx, b);
            ctx.meter.lap(Phase::Dispatch);
        }
        let (send, received, wanted) = (&b.send, &b.received[..], &b.wanted_out);
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
            .fill(&b.send.here, tokens, received, &b.experts_in, k, self.experts.count());
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

/// The sizes that each rank is told: rows that it gets and, where experts are buffered, the rows of each of its experts, as
/// many numbers for every rank. Their number.
fn sizes(out: &mut Vec<u32>, send: &SendPlan, routes: &Routes, owners: &Owners, buffered: bool) -> usize {
    let experts = match buffered {
        true => owners.local.iter().max().map_or(0, |most| *most as usize + 1),
        false => 0,
    };
    let each = 1 + experts;
    out.clear();
    out.resize(owners.ranks * each, 0);
    for (to, rows) in out.chunks_exact_mut(each).zip(&send.rows) {
        to[0] = *rows;
    }
    if buffered {
        for &e in &routes.experts {
            let (rank, local) = (owners.rank[e as usize] as usize, owners.local[e as usize] as usize);
            // A rank's own choices are in its plan.
            if send.rows[rank] > 0 {
                out[rank * each + 1 + local] += 1;
            }
        }
    }
    each
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the ranks tell each other beforehand is, for each expert, the number of choices of all their tokens.
    #[test]
    fn the_sizes_say_how_many_rows_each_expert_will_have() {
        let mut state = 1u64;
        let mut below = |n: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        for (experts, ranks, top_k) in [(8, 1, 2), (8, 3, 2), (7, 4, 3), (3, 5, 1), (5, 2, 5), (9, 9, 2)] {
            let owners = Owners::blocks(experts, ranks);
            let routes: Vec<Routes> = (0..ranks)
                .map(|rank| {
                    let tokens = if rank == 1 { 0 } else { below(12) };
                    let mut routes = Routes {
                        top_k,
                        ..Routes::default()
                    };
                    for _ in 0..tokens {
                        // Different experts for a token, low ones more often.
                        let mut chosen: Vec<u32> = Vec::new();
                        while chosen.len() < top_k {
                            let e = below(experts).min(below(experts)) as u32;
                            if !chosen.contains(&e) {
                                chosen.push(e);
                            }
                        }
                        routes.experts.extend(&chosen);
                        routes.weights.extend(chosen.iter().map(|_| 0.5));
                    }
                    routes
                })
                .collect();
            let mut told = vec![vec![0; experts]; ranks];
            for (rank, routes) in routes.iter().enumerate() {
                let (mut send, mut out) = (SendPlan::default(), Vec::new());
                send.fill(routes, &owners, rank);
                assert_eq!(sizes(&mut out, &send, routes, &owners, false), 1);
                assert_eq!(out, send.rows);
                let each = sizes(&mut out, &send, routes, &owners, true);
                assert_eq!(out.len(), ranks * each, "as many numbers for every rank");
                for (to, sizes) in out.chunks_exact(each).enumerate() {
                    assert_eq!(sizes[0], send.rows[to]);
                    let local = |e: &usize| owners.rank[*e] as usize == to;
                    for (i, e) in (0..experts).filter(local).enumerate() {
                        told[to][e] += sizes[1 + i];
                    }
                }
                for assignment in &send.here {
                    let first = Owners::block(experts, ranks, rank).start;
                    told[rank][first + assignment.expert as usize] += 1;
                }
            }
            for (e, owner) in owners.rank.iter().enumerate() {
                let chosen = routes.iter().flat_map(|r| &r.experts).filter(|&&c| c as usize == e);
                let told = told[*owner as usize][e] as usize;
                assert_eq!(told, chosen.count(), "expert {e} of {experts}, {ranks} ranks");
            }
        }
    }
}
