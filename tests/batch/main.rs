//! The running batch with a made-up model: a mixed-up cache row, slot or key shows in the output.

mod made;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use made::{expected, expected_of_prompt, Made, EOS, MAX_LENGTH, START, VOCABULARY};
use sluicegate::comm::threads;
use sluicegate::decode::batch::{Batch, Output, Request};
use sluicegate::decode::limits::Limits;
use sluicegate::decode::lockstep::{next, Next, Report, ENCODE_TOKENS};
use sluicegate::decode::search::{EarlyStopping, Settings};
use sluicegate::device::Cpu;

use sluicegate::moe::Context;

fn settings(beams: usize) -> Settings {
    Settings {
        beams,
        max_length: MAX_LENGTH,
        min_length: 0,
        length_penalty: 1.0,
        early_stopping: EarlyStopping::False,
        no_repeat_ngram: 0,
        start: START,
        eos: vec![EOS],
        forced_eos: None,
        sampling: None,
    }
}

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn within(&mut self, least: usize, most: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        least + (self.0 >> 33) as usize % (most - least + 1)
    }
}

/// A sentence of `tokens` tokens whose outputs are about `length` long.
fn request(number: usize, tokens: usize, length: usize, outputs: usize) -> Request {
    let rest = (1..tokens).map(|i| ((number * 31 + i * 7) % VOCABULARY) as u32);
    let output = |o: usize| Output {
        key: (number * 10 + o) as u64,
        forced: Some(2 + ((number + 5 * o) % (VOCABULARY - 2)) as u32),
        credits_source: o == 0,
        ..Output::default()
    };
    Request {
        ids: std::iter::once(length as u32).chain(rest).collect(),
        outputs: (0..outputs).map(output).collect(),
    }
}

/// `n` sentences of different lengths.
fn requests(n: usize, outputs: usize) -> Vec<Request> {
    let mut random = Random(11);
    let mut one = |i| request(i, random.within(2, 30), random.within(3, 25), outputs);
    (0..n).map(&mut one).collect()
}

/// What a job came to.
struct Run {
    /// Tokens by key.
    found: BTreeMap<u64, Vec<u32>>,
    /// Outputs decoded at each step while there were sentences left to ask for.
    active: Vec<usize>,
}

/// Works sentences off as a rank of a job does, a group of its own.
fn work(ctx: &mut Context, batch: &mut Batch, model: &mut Made, requests: &[Request]) -> Run {
    let mut queue: VecDeque<Request> = requests.iter().cloned().collect();
    let mut run = Run {
        found: BTreeMap::new(),
        active: Vec::new(),
    };
    for step in 0.. {
        assert!(step < 1_000_000, "no end in sight: {} found", run.found.len());
        let report = Report {
            wants: batch.wants(),
            waiting: batch.waiting() as u32,
            budget: batch.budget() as u32,
            active: batch.active() as u32,
            failed: ctx.failure.is_some(),
            ..Report::default()
        };
        let exhausted = queue.is_empty();
        let decided = next(&[report], batch.portions(), exhausted);
        let wanted = queue.len().min(report.wants as usize);
        queue.drain(..wanted).for_each(|r| batch.push(r));
        match decided {
            Next::Work { encode } => {
                batch.encode(ctx, model, 2 * step, encode);
                if !exhausted {
                    run.active.push(batch.active());
                }
                for f in batch.step(ctx, model, 2 * step + 1) {
                    let before = run.found.insert(f.key, f.hypothesis.ids);
                    assert!(before.is_none(), "key {} came twice", f.key);
                }
            }
            Next::Idle => assert!(wanted > 0, "nothing to do, and nothing asked for"),
            Next::Done => break,
            Next::Fail(_) | Next::Stop(_) => panic!("{:?}", ctx.failure),
        }
    }
    run
}

fn with_context<T: Send>(test: impl Fn(&mut Context) -> T + Sync) -> T {
    let alone = |comm: &dyn sluicegate::comm::Comm| {
        let cpu = Cpu::new(1).unwrap();
        test(&mut Context::new(&cpu, comm, 0, 0, false))
    };
    threads::run(1, alone).remove(0)
}

fn all_expected(requests: &[Request]) -> BTreeMap<u64, Vec<u32>> {
    let each = |r: &Request| -> Vec<(u64, Vec<u32>)> {
        let one = |o: &Output| (o.key, expected(&r.ids, o.forced.unwrap()));
        r.outputs.iter().map(one).collect()
    };
    requests.iter().flat_map(each).collect()
}

fn limits(tokens: usize, outputs: usize, per_sentence: usize) -> Limits {
    Limits {
        tokens,
        outputs,
        ..Limits::of(tokens, per_sentence)
    }
}

/// Nothing is in flight, and all there is can be had again: every slot, and the source rows in one piece.
fn all_came_back(ctx: &mut Context, batch: &mut Batch, model: &mut Made, limits: Limits) {
    assert_eq!((batch.active(), batch.waiting()), (0, 0));
    let sentences = limits.outputs / limits.per_sentence;
    let tokens = limits.tokens / sentences;
    let all: Vec<Request> = (0..sentences)
        .map(|i| request(i, tokens, 5, limits.per_sentence))
        .collect();
    all.iter().for_each(|r| batch.push(r.clone()));
    assert_eq!(batch.waiting(), sentences * tokens, "a place for every one at once");
    batch.encode(ctx, model, 0, 1);
    assert_eq!(batch.active(), limits.outputs);
    let found = work(ctx, batch, model, &[]).found;
    assert_eq!(found, all_expected(&all));
    batch.push(request(0, limits.tokens, 5, limits.per_sentence));
    assert_eq!(batch.waiting(), limits.tokens, "a place for one that takes all");
    work(ctx, batch, model, &[]);
}

#[test]
fn outputs_go_to_their_keys_whatever_the_number_of_slots() {
    let requests = requests(150, 1);
    let expected = all_expected(&requests);
    let lengths: BTreeSet<usize> = expected.values().map(Vec::len).collect();
    assert!(lengths.len() > 10, "outputs of different lengths");
    for outputs in [1, 2, 3, 7, 30, 200] {
        with_context(|ctx| {
            let (mut model, limits) = (Made::new(), limits(300, outputs, 1));
            let mut batch = Batch::new(settings(1), limits, &model);
            assert_eq!(work(ctx, &mut batch, &mut model, &requests).found, expected);
            assert_eq!(model.encoded, requests.len());
            assert!(model.most_tokens <= 300);
        });
    }
}

#[test]
fn many_sentences_are_encoded_in_portions() {
    let requests = requests(900, 1);
    with_context(|ctx| {
        let mut model = Made::new();
        let mut batch = Batch::new(settings(1), limits(20_000, 700, 1), &model);
        assert_eq!(
            work(ctx, &mut batch, &mut model, &requests).found,
            all_expected(&requests)
        );
        assert_eq!(model.encoded, requests.len());
        let (most, all) = (model.most_encoded, requests.iter().map(|r| r.ids.len()).sum::<usize>());
        // A sentence that is begun is encoded to its end.
        assert!(
            all > 4 * ENCODE_TOKENS && most < ENCODE_TOKENS + 30,
            "{most} of {all} tokens in one go"
        );
    });
}

#[test]
fn beams_find_the_same_in_company_as_alone() {
    let requests = requests(60, 2);
    let found = |outputs: usize, tokens: usize| {
        with_context(|ctx| {
            let mut model = Made::new();
            let mut batch = Batch::new(settings(3), limits(tokens, outputs, 2), &model);
            work(ctx, &mut batch, &mut model, &requests).found
        })
    };
    let alone = found(2, 30);
    assert_eq!(alone.len(), 120);
    assert!(
        alone != all_expected(&requests),
        "beams find other things than greedy search"
    );
    assert!(found(6, 70) == alone, "three sentences side by side");
    assert!(found(40, 1000) == alone, "twenty sentences side by side");
}

#[test]
fn outputs_of_a_sentence_share_its_source_and_all_rows_come_back() {
    // Once slots are short, once source rows.
    for limits in [limits(200, 9, 3), limits(50, 30, 3)] {
        let requests = requests(400, 3);
        with_context(|ctx| {
            let mut model = Made::new();
            let mut batch = Batch::new(settings(1), limits, &model);
            let found = work(ctx, &mut batch, &mut model, &requests).found;
            assert_eq!(found, all_expected(&requests));
            assert_eq!(model.encoded, requests.len(), "a source is encoded once");
            assert!(model.shared && model.most_tokens <= limits.tokens);
            all_came_back(ctx, &mut batch, &mut model, limits);
        });
    }
}

#[test]
fn a_sentence_longer_than_the_budget_is_widened_for() {
    let mut requests = requests(60, 2);
    for (at, tokens) in [(0, 41), (20, 100), (21, 150), (40, 90), (59, 200)] {
        requests[at] = request(1000 + at, tokens, 20, 2);
    }
    let limits = limits(40, 6, 2);
    with_context(|ctx| {
        let mut model = Made::new();
        let mut batch = Batch::new(settings(1), limits, &model);
        let found = work(ctx, &mut batch, &mut model, &requests).found;
        assert_eq!(found, all_expected(&requests));
        assert_eq!(model.encoded, requests.len());
        let most = model.most_tokens;
        assert!(
            most <= 40,
            "{most} tokens at once: a long sentence is alone, the budget holds after it"
        );
        assert!(most > 30, "{most} tokens at once: the test fills the budget");
        work(ctx, &mut batch, &mut model, &[request(7, 5, 5, 2)]);
        assert_eq!(model.rows, [200, 40], "rows for the longest, and again for the budget");
        all_came_back(ctx, &mut batch, &mut model, limits);
    });
}

#[test]
fn few_slots_are_kept_at_work() {
    // The token budget would hold fifty times as many sentences as there are slots: waiting for a part of it to fill
    // would leave slots empty. What is waited for is a quarter of the sentences that the slots hold, so about an
    // eighth of the slots stands idle on average, and a little more for the step between asking and getting.
    for (slots, per_sentence) in [(4, 1), (8, 1), (16, 1), (32, 1), (24, 3)] {
        let mut random = Random(5);
        let mut one = |i| request(i, random.within(16, 48), random.within(20, 60), per_sentence);
        let requests: Vec<Request> = (0..600 / per_sentence).map(&mut one).collect();
        let run = with_context(|ctx| {
            let (mut model, limits) = (Made::new(), limits(50 * 32 * slots, slots, per_sentence));
            let mut batch = Batch::new(settings(1), limits, &model);
            work(ctx, &mut batch, &mut model, &requests)
        });
        assert_eq!(run.found, all_expected(&requests));
        let mean = run.active.iter().sum::<usize>() as f64 / run.active.len() as f64;
        assert!(
            mean >= 0.9 * slots as f64,
            "{slots} slots, {per_sentence} a sentence: {mean:.2} at work"
        );
    }
}

#[test]
fn prompts_are_read_into_the_decoders_own_cache() {
    let mut requests = requests(120, 1);
    // Prompts of one token leave nothing to read ahead; one is longer than all the room.
    for at in [0, 7, 50, 119] {
        requests[at] = request(at, 1, 9, 1);
    }
    requests[60] = request(60, 400, 20, 1);
    let each = |r: &Request| {
        (
            r.outputs[0].key,
            expected_of_prompt(&r.ids, r.outputs[0].forced.unwrap()),
        )
    };
    let expected: BTreeMap<u64, Vec<u32>> = requests.iter().map(each).collect();
    let found = |beams: usize, tokens: usize, outputs: usize| {
        with_context(|ctx| {
            let mut model = Made::without_encoder();
            let mut batch = Batch::new(settings(beams), limits(tokens, outputs, 1), &model);
            work(ctx, &mut batch, &mut model, &requests).found
        })
    };
    for (tokens, outputs) in [(300, 1), (300, 7), (3000, 200), (10, 3)] {
        assert!(
            found(1, tokens, outputs) == expected,
            "{tokens} tokens, {outputs} outputs"
        );
    }
    let alone = found(3, 300, 1);
    assert!(alone != expected, "beams find other things than greedy search");
    assert!(found(3, 300, 5) == alone && found(3, 3000, 60) == alone);
}

#[test]
fn prompts_are_read_in_portions_of_any_size() {
    let mut requests = requests(60, 1);
    for (at, tokens) in [(0, 1), (20, 400), (21, 1), (40, 90)] {
        requests[at] = request(at, tokens, 20, 1);
    }
    let each = |r: &Request| {
        (
            r.outputs[0].key,
            expected_of_prompt(&r.ids, r.outputs[0].forced.unwrap()),
        )
    };
    let expected: BTreeMap<u64, Vec<u32>> = requests.iter().map(each).collect();
    for portion in [1, 3, 7, 64, 1000] {
        for (tokens, outputs) in [(300, 7), (3000, 60), (10, 3)] {
            with_context(|ctx| {
                let mut model = Made::without_encoder();
                let limits = Limits {
                    portion,
                    ..limits(tokens, outputs, 1)
                };
                let mut batch = Batch::new(settings(1), limits, &model);
                let found = work(ctx, &mut batch, &mut model, &requests).found;
                assert!(
                    found == expected,
                    "{portion} in one go, {tokens} tokens, {outputs} outputs"
                );
                assert!(model.most_encoded <= portion, "{} of {portion}", model.most_encoded);
                let own = outputs * (MAX_LENGTH - 1);
                // The prompt that is longer than all the room has no other output beside it.
                let alone = (MAX_LENGTH - 1) + 399;
                assert_eq!(model.rows[0], (own + tokens).max(alone));
                work(ctx, &mut batch, &mut model, &requests[1..2]);
                assert_eq!(model.rows[1], own + tokens, "the budget's rows again");
            });
        }
    }
}

#[test]
fn an_output_may_have_a_limit_of_its_own() {
    let mut requests = requests(40, 2);
    requests.iter_mut().for_each(|r| r.outputs[1].most = Some(4));
    with_context(|ctx| {
        let mut model = Made::new();
        let mut batch = Batch::new(settings(1), limits(300, 8, 2), &model);
        let found = work(ctx, &mut batch, &mut model, &requests).found;
        let mut wanted = all_expected(&requests);
        let short = requests.iter().map(|r| r.outputs[1].key);
        short.for_each(|key| wanted.get_mut(&key).unwrap().truncate(5));
        assert_eq!(found, wanted);
    });
}
