//! A rank reads the dense weights and its own experts, and nothing else.

use crate::Golden;
use sluicegate::checkpoint::Checkpoint;
use sluicegate::device::Dtype;
use sluicegate::model::inventory::{Expected, Owner};
use sluicegate::model::{self, Loading};
use sluicegate::moe::dispatch::Owners;
use std::sync::Arc;

fn play(name: &str) {
    let Some(golden) = Golden::open(name) else { return };
    let architecture = model::read_config(&golden.dir).expect("config");
    let load = |rank, ranks| {
        let checkpoint = Arc::new(Checkpoint::open(&golden.dir).expect("checkpoint"));
        let loading = Loading {
            checkpoint: &checkpoint,
            dtype: Dtype::F32,
            threads: 1,
            rank,
            ranks,
            buffered: false,
            progress: &mut |_, _| (),
        };
        let held = architecture.load(loading).expect("weights").bytes();
        (held, checkpoint.bytes_read())
    };
    for ranks in [1, 2, 3, 9] {
        let mut held = 0;
        for rank in 0..ranks {
            let block = Owners::block(architecture.shape().experts, ranks, rank);
            let wanted = |t: &Expected| match &t.owner {
                Owner::Dense => t.elements(),
                Owner::Expert { expert, .. } => t.elements() * usize::from(block.contains(expert)),
                Owner::Experts { .. } => t.elements() / architecture.shape().experts * block.len(),
            };
            let checkpoint = Arc::new(Checkpoint::open(&golden.dir).expect("checkpoint"));
            let all = architecture.inventory(&|name| checkpoint.info(name).is_some());
            let bytes = 4 * all.iter().map(wanted).sum::<usize>();
            let (weights, read) = load(rank, ranks);
            assert_eq!(read, bytes as u64, "rank {rank} of {ranks}");
            held += weights;
        }
        let whole = load(0, 1).0;
        assert!(
            held >= whole && (ranks == 1 || held < ranks as u64 * whole),
            "experts are sharded"
        );
    }
}

#[test]
fn a_rank_reads_only_its_own_experts_of_nllb_moe() {
    play("nllb-moe-s1");
}

#[test]
fn a_rank_reads_only_its_own_experts_of_switch() {
    play("switch-s1");
}

#[test]
fn a_rank_reads_only_its_own_experts_of_decoder_only_models() {
    for name in [
        "olmoe-s1",
        "qwen2_moe-s1",
        "mixtral-s3-fused-v5",
        "gpt_oss-s1",
        "deepseek_v3-s1",
    ] {
        play(name);
    }
}
