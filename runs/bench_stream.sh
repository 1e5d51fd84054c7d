#!/usr/bin/env bash
# Milliseconds per frame and KV bytes at 100, 300, 600, 1200 frames, 10 and 50 tokens: every plan against dense, and
# Transformers' own. By reckoning an hour and a half on two quiet cores, 20 GB free; writes docs/results/bench_stream.json.
# The file has each point as soon as it is measured. Shorter: --fillings 3. Laptop-sized: runs/bench_stream.sh --quick --out /dev/null
# On a GPU: runs/bench_stream.sh --llm llama-3-8b --device cuda --dtype bfloat16 --out docs/results/bench_stream_gpu.json
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench stream --out docs/results/bench_stream.json "$@"
