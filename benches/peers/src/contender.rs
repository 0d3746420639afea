//! Who computes a case: Sluice at one precision, or a library in the way that suits it best.
use anyhow::{ensure, Result};
use rayon::prelude::*;
use sluicegate::device::{Cpu, Dtype, Epilogue, Group, Linear, Part, Source};

use crate::case::Case;
use crate::library::{Call, Layout, Library};
use crate::measure::sample;

/// Computes a case once; each call takes the next set of weights.
pub struct Contender<'a> {
    pub run: Box<dyn FnMut() + 'a>,
}

/// What all contenders read.
pub struct Data {
    /// `[rows, inputs]`, sorted by expert.
    x: Vec<f32>,
    /// Where Sluice finds the rows of `x`: the libraries get theirs gathered.
    source: Vec<u32>,
    /// The weights of one expert, `[outputs, inputs]`; all experts and sets have copies of it.
    weights: Vec<f32>,
}

impl Data {
    /// Made-up values.
    pub fn of(case: &Case) -> Data {
        let values = |n: usize| -> Vec<f32> {
            let bits = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) & 0xffff;
            (0..n).map(|i| bits(i) as f32 / 65_536.0 - 0.5).collect()
        };
        Data {
            x: values(case.total() * case.inputs),
            source: (0..case.total() as u32).collect(),
            weights: values(case.inputs * case.outputs),
        }
    }

    /// The weights as a library takes them.
    fn laid_out(&self, case: &Case, layout: Layout) -> Vec<f32> {
        match layout {
            Layout::OutputMajor => self.weights.clone(),
            Layout::InputMajor => (0..self.weights.len())
                .map(|i| self.weights[i % case.outputs * case.inputs + i / case.outputs])
                .collect(),
        }
    }
}

/// Sluice's weights of one case: sets x experts.
pub fn pack(case: &Case, data: &Data, dtype: Dtype) -> Result<Vec<Vec<Linear>>> {
    let weights = Source::F32(&data.weights);
    let one = Linear::pack(case.inputs, &[Part { weights, bias: None }], dtype)?;
    let experts = vec![one; case.rows.len()];
    let bytes = experts.iter().map(Linear::bytes).sum();
    Ok(vec![experts; case.sets(bytes)])
}

/// Sluice.
pub fn sluice<'a>(cpu: &'a Cpu, case: &Case, data: &'a Data, sets: &'a [Vec<Linear>]) -> Contender<'a> {
    let groups_of = |experts: &'a Vec<Linear>| -> Vec<Group<'a>> {
        let mut end = 0;
        let group = |(weights, rows): (&'a Linear, &usize)| {
            end += rows;
            Group {
                weights,
                rows: end - rows..end,
            }
        };
        experts.iter().zip(&case.rows).map(group).collect()
    };
    let groups: Vec<_> = sets.iter().map(groups_of).collect();
    let source = (case.rows.len() > 1).then_some(&data.source[..]);
    let (mut out, mut next) = (vec![0.0; case.total() * case.outputs], 0);
    let run = move || {
        cpu.grouped_linear(&data.x, source, &groups[next], Epilogue::Store, &mut out);
        next = (next + 1) % groups.len();
    };
    Contender { run: Box::new(run) }
}

/// A library with the layout of weights and the use of threads with which a trial was fastest.
///
/// # Errors
/// If what it computes is not what Sluice does.
pub fn best_of<'a>(
    library: &'a Library,
    threads: usize,
    case: &'a Case,
    data: &'a Data,
    ours: &[f32],
) -> Result<Contender<'a>> {
    let mut best: Option<(f64, Contender)> = None;
    for layout in [Layout::OutputMajor, Layout::InputMajor] {
        for experts_at_once in [false, true] {
            if experts_at_once && (threads == 1 || case.rows.len() == 1 || !library.is_called_by_threads()) {
                continue;
            }
            let mut way = Way::new(library, threads, case, data, layout, experts_at_once);
            way.run();
            check(library.name(), &way.out, ours)?;
            let mut contender = Contender {
                run: Box::new(move || way.run()),
            };
            let seconds = sample(&mut contender.run);
            if best.as_ref().is_none_or(|(least, _)| seconds < *least) {
                best = Some((seconds, contender));
            }
        }
    }
    let (_, contender) = best.expect("two layouts were tried");
    Ok(contender)
}

/// What Sluice computes in float32.
pub fn expected(cpu: &Cpu, case: &Case, data: &Data) -> Result<Vec<f32>> {
    let weights = Source::F32(&data.weights);
    let one = Linear::pack(case.inputs, &[Part { weights, bias: None }], Dtype::F32)?;
    let mut out = vec![0.0; case.total() * case.outputs];
    cpu.linear(&data.x, &one, Epilogue::Store, &mut out);
    Ok(out)
}

fn check(name: &str, found: &[f32], expected: &[f32]) -> Result<()> {
    let off = found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max);
    ensure!(
        off < 1e-2,
        "{name} differs from Sluice by {off}: the comparison is not of the same product"
    );
    Ok(())
}

/// One way of calling a library.
struct Way<'a> {
    library: &'a Library,
    threads: usize,
    case: &'a Case,
    data: &'a Data,
    layout: Layout,
    /// Experts shared among threads, each product on one; otherwise one after another, each on all threads.
    experts_at_once: bool,
    /// Sets x experts.
    sets: Vec<Vec<Vec<f32>>>,
    next: usize,
    out: Vec<f32>,
}

impl<'a> Way<'a> {
    fn new(
        library: &'a Library,
        threads: usize,
        case: &'a Case,
        data: &'a Data,
        layout: Layout,
        experts_at_once: bool,
    ) -> Way<'a> {
        let experts = vec![data.laid_out(case, layout); case.rows.len()];
        let sets = vec![experts; case.sets(4 * data.weights.len() * case.rows.len())];
        let out = vec![0.0; case.total() * case.outputs];
        Way {
            library,
            threads,
            case,
            data,
            layout,
            experts_at_once,
            sets,
            next: 0,
            out,
        }
    }

    fn run(&mut self) {
        let Case { inputs, outputs, .. } = *self.case;
        let (mut x, mut out, mut calls) = (&self.data.x[..], &mut self.out[..], Vec::new());
        for (rows, weights) in self.case.rows.iter().zip(&self.sets[self.next]) {
            let (own, rest) = std::mem::take(&mut out).split_at_mut(rows * outputs);
            let (own_x, rest_x) = x.split_at(rows * inputs);
            (out, x) = (rest, rest_x);
            if *rows > 0 {
                calls.push(Call {
                    inputs,
                    outputs,
                    x: own_x,
                    weights,
                    layout: self.layout,
                    out: own,
                });
            }
        }
        if self.experts_at_once {
            calls
                .into_par_iter()
                .with_max_len(1)
                .for_each(|call| self.library.multiply(call, 1));
        } else {
            calls
                .into_iter()
                .for_each(|call| self.library.multiply(call, self.threads));
        }
        self.next = (self.next + 1) % self.sets.len();
    }
}
