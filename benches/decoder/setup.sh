# Sourced by benches/score.sh and benches/generate.sh: sets `options`, what main.py is to know of checkpoint and engines.

shared="${SLUICE_SHARED:-../shared}"
oracle="${SLUICE_ORACLE:-$HOME/.cache/sluice-oracle}"
bench="${SLUICE_BENCH:-$HOME/.cache/sluice-bench}"
python="$oracle/venv/bin/python"

for file in make_checkpoint.py bench_data.py; do
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

# The same weights as llama.cpp reads them.
if [[ -n "${SLUICE_LLAMA:-}" ]]; then
  for dtype in f32 bf16; do
    gguf="$bench/olmoe-$dtype.gguf"
    if [[ ! -f "$gguf" ]]; then
      say "making $gguf"
      "$SLUICE_LLAMA" -B benches/decoder/to_gguf.py "$checkpoint" "$gguf.unfinished" "$dtype" >&2
      mv "$gguf.unfinished" "$gguf"
    fi
  done
fi

cargo build --release --quiet --bin sluice
built="$(cargo bench --no-run --bench kernels 2>&1)" || { printf '%s\n' "$built" >&2; exit 1; }
ceiling="$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<<"$built")"
options=(--checkpoint "$checkpoint" --python "$python" --sluice "${CARGO_TARGET_DIR:-target}/release/sluice"
  --llama "${SLUICE_LLAMA:-}" --gguf "$bench" --vllm "${SLUICE_VLLM:-}" --ceiling "$ceiling")
