#!/usr/bin/env bash
# The video reader against plain PyAV (and torchcodec, if it loads) on generated clips of six codecs and three sizes.
# Writes docs/results/bench_decode.json. Laptop-sized: runs/bench_decode.sh --quick --out /dev/null
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench decode --out docs/results/bench_decode.json "$@"
