#!/usr/bin/env bash
# Scoring beside Hugging Face transformers, llama.cpp and vLLM: ./x bench score [--help | OPTION...]
#
#   SLUICE_SHARED   folder that holds oracle/ (make_checkpoint.py, bench_data.py, setup.sh); default ../shared
#   SLUICE_ORACLE   folder of the Python environment that oracle/setup.sh makes; default ~/.cache/sluice-oracle
#   SLUICE_BENCH    folder for the checkpoint (1.3 GB, made where missing); default ~/.cache/sluice-bench
#   SLUICE_LLAMA    Python of an environment with llama-cpp-python, gguf and safetensors; default: llama.cpp is left out
#   SLUICE_VLLM     Python of an environment with vllm for CPUs; default: vLLM is left out
#
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

say() { printf 'bench score: %s\n' "$*" >&2; }

. benches/decoder/setup.sh
exec "$python" -B benches/score/main.py "${options[@]}" "$@"
