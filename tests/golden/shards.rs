//! A rank reads the dense weights and its own experts, and nothing else.

use crate::Golden;
use sluicegate::checkpoint::Checkpoint;
use sluicegate::device::Dtype;
use sluicegate::model::inventory::Owner;
use sluicegate::model::{self, Loading};
use sluicegate::moe::dispatch::Owners;

#[test]
fn a_rank_reads_only_its_own_experts() {
    let Some(golden) = Golden::open("nllb-moe-s1") else {
        return;
    };
    let architecture = model::read_config(&golden.dir).expect("config");
    let load = |rank, ranks| {
        let checkpoint = Checkpoint::open(&golden.dir).expect("checkpoint");
        let loading = Loading {
            checkpoint: &checkpoint,
            dtype: Dtype::F32,
            threads: 1,
            rank,
            ranks,
            progress: &mut |_, _| (),
        };
        let held = architecture.load(loading).expect("weights").bytes();
        (held, checkpoint.bytes_read())
    };
    for ranks in [1, 2, 3, 9] {
        let mut held = 0;
        for rank in 0..ranks {
            let block = Owners::block(architecture.shape().experts, ranks, rank);
            let wanted = |owner: &Owner| match owner {
                Owner::Dense => true,
                Owner::Expert { expert, .. } => block.contains(expert),
            };
            let all = architecture
                .inventory(&|_| true)
                .into_iter()
                .filter(|t| wanted(&t.owner));
            let bytes: usize = all.map(|t| 4 * t.elements()).sum();
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
