#!/usr/bin/env bash
# Every token reduction on one dense model with a vision transformer, as it is and after a short adaptation, cell by cell;
# some hours of one core, and goes on where it stopped. The model stays with the results; without it `train vit` makes it
# first, in an hour and a half. Writes docs/results/bench_reductions.json, docs/reductions.png and docs/reductions.md.
# Time, FLOPs and bytes anew, ten minutes of a machine that does nothing else: runs/bench_reductions.sh --costs
# Laptop-sized, written beside nothing that counts: runs/bench_reductions.sh --quick --out out/quick.json --plot out/quick.png --page out/quick.md
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
model="docs/results/vit/model"
if [ ! -d "$model" ]; then
    resume=()
    [ -d out/vit ] && resume=(--resume)
    "$python" -m videollm_mod train vit --out out/vit ${resume[@]+"${resume[@]}"}
    mkdir -p docs/results/vit
    cp -r out/vit/model out/vit/log.jsonl docs/results/vit/
fi
told=(docs/results/reduction_fidelity*.json)
fidelity=()
[ -f "${told[0]}" ] && fidelity=(--fidelity "${told[@]}")
exec "$python" -m videollm_mod bench reductions --model "$model" --dials scale=1.2 events_per_minute=15 --seconds 16 --streams 60 \
    --out docs/results/bench_reductions.json --plot docs/reductions.png --page docs/reductions.md "${fidelity[@]}" "$@"
