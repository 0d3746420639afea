//! A Switch Transformers model against one that is written out in float64, with sizes that no reference checkpoint has:
//! heads narrower together than the residual stream, router biases, few buckets, sentences far beyond their reach.

use safetensors::tensor::{Dtype as Stored, TensorView};
use serde_json::json;
use sluicegate::comm::threads;
use sluicegate::device::{Cpu, Dtype, Epilogue, KeyRows};
use sluicegate::model::cache::{Caches, DecodeRow, SourceRow};
use sluicegate::model::switch_transformers::SwitchTransformersConfig;
use sluicegate::model::{self, Loading, Model};
use sluicegate::moe::Context;
use std::collections::BTreeMap;
use std::path::Path;

const HEADS: usize = 2;
const HEAD_DIM: usize = 5;
const BUCKETS: usize = 8;
const REACH: f64 = 20.0;
const EPS: f64 = 1e-5;

type Rows = Vec<Vec<f64>>;

/// Tensors by name: shape and values.
struct Slow(BTreeMap<String, (Vec<usize>, Vec<f32>)>);

fn config() -> serde_json::Value {
    json!({
        "model_type": "switch_transformers", "d_model": 12, "d_kv": HEAD_DIM, "d_ff": 9, "num_layers": 3,
        "num_decoder_layers": 2, "num_heads": HEADS, "num_experts": 3, "num_sparse_encoder_layers": 3,
        "num_sparse_decoder_layers": 1, "router_bias": true, "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": REACH as usize, "layer_norm_epsilon": EPS, "vocab_size": 30,
    })
}

impl Slow {
    fn new() -> Slow {
        let config = SwitchTransformersConfig::from_json(&config(), Path::new("config.json")).expect("a sound config");
        let mut seed = 7u64;
        let mut random = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            2.0 * (seed >> 40) as f32 / (1 << 24) as f32 - 1.0
        };
        let tensors = config.spec().inventory().into_iter().map(|tensor| {
            let values = (0..tensor.elements()).map(|_| random()).collect();
            (tensor.name, (tensor.shape, values))
        });
        Slow(tensors.collect())
    }

    fn save(&self, dir: &Path) {
        let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let all: Vec<_> = self
            .0
            .iter()
            .map(|(name, (s, v))| (name, s.clone(), bytes(v)))
            .collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            let view = TensorView::new(Stored::F32, shape.clone(), bytes).expect("a sound tensor");
            (name.as_str(), view)
        });
        let file = safetensors::serialize(views, None).expect("a sound file");
        std::fs::write(dir.join("model.safetensors"), file).expect("written");
        std::fs::write(dir.join("config.json"), config().to_string()).expect("written");
    }

    fn row(&self, name: &str, i: usize) -> Vec<f64> {
        let (shape, values) = &self.0[name];
        let width = shape[1..].iter().product::<usize>();
        values[i * width..][..width].iter().map(|&v| f64::from(v)).collect()
    }

    fn product(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let outputs = 0..self.0[name].0[0];
        outputs
            .map(|o| self.row(name, o).iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let weights = &self.0[name].1;
        let scaled = x.iter().zip(weights);
        scaled.map(|(x, &w)| x / (mean + EPS).sqrt() * f64::from(w)).collect()
    }

    /// Adds attention of `x` to `keys` (its own normed rows if none), with the bias of a stack's self-attention.
    fn attend(&self, part: &str, norm: &str, x: &mut Rows, source: Option<&Rows>, stack: &str) {
        let normed: Rows = x.iter().map(|x| self.norm(norm, x)).collect();
        let all = |p: &str, rows: &Rows| -> Rows {
            let name = format!("{part}.{p}.weight");
            rows.iter().map(|x| self.product(&name, x)).collect()
        };
        let seen = source.unwrap_or(&normed);
        let (q, k, v) = (all("q", &normed), all("k", seen), all("v", seen));
        let table = format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight");
        let mut gathered: Rows = vec![Vec::new(); x.len()];
        for (i, out) in gathered.iter_mut().enumerate() {
            for h in 0..HEADS {
                let part = h * HEAD_DIM..(h + 1) * HEAD_DIM;
                let last = if source.is_none() && stack == "decoder" {
                    i + 1
                } else {
                    k.len()
                };
                let score = |j: usize| {
                    let dot: f64 = part.clone().map(|c| q[i][c] * k[j][c]).sum();
                    let bias = if source.is_none() {
                        self.row(&table, bucket(i, j, stack))[h]
                    } else {
                        0.0
                    };
                    (dot + bias).exp()
                };
                let scores: Vec<f64> = (0..last).map(score).collect();
                let total: f64 = scores.iter().sum();
                out.extend(part.map(|c| scores.iter().zip(&v).map(|(s, v)| s / total * v[c]).sum::<f64>()));
            }
        }
        for (x, out) in x.iter_mut().zip(&gathered) {
            add(x, &self.product(&format!("{part}.o.weight"), out), 1.0);
        }
    }

    fn feed_forward(&self, layer: &str, x: &mut Rows) {
        for x in x {
            let normed = self.norm(&format!("{layer}.layer_norm.weight"), x);
            let router = format!("{layer}.mlp.router.classifier");
            let (module, weight) = if self.0.contains_key(&format!("{router}.weight")) {
                let mut logits = self.product(&format!("{router}.weight"), &normed);
                let bias = &self.0[&format!("{router}.bias")].1;
                logits.iter_mut().zip(bias).for_each(|(l, &b)| *l += f64::from(b));
                let best = (0..logits.len()).fold(0, |b, e| if logits[e] > logits[b] { e } else { b });
                let total: f64 = logits.iter().map(|l| (l - logits[best]).exp()).sum();
                (format!("{layer}.mlp.experts.expert_{best}"), 1.0 / total)
            } else {
                (format!("{layer}.mlp"), 1.0)
            };
            let hidden = self.product(&format!("{module}.wi.weight"), &normed);
            let hidden: Vec<f64> = hidden.iter().map(|h| h.max(0.0)).collect();
            add(x, &self.product(&format!("{module}.wo.weight"), &hidden), weight);
        }
    }

    fn stack(&self, stack: &str, layers: usize, ids: &[u32], source: Option<&Rows>) -> Rows {
        let mut x: Rows = ids.iter().map(|&id| self.row("shared.weight", id as usize)).collect();
        for i in 0..layers {
            let layer = format!("{stack}.block.{i}.layer");
            let norm = |i: usize| format!("{layer}.{i}.layer_norm.weight");
            self.attend(&format!("{layer}.0.SelfAttention"), &norm(0), &mut x, None, stack);
            if source.is_some() {
                self.attend(&format!("{layer}.1.EncDecAttention"), &norm(1), &mut x, source, stack);
            }
            self.feed_forward(&format!("{layer}.{}", 1 + source.is_some() as usize), &mut x);
        }
        let norm = format!("{stack}.final_layer_norm.weight");
        x.iter().map(|x| self.norm(&norm, x)).collect()
    }

    /// Logits for each token of a target.
    fn logits(&self, source: &[u32], target: &[u32]) -> Rows {
        let encoded = self.stack("encoder", 3, source, None);
        let hidden = self.stack("decoder", 2, target, Some(&encoded));
        let scaled = |h: &Vec<f64>| h.iter().map(|x| x / 12f64.sqrt()).collect::<Vec<f64>>();
        hidden
            .iter()
            .map(|h| self.product("shared.weight", &scaled(h)))
            .collect()
    }
}

fn add(x: &mut [f64], y: &[f64], weight: f64) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += weight * y);
}

/// The bucket of key `j` for query `i`: half of the encoder's are for keys behind the query, half of each half for a
/// single distance.
fn bucket(i: usize, j: usize, stack: &str) -> usize {
    let (buckets, first) = match stack {
        "encoder" => (BUCKETS / 2, if j > i { BUCKETS / 2 } else { 0 }),
        _ => (BUCKETS, 0),
    };
    let (exact, distance) = (buckets / 2, i.abs_diff(j));
    if distance < exact {
        return first + distance;
    }
    let growth = (distance as f64 / exact as f64).ln() / (REACH / exact as f64).ln();
    first + (exact + (growth * (buckets - exact) as f64 + 1e-9) as usize).min(buckets - 1)
}

fn tokens(n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i + seed * 7 + i * seed) % 30) as u32).collect()
}

/// Logits of each pair's target, all pairs read together; tokens of the targets `at_once`, or one by one.
fn logits(dir: &Path, pairs: &[(Vec<u32>, Vec<u32>)], at_once: bool) -> Vec<Vec<f32>> {
    let (checkpoint, architecture) = model::open(dir).expect("a sound checkpoint");
    let found = threads::run(1, |comm| {
        let loading = Loading {
            checkpoint: &checkpoint,
            dtype: Dtype::F32,
            threads: 1,
            rank: 0,
            ranks: 1,
            buffered: false,
            progress: &mut |_, _| (),
        };
        let mut model = architecture.load(loading).expect("weights");
        let device = Cpu::new(2).expect("a device");
        let mut ctx = Context::new(&device, comm, model.shape().moe_layers(), model.shape().experts, false);
        decode(model.as_mut(), &mut ctx, pairs, at_once)
    });
    found.into_iter().next().expect("a rank")
}

fn decode(model: &mut dyn Model, ctx: &mut Context, pairs: &[(Vec<u32>, Vec<u32>)], at_once: bool) -> Vec<Vec<f32>> {
    let all = |part: fn(&(Vec<u32>, Vec<u32>)) -> usize| pairs.iter().map(part).sum::<usize>();
    let mut caches = Caches::new(
        model.cache_type(),
        model.shape(),
        all(|p| p.1.len()),
        all(|p| p.0.len()),
    );
    let (mut sources, mut rows, mut first, mut own) = (Vec::new(), Vec::new(), 0, 0);
    for (source, target) in pairs {
        sources.push(SourceRow {
            ids: source,
            before: 0,
            first,
        });
        for (position, &token) in target.iter().enumerate() {
            rows.push(DecodeRow {
                token,
                position,
                row: own + position,
                keys: KeyRows::Range(own, position + 1),
                source: (first, source.len()),
            });
        }
        (first, own) = (first + source.len(), own + target.len());
    }
    model.read(ctx, &sources, &mut caches);
    let mut found = Vec::new();
    for some in rows.chunks(if at_once { rows.len() } else { 1 }) {
        let hidden = model.decode(ctx, some, &mut caches).to_vec();
        let mut logits = vec![0.0; some.len() * 30];
        ctx.device.linear(&hidden, model.head(), Epilogue::Store, &mut logits);
        found.extend(logits.chunks(30).map(<[f32]>::to_vec));
    }
    found
}

#[test]
fn logits_are_those_of_the_model_written_out() {
    let (slow, dir) = (Slow::new(), tempfile::tempdir().expect("a folder"));
    slow.save(dir.path());
    let pairs = [(1, 1), (70, 3), (9, 50)].map(|(s, t)| (tokens(s, s), tokens(t, t + 1)));
    let together = logits(dir.path(), &pairs, true);
    let wanted = pairs.iter().flat_map(|(source, target)| slow.logits(source, target));
    for (row, (found, wanted)) in together.iter().zip(wanted).enumerate() {
        for (found, wanted) in found.iter().zip(&wanted) {
            assert!((f64::from(*found) - wanted).abs() < 1e-4, "row {row}: {found} {wanted}");
        }
    }
    let bits = |rows: &[Vec<f32>]| -> Vec<u32> { rows.iter().flatten().map(|l| l.to_bits()).collect() };
    assert_eq!(
        bits(&logits(dir.path(), &pairs, false)),
        bits(&together),
        "token by token"
    );
    let alone: Vec<Vec<f32>> = pairs
        .iter()
        .flat_map(|p| logits(dir.path(), std::slice::from_ref(p), true))
        .collect();
    assert_eq!(bits(&alone), bits(&together), "pair by pair");
}
