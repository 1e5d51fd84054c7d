#!/usr/bin/env bash
# The bundled model on the world's test split and on held-out combinations: the README's quality numbers, 4 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results out
videollm-mod eval world --split test --streams 200 --heldout 20 --json docs/results/eval_world.json --report out/report "$@"
