#!/usr/bin/env bash
# Dense against routed: training step, activation peak, KV bytes, streaming. About eight minutes on two quiet cores;
# writes docs/results/bench_depth.json, which the README quotes. Laptop-sized: runs/bench_depth.sh --quick --out /dev/null
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench depth --out docs/results/bench_depth.json "$@"
