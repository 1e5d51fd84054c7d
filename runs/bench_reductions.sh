#!/usr/bin/env bash
# Every token reduction on the bundled model, cell by cell; some hours of two quiet cores, and goes on where it stopped.
# Writes docs/results/bench_reductions.json, docs/reductions.png and docs/reductions.md.
# Laptop-sized, written beside nothing that counts: runs/bench_reductions.sh --quick --out out/quick.json --plot out/quick.png --page out/quick.md
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
told=(docs/results/reduction_fidelity*.json)
fidelity=()
[ -f "${told[0]}" ] && fidelity=(--fidelity "${told[@]}")
exec "$python" -m videollm_mod bench reductions --out docs/results/bench_reductions.json --plot docs/reductions.png \
    --page docs/reductions.md "${fidelity[@]}" "$@"
