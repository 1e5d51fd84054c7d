#!/usr/bin/env bash
# FLOPs and KV bytes of every plan at Llama-3-8B size, by formula and as PyTorch counts them, without weights.
# Nothing is timed, so a busy machine gives the same numbers. Writes docs/results/bench_flops.json.
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench flops --out docs/results/bench_flops.json "$@"
