#!/usr/bin/env bash
# Product kernels beside gemm, faer and OpenBLAS, and beside what the machine can do:
#   ./x bench kernels [--pairs 5] [--threads 1,2] [--ours-only] [WORD...]
#
#   WORD          only lines that hold all of these: './x bench kernels f32 "512 x 1536 |" memory'
#   --pairs N     rounds; a round times every contender once, in turn
#   --threads     numbers of threads
#   --ours-only   leave the libraries out
#
# All lines take about 15 minutes. The columns: microseconds, GFLOP/s and GB/s of Sluice (weights only); its share of the peak
# (instructions on registers alone) and, where 1 to 4 rows an expert make reading the bottleneck, of the read bandwidth, both
# measured in the same round; the time of each library over Sluice's in the same round. Medians, with the least and the most.
# A library gets rows already gathered, and whichever layout of weights and use of threads was its fastest in a trial.
# "from memory" takes other weights at each call, 192 MB in all. OpenBLAS is told that the CPU is a SKYLAKEX where there is AVX-512:
# OPENBLAS_CORETYPE tells it otherwise.
#
# Attention, norms and the head: cargo bench --bench kernels -- [WORD]
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

target="${CARGO_TARGET_DIR:-target}"
cargo build --release --quiet --manifest-path benches/peers/Cargo.toml --target-dir "$target"
exec "$target/release/peers" "$@"
