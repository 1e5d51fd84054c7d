#!/usr/bin/env bash
# The next bundled model from nothing: one training core and one that draws frames, about two hours; then it replaces the
# bundled one.
# Interrupted, the same line with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
videollm-mod train tiny --out out/tiny "$@"
mkdir -p videollm_mod/assets/tiny
cp -r out/tiny/model/. videollm_mod/assets/tiny/
mkdir -p docs/results && cp out/tiny/log.jsonl docs/results/train_tiny.jsonl
