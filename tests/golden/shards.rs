//! A rank reads the dense weights and its own experts, and nothing else.

use crate::Golden;
use sluicegate::checkpoint::{read_json, Checkpoint};
use sluicegate::device::Dtype;
use sluicegate::model::nllb_moe::inventory::{inventory, Owner};
use sluicegate::model::nllb_moe::{NllbMoe, NllbMoeConfig};
use sluicegate::moe::dispatch::Owners;

#[test]
fn a_rank_reads_only_its_own_experts() {
    let Some(golden) = Golden::open("nllb-moe-s1") else {
        return;
    };
    let json = read_json(&golden.dir, "config.json").expect("config.json");
    let config = NllbMoeConfig::from_json(&json, &golden.dir).expect("config");
    for ranks in [1, 2, 3, 9] {
        let mut held = 0;
        for rank in 0..ranks {
            let checkpoint = Checkpoint::open(&golden.dir).expect("checkpoint");
            let model =
                NllbMoe::load(&checkpoint, &config, Dtype::F32, 1, (rank, ranks), &mut |_, _| ()).expect("weights");
            let block = Owners::block(config.num_experts, ranks, rank);
            let wanted = |owner: &Owner| match owner {
                Owner::Dense => true,
                Owner::Expert { expert, .. } => block.contains(expert),
            };
            let all = inventory(&config).into_iter().filter(|t| wanted(&t.owner));
            let bytes: usize = all.map(|t| 4 * t.elements()).sum();
            assert_eq!(checkpoint.bytes_read(), bytes as u64, "rank {rank} of {ranks}");
            held += model.bytes();
        }
        let one = Checkpoint::open(&golden.dir).expect("checkpoint");
        let whole = NllbMoe::load(&one, &config, Dtype::F32, 1, (0, 1), &mut |_, _| ())
            .expect("weights")
            .bytes();
        assert!(
            held >= whole && (ranks == 1 || held < ranks as u64 * whole),
            "experts are sharded"
        );
    }
}
