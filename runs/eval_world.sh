#!/usr/bin/env bash
# The bundled model on the world's test split, on held-out combinations, on long streams and on long quiet ones:
# the README's quality numbers, a quarter of an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results out
videollm-mod eval world --split test --streams 200 --heldout 20 --json docs/results/eval_world.json --report out/report "$@"
videollm-mod eval world --split test --seconds 180 --streams 20 --heldout 0 --json docs/results/eval_world_180s.json "$@"
videollm-mod eval world --split test --seconds 300 --dials events_per_minute=1 --streams 10 --heldout 0 \
    --json docs/results/eval_world_quiet.json "$@"
