#!/usr/bin/env bash
# The bundled model from nothing, on two cores in two hours and forty minutes; then it replaces the bundled one.
# Interrupted, the same line with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
videollm-mod train tiny --threads 2 --out out/tiny "$@"
mkdir -p videollm_mod/assets/tiny
cp -r out/tiny/model/. videollm_mod/assets/tiny/
mkdir -p docs/results && cat out/tiny/first/log.jsonl out/tiny/log.jsonl > docs/results/train_tiny.jsonl
