#!/usr/bin/env bash
# Translation beside Hugging Face transformers and CTranslate2: ./x bench translate [--help | OPTION...]
#
#   SLUICE_SHARED   folder that holds oracle/ (make_checkpoint.py, skew_routers.py, bench_data.py, bench_hf.py, setup.sh); default
#                   ../shared
#   SLUICE_ORACLE   folder of the Python environment that oracle/setup.sh makes; default ~/.cache/sluice-oracle
#   SLUICE_BENCH    folder for the checkpoints (3.3 GB, made where missing); default ~/.cache/sluice-bench
#
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

say() { printf 'bench translate: %s\n' "$*" >&2; }

# Wrong options are refused before anything is made.
contenders="$(python3 -B benches/translate/main.py --needs "$@")"
needs() { [[ " $contenders " == *" $1 "* ]]; }

. benches/translate/setup.sh
if { needs dense || needs ctranslate2; } && ! "$python" -c 'import ctranslate2' 2>/dev/null; then
  say "CTranslate2 is missing in $oracle. Install it, or leave out what needs it (--contenders transformers,sluice), then start again:"
  say "  $python -m pip install ctranslate2==4.8.5"
  exit 2
fi
# 335 M parameters: d 512, 6 + 6 layers, every second one sparse, 32 experts of which a token takes 2, ffn 1536.
checkpoint="$bench/nllb-moe" options=()
[[ -f "$checkpoint/bench_ids.json" ]] || make nllb-moe --seed 11 --layers 6 --ffn 1536 --experts 32 --shards 2
if needs skewed; then
  make_skewed
  options+=(--skewed "$bench/nllb-moe-skew")
fi
if needs dense || needs ctranslate2; then
  dense="$bench/nllb-dense" theirs="$bench/ctranslate2-dense"
  if [[ ! -f "$theirs/model.bin" || ! -f "$dense/model.safetensors" ]]; then
    say "making $dense and $theirs"
    PYTHONPATH="$oracle/tf4" "$python" -B benches/translate/twins.py "$checkpoint" "$dense" "$theirs" >&2
  fi
  options+=(--dense "$dense" --ctranslate2 "$theirs")
fi

cargo build --release --quiet --bin sluice
built="$(cargo bench --no-run --bench kernels 2>&1)" || { printf '%s\n' "$built" >&2; exit 1; }
ceiling="$(sed -n 's/.*Executable .*(\(.*\))$/\1/p' <<<"$built")"
exec "$python" -B benches/translate/main.py --checkpoint "$checkpoint" --python "$python" --reference "$shared/oracle/bench_hf.py" \
  --sluice "${CARGO_TARGET_DIR:-target}/release/sluice" --ceiling "$ceiling" "${options[@]}" "$@"
