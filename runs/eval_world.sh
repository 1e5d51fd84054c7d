#!/usr/bin/env bash
# The bundled model on the world's test split, on held-out combinations and on long streams: the README's quality
# numbers, 10 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results out
videollm-mod eval world --split test --streams 200 --heldout 20 --json docs/results/eval_world.json --report out/report "$@"
videollm-mod eval world --split test --seconds 180 --streams 20 --heldout 0 --json docs/results/eval_world_180s.json "$@"
