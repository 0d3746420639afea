#!/usr/bin/env bash
# Translation beside Hugging Face transformers: ./x bench translate [--pairs N] [--sentences 64,512] [--dtypes f32,bf16] [--ours-only]
#
#   SLUICE_SHARED   folder that holds oracle/ (make_checkpoint.py, bench_data.py, bench_hf.py, setup.sh); default ../shared
#   SLUICE_ORACLE   folder of the Python environment that oracle/setup.sh makes; default ~/.cache/sluice-oracle
#   SLUICE_BENCH    folder for the checkpoint (1.3 GB, made where it is missing); default ~/.cache/sluice-bench
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

shared="${SLUICE_SHARED:-../shared}"
oracle="${SLUICE_ORACLE:-$HOME/.cache/sluice-oracle}"
bench="${SLUICE_BENCH:-$HOME/.cache/sluice-bench}"
python="$oracle/venv/bin/python"

say() { printf 'bench translate: %s\n' "$*" >&2; }

if [[ ! -f "$shared/oracle/bench_hf.py" ]]; then
  say "there is no $shared/oracle/bench_hf.py: set SLUICE_SHARED to the folder that holds oracle/"
  exit 2
fi
if [[ ! -x "$python" || ! -d "$oracle/tf4" ]]; then
  say "there is no Python environment with transformers in $oracle. Make it (6 GB, some minutes), then start again:"
  say "  bash $shared/oracle/setup.sh $oracle"
  exit 2
fi
export ORACLE_TF4="$oracle/tf4" HF_HUB_OFFLINE=1

# 335 M parameters: d 512, 6 + 6 layers, every second one sparse, 32 experts of which a token takes 2, ffn 1536.
checkpoint="$bench/nllb-moe"
if [[ ! -f "$checkpoint/bench_ids.json" ]]; then
  say "making $checkpoint"
  "$python" "$shared/oracle/make_checkpoint.py" --arch nllb-moe --seed 11 --out "$checkpoint" --cheap-init --layers 6 --sparse-step 2 \
    --d-model 512 --ffn 1536 --experts 32 --heads 8 --vocab 8000 --max-pos 512 --model-max-length 512 --shards 2 >&2
  "$python" "$shared/oracle/bench_data.py" "$checkpoint" translate >&2
fi

cargo build --release --quiet --bin sluice
exec "$python" benches/translate.py --checkpoint "$checkpoint" --python "$python" --reference "$shared/oracle/bench_hf.py" \
  --sluice "${CARGO_TARGET_DIR:-target}/release/sluice" "$@"
