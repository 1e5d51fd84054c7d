#!/usr/bin/env bash
# Many sessions in one engine against the same sessions in turn: 1, 4, 16 and 64 of them. Some ten minutes on two quiet
# cores and 10 GB; writes docs/results/bench_engine.json. Laptop-sized: runs/bench_engine.sh --quick --out /dev/null
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench engine --out docs/results/bench_engine.json "$@"
