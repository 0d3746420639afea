#!/usr/bin/env bash
# Scoring beside Hugging Face transformers and llama.cpp: ./x bench score [--help | OPTION...]
#
#   SLUICE_SHARED   folder that holds oracle/ (make_checkpoint.py, bench_data.py, bench_hf.py, setup.sh); default ../shared
#   SLUICE_ORACLE   folder of the Python environment that oracle/setup.sh makes; default ~/.cache/sluice-oracle
#   SLUICE_BENCH    folder for the checkpoint (1.3 GB, made where missing); default ~/.cache/sluice-bench
#   SLUICE_LLAMA    Python of an environment with llama-cpp-python; default: llama.cpp is left out
#                   (that contender has not been run yet)
#   SLUICE_GGUF     folder with olmoe-f32.gguf and olmoe-bf16.gguf, made by llama.cpp's convert_hf_to_gguf.py; default SLUICE_BENCH
#
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

shared="${SLUICE_SHARED:-../shared}"
oracle="${SLUICE_ORACLE:-$HOME/.cache/sluice-oracle}"
bench="${SLUICE_BENCH:-$HOME/.cache/sluice-bench}"
python="$oracle/venv/bin/python"

say() { printf 'bench score: %s\n' "$*" >&2; }

for file in make_checkpoint.py bench_data.py bench_hf.py; do
  if [[ ! -f "$shared/oracle/$file" ]]; then
    say "there is no $shared/oracle/$file: set SLUICE_SHARED to the folder that holds oracle/"
    exit 2
  fi
done
if [[ ! -x "$python" ]]; then
  say "there is no Python environment with transformers in $oracle. Make it (6 GB, some minutes), then start again:"
  say "  bash $shared/oracle/setup.sh $oracle"
  exit 2
fi
export HF_HUB_OFFLINE=1

# 319 M parameters: d 512, 8 layers, 48 experts of width 512 of which a token takes 4.
checkpoint="$bench/olmoe"
if [[ ! -f "$checkpoint/bench_ids.json" ]]; then
  say "making $checkpoint"
  out="$checkpoint.unfinished"
  rm -rf "$out"
  "$python" "$shared/oracle/make_checkpoint.py" --arch olmoe --seed 11 --out "$out" --cheap-init --layers 8 --d-model 512 --ffn 512 \
    --experts 48 --top-k 4 --heads 8 --kv-heads 8 --vocab 8000 --max-pos 1024 --model-max-length 1024 --shards 2 >&2
  "$python" "$shared/oracle/bench_data.py" "$out" score >&2
  mv "$out" "$checkpoint"
fi

cargo build --release --quiet --bin sluice
exec "$python" -B benches/score/main.py --checkpoint "$checkpoint" --python "$python" --reference "$shared/oracle/bench_hf.py" \
  --sluice "${CARGO_TARGET_DIR:-target}/release/sluice" --llama "${SLUICE_LLAMA:-}" --gguf "${SLUICE_GGUF:-$bench}" "$@"
