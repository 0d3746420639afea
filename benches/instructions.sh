#!/usr/bin/env bash
# Instructions that a generated token takes, for changes too small for a clock: ./x bench instructions [--update] [--bound PERCENT]
#
#   --update         write what is found to benches/instructions.txt, beside which later runs are put
#   --bound PERCENT  end with code 1 if the total is more than so many per cent above that file (default: never)
#
# Takes about two minutes; needs valgrind (apt-get install valgrind) and Python 3.
set -euo pipefail
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."

for tool in valgrind python3; do
  command -v "$tool" >/dev/null || { echo "bench instructions: $tool is missing. Type this, then start again: sudo apt-get install $tool" >&2; exit 2; }
done
cargo build --release --quiet --bin sluice
exec python3 -B benches/instructions/main.py --sluice "${CARGO_TARGET_DIR:-target}/release/sluice" "$@"
