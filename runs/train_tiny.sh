#!/usr/bin/env bash
# The bundled model from nothing, as it was made, in two runs: two cores, two and a half hours; then it replaces the
# bundled one. Interrupted, the same line with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
[ -e out/tiny/model/config.json ] || videollm-mod train tiny --threads 2 --out out/tiny "$@"
videollm-mod train tiny_longer --start out/tiny/model --seed 1 --threads 2 --out out/longer "$@"
mkdir -p videollm_mod/assets/tiny
cp -r out/longer/model/. videollm_mod/assets/tiny/
mkdir -p docs/results && cat out/tiny/log.jsonl out/longer/log.jsonl > docs/results/train_tiny.jsonl
