#!/usr/bin/env bash
# The bundled model of fixed cameras, from that of coloured shapes, on two cores in about five hours; then it replaces the
# bundled one. Interrupted, the same line with --resume goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
videollm-mod train camera --threads 2 --out out/camera "$@"
mkdir -p videollm_mod/assets/camera
cp -r out/camera/model/. videollm_mod/assets/camera/
mkdir -p docs/results && cat out/camera/{first/first/first,first/first,first,.}/log.jsonl > docs/results/train_camera.jsonl
