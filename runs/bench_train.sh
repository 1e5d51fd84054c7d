#!/usr/bin/env bash
# A training step, every plan against dense and Transformers' own, logits at labels and at all positions. By reckoning ten
# minutes on two quiet cores; writes docs/results/bench_train.json. Seven rivals take a minute a turn, in which a machine's speed
# drifts; more turns of fewer: --routes interleaved@0.2 --steps 15 --out docs/results/bench_train_interleaved.json. Laptop-sized: runs/bench_train.sh --quick --out /dev/null
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench train --out docs/results/bench_train.json "$@"
