//! The way from hidden states to candidates.

use super::Decoding;
use crate::decode::candidates::{candidates, ruled_out, Candidate};
use crate::decode::sample;
use crate::decode::search::{Bounds, Settings};
use crate::decode::workload::OfRow;
use crate::device::Tops;
use crate::model::Model;
use crate::moe::Context;

/// Lists of different lengths, one behind the other.
struct Lists<T> {
    all: Vec<T>,
    ends: Vec<usize>,
}

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Lists {
            all: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl<T> Lists<T> {
    fn row(&self, row: usize) -> &[T] {
        let first = if row == 0 { 0 } else { self.ends[row - 1] };
        &self.all[first..self.ends[row]]
    }

    fn clear(&mut self) {
        self.all.clear();
        self.ends.clear();
    }
}

/// What goes into the head and comes out of it in a step; the buffers keep their memory.
#[derive(Default)]
pub(super) struct Head {
    /// Hidden states, `[rows, d_model]`.
    rows: Vec<f32>,
    /// Whose they are: number among the active outputs, hypothesis.
    wanted: Vec<(usize, usize)>,
    ruled_out: Lists<u32>,
    tops: Tops,
    offered: Lists<Candidate>,
    draws: sample::Room,
}

impl Head {
    /// Forgets the step before.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.wanted.clear();
        self.ruled_out.clear();
        self.offered.clear();
    }

    /// Asks for the candidates to follow `before` and `ids`, whose hidden state is `row`.
    pub fn want(
        &mut self,
        whose: (usize, usize),
        row: &[f32],
        settings: &Settings,
        bounds: &Bounds,
        [before, ids]: [&[u32]; 2],
    ) {
        self.wanted.push(whose);
        self.rows.extend_from_slice(row);
        ruled_out(settings, bounds, before, ids, &mut self.ruled_out.all);
        self.ruled_out.ends.push(self.ruled_out.all.len());
    }

    /// Finds the candidates of each wanted row of `active`, in order.
    pub fn offer(&mut self, ctx: &mut Context, model: &dyn Model, settings: &Settings, active: &[Decoding]) {
        let (ruled_out, wanted) = (&self.ruled_out, &self.wanted);
        let drawn = settings.sampling.map(|sampling| {
            let place = |row: usize| {
                let Decoding { output, search, .. } = &active[wanted[row].0];
                let position = search.ids(0).len() as u64;
                match output.seed {
                    Some(seed) => (seed, 0, position),
                    None => (sampling.seed, output.key, position),
                }
            };
            let from = (&self.rows[..], model.head());
            sampling.draw_rows(ctx.device, from, |row| ruled_out.row(row), place, &mut self.draws)
        });
        if drawn.is_none() {
            let k = settings.candidates();
            ctx.device
                .head(&self.rows, model.head(), k, |row| ruled_out.row(row), &mut self.tops);
        }
        for (i, &(d, r)) in self.wanted.iter().enumerate() {
            let decoding = &active[d];
            let (ids, offered) = (decoding.search.ids(r), &mut self.offered.all);
            let (log_sum, best) = match &drawn {
                Some(drawn) => (drawn[i].log_sum, std::slice::from_ref(&drawn[i].best)),
                None => (self.tops.log_sum(i), self.tops.best(i)),
            };
            let found = candidates(settings, decoding.search.bounds(), ids, log_sum, best, offered);
            self.offered.ends.push(self.offered.all.len());
            if let Err(why) = found {
                let key = decoding.output.key;
                ctx.failure.get_or_insert_with(|| OfRow { key, why }.into());
            }
        }
    }

    /// The candidates of a wanted row, best first.
    pub fn offered(&self, row: usize) -> &[Candidate] {
        self.offered.row(row)
    }
}
