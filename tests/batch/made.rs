//! A made-up model, which finds each next token in what the caches hold and nowhere else.

use std::collections::BTreeSet;

use sluicegate::device::{Dtype, Linear, Part, Source};
use sluicegate::model::cache::{CacheRows, CacheType, Caches, DecodeRow, SourceRow};
use sluicegate::model::{Model, Shape};
use sluicegate::moe::Context;

/// Also the width of hidden states: the head is a multiple of the identity.
pub const VOCABULARY: usize = 40;
pub const START: u32 = 0;
pub const EOS: u32 = 1;
pub const MAX_LENGTH: usize = 70;

/// The token after `ids` and the next best with their logits: any change to either sequence changes it. The first source token is the
/// output's length, the start token included, but for a few tokens more that the forced one adds: outputs of one
/// source end at different steps.
fn next_token(source: &[u32], ids: &[u32]) -> [(u32, f32); 2] {
    let more = ids.get(1).map_or(0, |forced| forced % 4);
    let length = source.first().unwrap_or(&ids[0]);
    if ids.len() + 1 >= (length + more) as usize {
        return [(EOS, 5.0), (2, 1.0)];
    }
    let all = source.iter().chain([&u32::MAX]).chain(ids);
    let hash = all.fold(0xcbf2_9ce4_8422_2325u64, |h, &t| {
        (h ^ u64::from(t)).wrapping_mul(0x0100_0000_01b3).rotate_left(29)
    });
    let words = VOCABULARY as u64 - 2;
    let first = hash % words;
    let second = (first + 1 + (hash >> 32) % (words - 1)) % words;
    // Some choices are surer than others: a second best one may lead to the best whole.
    let sure = 2.0 + ((hash >> 40) % 5) as f32;
    [(first as u32 + 2, sure), (second as u32 + 2, sure - 0.25)]
}

/// What greedy search must find.
pub fn expected(source: &[u32], forced: u32) -> Vec<u32> {
    expected_after(source, START, forced)
}

/// What greedy search must find behind a prompt that a decoder-only model reads.
pub fn expected_of_prompt(prompt: &[u32], forced: u32) -> Vec<u32> {
    let (start, before) = prompt.split_last().unwrap();
    expected_after(before, *start, forced)
}

fn expected_after(source: &[u32], start: u32, forced: u32) -> Vec<u32> {
    let mut ids = vec![start, forced];
    while ids.last() != Some(&EOS) && ids.len() < MAX_LENGTH {
        ids.push(next_token(source, &ids)[0].0);
    }
    ids
}

/// Keeps tokens where a model keeps keys, and counts what it is asked to do.
pub struct Made {
    pub shape: Shape,
    pub head: Linear,
    pub hidden: Vec<f32>,
    /// Sentences encoded so far.
    pub encoded: usize,
    /// Most source tokens encoded in one go.
    pub most_encoded: usize,
    /// Rows that there were for sources, or for all tokens without an encoder: the most, and now.
    pub rows: [usize; 2],
    /// Most source tokens in flight, where there were several sentences.
    pub most_tokens: usize,
    /// Sources in use by more than one row at a time.
    pub shared: bool,
}

impl Made {
    /// A decoder-only one: prompts are read into the cache of its own tokens.
    pub fn without_encoder() -> Made {
        let mut made = Made::new();
        made.shape.encoder = false;
        made
    }

    pub fn new() -> Made {
        let mut weights = vec![0.0; VOCABULARY * VOCABULARY];
        (0..VOCABULARY).for_each(|i| weights[i * VOCABULARY + i] = 1.0);
        let part = Part {
            weights: Source::F32(&weights),
            bias: None,
        };
        Made {
            head: Linear::pack(VOCABULARY, &[part], Dtype::F32).unwrap(),
            shape: Shape {
                encoder: true,
                d_model: VOCABULARY,
                vocab_size: VOCABULARY,
                layers: 1,
                cache_row: [1, 1],
                ..Shape::default()
            },
            hidden: Vec::new(),
            encoded: 0,
            most_encoded: 0,
            rows: [0; 2],
            most_tokens: 0,
            shared: false,
        }
    }
}

fn put(cache: &mut CacheRows, row: usize, token: u32) {
    let CacheRows::F32(cache) = cache else {
        panic!("float32 was asked for")
    };
    cache.keys[row] = token as f32;
    cache.values[row] = token as f32;
}

fn get(cache: &CacheRows, row: usize) -> u32 {
    let CacheRows::F32(cache) = cache else {
        panic!("float32 was asked for")
    };
    cache.values[row] as u32
}

impl Model for Made {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn cache_type(&self) -> CacheType {
        CacheType::F32
    }

    fn head(&self) -> &Linear {
        &self.head
    }

    fn bytes(&self) -> u64 {
        self.head.bytes() as u64
    }

    fn read(&mut self, _: &mut Context, sources: &[SourceRow], caches: &mut Caches) {
        self.encoded += sources.iter().filter(|s| s.before == 0).count();
        self.most_encoded = self.most_encoded.max(sources.iter().map(|s| s.ids.len()).sum());
        let cache = if self.shape.encoder {
            caches.cross(0)
        } else {
            caches.own(0)
        };
        if let CacheRows::F32(planes) = &cache {
            self.rows = [self.rows[0].max(planes.keys.len()), planes.keys.len()];
        }
        for source in sources {
            let rows = source.first + source.before..;
            rows.zip(source.ids).for_each(|(row, &id)| put(cache, row, id));
        }
    }

    fn decode(&mut self, _: &mut Context, rows: &[DecodeRow], caches: &mut Caches) -> &[f32] {
        let sources: BTreeSet<_> = rows.iter().map(|r| r.source).collect();
        if sources.len() > 1 {
            self.most_tokens = self.most_tokens.max(sources.iter().map(|s| s.1).sum());
        }
        self.shared |= sources.len() < rows.len();
        rows.iter().for_each(|r| put(caches.own(0), r.row, r.token));
        self.hidden.clear();
        for row in rows {
            let (first, n) = row.source;
            let all: Vec<u32> = row.keys.iter().map(|r| get(caches.own(0), r)).collect();
            assert_eq!((row.position + 1, Some(&row.token)), (all.len(), all.last()));
            let (source, ids) = match self.shape.encoder {
                true => ((first..first + n).map(|r| get(caches.cross(0), r)).collect(), &all[..]),
                false => (all[..n].to_vec(), &all[n..]),
            };
            let at = self.hidden.len();
            self.hidden.resize(at + VOCABULARY, 0.0);
            for (token, logit) in next_token(&source, ids) {
                self.hidden[at + token as usize] = logit;
            }
        }
        &self.hidden
    }
}
