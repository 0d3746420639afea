# Sourced by the benches that translate: where things are, and `make NAME OPTION...`.

shared="${SLUICE_SHARED:-../shared}"
oracle="${SLUICE_ORACLE:-$HOME/.cache/sluice-oracle}"
bench="${SLUICE_BENCH:-$HOME/.cache/sluice-bench}"
python="$oracle/venv/bin/python"

for file in make_checkpoint.py skew_routers.py bench_data.py bench_hf.py; do
  if [[ ! -f "$shared/oracle/$file" ]]; then
    say "there is no $shared/oracle/$file: set SLUICE_SHARED to the folder that holds oracle/"
    exit 2
  fi
done
if [[ ! -x "$python" || ! -d "$oracle/tf4" ]]; then
  say "there is no Python environment with transformers in $oracle. Make it (6 GB, some minutes), then start again:"
  say "  bash $shared/oracle/setup.sh $oracle"
  exit 2
fi
export ORACLE_TF4="$oracle/tf4" HF_HUB_OFFLINE=1

# make NAME OPTION...: an NLLB-MoE of random weights and the sentences that go with it, whole or not at all.
make() {
  local name="$1" out="$bench/$1.unfinished"
  shift
  say "making $bench/$name"
  rm -rf "$out"
  "$python" "$shared/oracle/make_checkpoint.py" --arch nllb-moe --out "$out" --cheap-init --sparse-step 2 --d-model 512 --heads 8 \
    --vocab 8000 --max-pos 512 --model-max-length 512 "$@" >&2
  if [[ "$name" == *-skew ]]; then "$python" "$shared/oracle/skew_routers.py" "$out" >&2; fi
  "$python" "$shared/oracle/bench_data.py" "$out" translate >&2
  rm -rf "${bench:?}/$name"
  mv "$out" "$bench/$name"
}

# 290 M parameters: d 512, 4 + 4 layers, every second one sparse, 64 experts of ffn 1024, few of which get most tokens.
make_skewed() {
  [[ -f "$bench/nllb-moe-skew/bench_ids.json" ]] || make nllb-moe-skew --seed 12 --layers 4 --ffn 1024 --experts 64 --router-bias 1
}
