#!/usr/bin/env bash
# Half of the experts in memory beside all of them: ./x bench buffer [--help | OPTION...]
#
#   SLUICE_SHARED   folder that holds oracle/ (make_checkpoint.py, skew_routers.py, bench_data.py, bench_hf.py, setup.sh); default
#                   ../shared
#   SLUICE_ORACLE   folder of the Python environment that oracle/setup.sh makes; default ~/.cache/sluice-oracle
#   SLUICE_BENCH    folder for the checkpoint (1.1 GB, made where missing); default ~/.cache/sluice-bench
#
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

say() { printf 'bench buffer: %s\n' "$*" >&2; }

. benches/translate/setup.sh
make_skewed
cargo build --release --quiet --bin sluice
exec python3 -B benches/buffer/main.py --checkpoint "$bench/nllb-moe-skew" --sluice "${CARGO_TARGET_DIR:-target}/release/sluice" "$@"
