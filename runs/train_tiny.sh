#!/usr/bin/env bash
# The bundled model from nothing, as it was made, on two cores: two hours of coloured shapes, then an hour of both worlds;
# then it replaces the bundled one. Interrupted, the same line goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results
for part in tiny camera; do
  videollm-mod train "$part" --threads 2 --out "out/$part" $([ -d "out/$part/checkpoint" ] && echo --resume)
  cp "out/$part/log.jsonl" "docs/results/train_$part.jsonl"
done
cp -r out/camera/model/. videollm_mod/assets/tiny/
