//! Reading an encoder-decoder's weights for one rank of a group.

use super::spec::{Positions, Spec, Stack, Sublayer};
use super::{Attention, Buffers, CrossAttention, Embedding, EncoderDecoder, FeedForward, Half, Layer, RelativeBias};
use crate::checkpoint::Checkpoint;
use crate::device::{Dtype, Epilogue, Layout, Linear};
use crate::model::blocks::{staging, Dense, Loader, Norm, Sinusoids};
use crate::model::cache::CacheType;
use crate::model::Loading;
use crate::moe;
use crate::moe::buffer::source::{resident, ExpertSource};
use crate::moe::dispatch::Owners;
use crate::moe::layer::{Expert, MoeLayer};
use anyhow::Result;
use std::sync::Arc;

impl EncoderDecoder {
    /// Reads the dense weights and this rank's experts from a checkpoint that has passed `model::open`, and packs them.
    ///
    /// # Errors
    /// When a tensor cannot be read or holds a NaN: names file, tensor and place.
    pub fn load(spec: &Spec, loading: Loading<'_>) -> Result<EncoderDecoder> {
        let mut reader = Reader {
            load: Loader {
                checkpoint: loading.checkpoint,
                dtype: loading.dtype,
                threads: loading.threads,
            },
            spec,
            experts: &Experts::new(spec, loading.checkpoint, loading.dtype, loading.threads),
            rank: loading.rank,
            ranks: loading.ranks,
            buffered: loading.buffered,
            read: 0,
            progress: loading.progress,
        };
        let encoder = reader.half(Stack::Encoder)?;
        let mut decoder = reader.half(Stack::Decoder)?;
        decoder.norm.weight.iter_mut().for_each(|w| *w *= spec.head_scale);
        decoder
            .norm
            .bias
            .iter_mut()
            .flatten()
            .for_each(|b| *b *= spec.head_scale);
        let cross = (0..spec.decoder.sparse.len()).map(|i| reader.cross_attention(i));
        Ok(EncoderDecoder {
            shape: spec.shape(),
            cache_type: CacheType::of(loading.dtype),
            embedding: Embedding {
                table: reader.load.linear(&[spec.names.embedding])?,
                scale: spec.embedding_scale,
                positions: match spec.positions {
                    Positions::Sinusoids { pad } => Some((Sinusoids::new(spec.d_model), pad)),
                    Positions::Relative { .. } => None,
                },
            },
            encoder,
            decoder,
            cross: cross.collect::<Result<_>>()?,
            buffers: Buffers::default(),
        })
    }
}

struct Reader<'a> {
    load: Loader<'a>,
    spec: &'a Spec,
    experts: &'a Experts,
    rank: usize,
    ranks: usize,
    buffered: bool,
    /// Layers that are read.
    read: usize,
    progress: &'a mut dyn FnMut(usize, usize),
}

impl Reader<'_> {
    fn half(&mut self, stack: Stack) -> Result<Half> {
        let layers = self.spec.stack(stack).sparse.len();
        let mut layers = (0..layers).map(|i| self.layer(stack, i)).collect::<Result<Vec<_>>>()?;
        moe::layer::link(layers.iter_mut().filter_map(|layer| match &mut layer.ffn {
            FeedForward::Sparse(moe) => Some(moe.as_mut()),
            FeedForward::Dense(_) => None,
        }));
        Ok(Half {
            layers,
            norm: self.norm(&self.spec.names.final_norm(stack))?,
            bias: self.relative_bias(stack)?,
        })
    }

    fn layer(&mut self, stack: Stack, i: usize) -> Result<Layer> {
        let layers = self.spec.encoder.sparse.len() + self.spec.decoder.sparse.len();
        (self.progress)(self.read, layers);
        self.read += 1;
        let (names, name) = (self.spec.names, self.spec.names.layer(stack, i));
        let ffn = names.feed_forward(stack);
        Ok(Layer {
            own: self.attention(stack, &name, names.own, 3)?,
            ffn_norm: self.norm(&format!("{name}.{}", ffn.norm))?,
            ffn: self.feed_forward(stack, i, &format!("{name}.{}", ffn.module))?,
        })
    }

    fn cross_attention(&self, i: usize) -> Result<CrossAttention> {
        let (part, name) = (self.spec.names.cross, self.spec.names.layer(Stack::Decoder, i));
        let [_, k, v, _] = self.projections(&name, part);
        Ok(CrossAttention {
            attention: self.attention(Stack::Decoder, &name, part, 1)?,
            kv: self.load.linear(&[&k, &v])?,
        })
    }

    /// An attention that projects the first `own` of queries, keys and values.
    fn attention(&self, stack: Stack, layer: &str, part: Sublayer, own: usize) -> Result<Attention> {
        let projections = self.projections(layer, part);
        let own: Vec<&str> = projections[..own].iter().map(String::as_str).collect();
        let sizes = self.spec.stack(stack);
        Ok(Attention {
            norm: self.norm(&format!("{layer}.{}", part.norm))?,
            projection: self.load.linear(&own)?,
            out: self.load.linear(&[&projections[3]])?,
            heads: sizes.heads,
            scale: sizes.attention_scale,
        })
    }

    fn projections(&self, layer: &str, part: Sublayer) -> [String; 4] {
        self.spec
            .names
            .projections
            .map(|p| format!("{layer}.{}.{p}", part.module))
    }

    fn relative_bias(&self, stack: Stack) -> Result<Option<RelativeBias>> {
        let Positions::Relative {
            module, max_distance, ..
        } = self.spec.positions
        else {
            return Ok(None);
        };
        let names = self.spec.names;
        let name = format!("{}.{}.{module}.weight", names.layer(stack, 0), names.own.module);
        let weights = self.load.checkpoint.read_f32(&name)?;
        let heads = self.spec.stack(stack).heads;
        let one_sided = stack == Stack::Decoder;
        Ok(Some(RelativeBias::spread(&weights, heads, max_distance, one_sided)))
    }

    fn norm(&self, name: &str) -> Result<Norm> {
        if self.spec.biases {
            self.load.norm(name, self.spec.eps)
        } else {
            self.load.rms_norm(name, self.spec.eps)
        }
    }

    fn feed_forward(&self, stack: Stack, i: usize, module: &str) -> Result<FeedForward> {
        let (spec, names) = (self.spec, self.spec.names);
        if !spec.stack(stack).sparse[i] {
            let [up, down] = self.products(module)?;
            return Ok(FeedForward::Dense(Box::new(Dense { up, down })));
        }
        let index = spec.moe_layers().iter().position(|&l| l == (stack, i));
        let index = index.expect("a sparse layer");
        let own = Owners::block(spec.experts, self.ranks, self.rank);
        Ok(FeedForward::Sparse(Box::new(MoeLayer {
            index,
            name: names.moe_layer(stack, i),
            rule: spec.rule.clone(),
            router: Arc::new(self.load.linear_f32(&format!("{module}.{}", names.router))?),
            next: None,
            epilogue: Epilogue::Relu,
            experts: match self.buffered {
                true => moe::layer::Experts::Buffered(own.len()),
                false => {
                    moe::layer::Experts::Resident(own.map(|e| resident(self.experts, index, e)).collect::<Result<_>>()?)
                }
            },
            shared: None,
            owners: Owners::blocks(spec.experts, self.ranks),
            dtype: self.load.dtype,
            scale: spec.moe_scale,
        })))
    }

    /// Both products of a dense feed-forward layer.
    fn products(&self, module: &str) -> Result<[Linear; 2]> {
        let [up, down] = self.spec.names.products.map(|p| format!("{module}.{p}"));
        Ok([self.load.linear(&[&up])?, self.load.linear(&[&down])?])
    }
}

/// The experts of a checkpoint.
pub(super) struct Experts {
    checkpoint: Arc<Checkpoint>,
    dtype: Dtype,
    threads: usize,
    /// By MoE layer: what an expert's module is called before its number, what both products of it are packed as, and what
    /// they are called.
    layers: Vec<(String, [Layout; 2])>,
    products: [&'static str; 2],
}

impl Experts {
    pub(super) fn new(spec: &Spec, checkpoint: &Arc<Checkpoint>, dtype: Dtype, threads: usize) -> Experts {
        let layer = |(stack, i): (Stack, usize)| {
            let names = spec.names;
            let module = format!(
                "{}.{}.{}",
                names.layer(stack, i),
                names.feed_forward(stack).module,
                names.expert
            );
            let (d_model, d_ff) = (spec.d_model, spec.stack(stack).d_ff);
            let layout = |inputs, outputs| Layout {
                inputs,
                outputs,
                dtype,
                gated: false,
                bias: spec.biases,
            };
            (module, [layout(d_model, d_ff), layout(d_ff, d_model)])
        };
        Experts {
            checkpoint: checkpoint.clone(),
            dtype,
            threads,
            layers: spec.moe_layers().into_iter().map(layer).collect(),
            products: spec.names.products,
        }
    }
}

impl ExpertSource for Experts {
    fn layouts(&self, layer: usize) -> [Layout; 2] {
        self.layers[layer].1
    }

    fn read(&self, layer: usize, expert: usize, into: &mut Expert) -> Result<u64> {
        let load = Loader {
            checkpoint: &self.checkpoint,
            dtype: self.dtype,
            threads: self.threads,
        };
        let module = &self.layers[layer].0;
        let [up, down] = self.products.map(|p| format!("{module}{expert}.{p}"));
        Ok(load.repack(&up, &mut into.up)? + load.repack(&down, &mut into.down)?)
    }

    fn staging(&self) -> u64 {
        let most = |(module, layouts): &(String, [Layout; 2])| {
            let probe = format!("{module}0.{}.weight", self.products[0]);
            staging(&self.checkpoint, &probe, *layouts)
        };
        self.layers.iter().map(most).max().unwrap_or(0)
    }
}
