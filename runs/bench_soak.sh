#!/usr/bin/env bash
# 100,000 frames through one session of the bundled model, with a window of its own: docs/results/bench_soak.json and .png.
# At the 20 to 30 frames a second that `watch` does on one core about an hour. Laptop-sized: runs/bench_soak.sh --frames 3000 --every 500 --out /dev/null --plot out/soak.png
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
mkdir -p docs/results
exec "$python" -m videollm_mod bench soak --out docs/results/bench_soak.json --plot docs/results/bench_soak.png "$@"
