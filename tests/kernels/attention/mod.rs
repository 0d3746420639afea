//! Attention beside a slow twin in double precision, and beside itself: to the last bit the same for a query alone, in a
//! tile with others, over rows named by a range, by two or one by one, over float32 or the same values in bfloat16, with
//! shared heads of keys written out, on any number of threads and on every instruction set.
mod causal;
mod forms;
mod rows;
mod stored;

use crate::bits;
use half::bf16;
use sluicegate::device::{Attend, Bias, Cpu, Element, Isa, KeyRows};

const SCALE: f32 = 0.3;
/// Elements of something else between two queries, and between two rows of keys and values.
const GAPS: [usize; 2] = [5, 3];

/// Numbers without a pattern that bfloat16 holds.
fn values(n: usize, seed: u64) -> Vec<bf16> {
    crate::values(n, seed).into_iter().map(bf16::from_f32).collect()
}

fn widened(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// What an attention computes, but for its rows.
#[derive(Clone, Debug, Default)]
struct Form {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    v_dim: usize,
    /// Whether values are the first elements of the keys.
    latent: bool,
    window: Option<usize>,
    sinks: Option<Vec<f32>>,
    /// Reach of a bias.
    reach: Option<usize>,
}

impl Form {
    fn plain(heads: usize, head_dim: usize) -> Form {
        Form {
            heads,
            kv_heads: heads,
            head_dim,
            v_dim: head_dim,
            ..Form::default()
        }
    }

    /// Elements of keys in a row.
    fn k_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    fn kv_stride(&self) -> usize {
        let values = if self.latent { 0 } else { self.kv_heads * self.v_dim };
        self.k_width() + values + GAPS[1]
    }

    /// Where a row's values begin.
    fn v_at(&self) -> usize {
        if self.latent {
            0
        } else {
            self.k_width()
        }
    }

    fn q_stride(&self) -> usize {
        self.heads * self.head_dim + GAPS[0]
    }
}

/// Queries and cache rows, keys then values and a few elements of something else.
struct Case {
    form: Form,
    q: Vec<f32>,
    kv: Vec<bf16>,
    wide: Vec<f32>,
    /// Numbers of the bias.
    table: Vec<f32>,
    /// Places of the queries.
    positions: Vec<u32>,
}

impl Case {
    fn new(heads: usize, head_dim: usize, queries: usize, keys: usize) -> Case {
        Case::of(Form::plain(heads, head_dim), queries, keys)
    }

    fn of(form: Form, queries: usize, keys: usize) -> Case {
        let kv = values(keys * form.kv_stride(), 7);
        Case {
            q: widened(&values(queries * form.q_stride(), 8)),
            wide: widened(&kv),
            kv,
            table: crate::values(form.heads * (2 * form.reach.unwrap_or(0) + 1), 9),
            positions: (0..queries as u32).map(|i| i * 7 % 90).collect(),
            form,
        }
    }

    fn width(&self) -> usize {
        self.form.heads * self.form.v_dim
    }

    fn run<T: Element>(&self, cpu: &Cpu, kv: &[T], first: usize, rows: &[KeyRows]) -> Vec<f32> {
        let form = &self.form;
        let mut out = vec![f32::NAN; rows.len() * self.width()];
        cpu.attend(Attend {
            q: &self.q[first * form.q_stride()..],
            q_stride: form.q_stride(),
            k: kv,
            k_stride: form.kv_stride(),
            v: &kv[form.v_at()..],
            v_stride: form.kv_stride(),
            heads: form.heads,
            kv_heads: form.kv_heads,
            head_dim: form.head_dim,
            v_dim: form.v_dim,
            scale: SCALE,
            rows,
            window: form.window,
            sinks: form.sinks.as_deref(),
            bias: form.reach.map(|reach| Bias {
                table: &self.table,
                reach,
                positions: &self.positions[first..first + rows.len()],
            }),
            out: &mut out,
        });
        out
    }

    fn twin(&self, query: usize, rows: &KeyRows) -> Vec<f64> {
        let form = &self.form;
        let list: Vec<usize> = rows.iter().collect();
        let unseen = list.len() - form.window.unwrap_or(list.len()).min(list.len());
        let mut out = Vec::new();
        for head in 0..form.heads {
            let shared = head / (form.heads / form.kv_heads);
            let q = &self.q[query * form.q_stride() + head * form.head_dim..][..form.head_dim];
            let score = |i: usize| {
                let k = &self.wide[list[i] * form.kv_stride() + shared * form.head_dim..];
                let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                let bias = form.reach.map_or(0.0, |reach| {
                    let (reach, from) = (reach as isize, self.positions[query] as isize);
                    let distance = (i as isize - from).clamp(-reach, reach) + reach;
                    self.table[head * (2 * reach as usize + 1) + distance as usize]
                });
                f64::from(SCALE) * dot + f64::from(bias)
            };
            let scores: Vec<f64> = (unseen..list.len()).map(score).collect();
            let sink = form.sinks.as_ref().map(|sinks| f64::from(sinks[head]));
            let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let p: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum = p.iter().sum::<f64>() + sink.map_or(0.0, |s| (s - max).exp());
            let value =
                |r: usize, j: usize| f64::from(self.wide[r * form.kv_stride() + form.v_at() + shared * form.v_dim + j]);
            let seen = &list[unseen..];
            out.extend((0..form.v_dim).map(|j| seen.iter().zip(&p).map(|(r, p)| p / sum * value(*r, j)).sum::<f64>()));
        }
        out
    }

    /// The same with a head of keys and values for each head of queries.
    fn written_out(&self) -> Case {
        let form = &self.form;
        let own = Form {
            kv_heads: form.heads,
            latent: false,
            ..form.clone()
        };
        let rows = self.kv.len() / form.kv_stride();
        let mut kv = Vec::with_capacity(rows * own.kv_stride());
        for row in self.kv.chunks_exact(form.kv_stride()) {
            let shared = |head: usize| head / (form.heads / form.kv_heads);
            (0..form.heads).for_each(|h| kv.extend(&row[shared(h) * form.head_dim..][..form.head_dim]));
            (0..form.heads).for_each(|h| kv.extend(&row[form.v_at() + shared(h) * form.v_dim..][..form.v_dim]));
            kv.extend([bf16::NAN; GAPS[1]]);
        }
        Case {
            q: self.q.clone(),
            wide: widened(&kv),
            kv,
            table: self.table.clone(),
            positions: self.positions.clone(),
            form: own,
        }
    }

    /// Everything that must be equal is, and near the twin for each of `looked_at`.
    fn check(&self, rows: &[KeyRows], looked_at: &[usize]) {
        let (width, name) = (self.width(), format!("{:?}", self.form));
        let want = self.run(&Cpu::new(1).unwrap(), &self.wide, 0, rows);
        for isa in Isa::available() {
            let cpu = Cpu::with_isa(1, isa).unwrap();
            let (single, half) = (self.run(&cpu, &self.wide, 0, rows), self.run(&cpu, &self.kv, 0, rows));
            assert!(bits(&single) == bits(&want), "{name}, {}", isa.name());
            assert!(bits(&half) == bits(&want), "{name} in bfloat16, {}", isa.name());
        }
        for threads in [2, 3] {
            let cpu = Cpu::new(threads).unwrap();
            let threaded = self.run(&cpu, &self.wide, 0, rows);
            assert!(bits(&threaded) == bits(&want), "{name}, {threads} threads");
        }
        for &query in looked_at {
            let ours = &want[query * width..][..width];
            for (ours, twin) in ours.iter().zip(self.twin(query, &rows[query])) {
                let near = (f64::from(*ours) - twin).abs() < 1e-5;
                assert!(near, "{name}, query {query}: {ours}, expected {twin}");
            }
            self.check_alone(query, &rows[query], ours);
        }
    }

    /// The query by itself, its rows as they are, in two parts, and one by one; and with each head's keys written out.
    fn check_alone(&self, query: usize, rows: &KeyRows, want: &[f32]) {
        let cpu = Cpu::new(1).unwrap();
        let alone = self.run(&cpu, &self.wide, query, &[*rows]);
        assert!(bits(&alone) == bits(want), "query {query} alone");
        let written_out = self.written_out();
        let apart = written_out.run(&cpu, &written_out.wide, query, &[*rows]);
        assert!(bits(&apart) == bits(want), "query {query} with heads of its own");
        let table: Vec<u32> = rows.iter().map(|r| r as u32).collect();
        let tabled = self.run(&cpu, &self.kv, query, &[KeyRows::Table(&table)]);
        assert!(bits(&tabled) == bits(want), "query {query} with its rows one by one");
        if let KeyRows::Range(first, n) = *rows {
            let joined = KeyRows::Joined {
                first,
                count: n / 3,
                then: first + n / 3,
                more: n - n / 3,
            };
            let joined = self.run(&cpu, &self.wide, query, &[joined]);
            assert!(bits(&joined) == bits(want), "query {query} with its rows in two parts");
        }
    }
}

/// Runs of queries over the same rows, as (queries, first row, rows).
fn runs(runs: &[(usize, usize, usize)]) -> Vec<KeyRows<'static>> {
    let each = |&(queries, first, n): &(usize, usize, usize)| vec![KeyRows::Range(first, n); queries];
    runs.iter().flat_map(each).collect()
}
