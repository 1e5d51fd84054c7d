#!/usr/bin/env bash
# The bundled model from nothing, as it was made: two cores, two hours; then it replaces the bundled one.
# Interrupted, the same line with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
videollm-mod train tiny --threads 2 --out out/tiny "$@"
mkdir -p videollm_mod/assets/tiny
cp -r out/tiny/model/. videollm_mod/assets/tiny/
mkdir -p docs/results && cp out/tiny/log.jsonl docs/results/train_tiny.jsonl
