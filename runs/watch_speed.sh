#!/usr/bin/env bash
# Frames per second of the bundled model on the bundled clip, one core, nothing written: the README's speed number.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results
OMP_NUM_THREADS=1 taskset -c 0 videollm-mod watch videollm_mod/assets/demo.mp4 --threads 1 | tail -n 1 | tee docs/results/watch_speed.json
