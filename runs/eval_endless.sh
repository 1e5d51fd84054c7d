#!/usr/bin/env bash
# An hour of the world under every cache policy: docs/results/eval_endless.json and .md. Ctrl-C and the same command go on.
# Laptop-sized: runs/eval_endless.sh --minutes 2 --ago 0.5 1 --ask-every 15 --json /dev/null --markdown out/endless.md --journal out/j
# `full` has no bounds: its frames cost more and more, two hours of a core are not enough for an hour of it; leave it out with
# --policies own window carrier carrier-cls carrier-chosen norm.
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
mkdir -p docs/results out
exec "$python" -m videollm_mod eval endless --policies own window carrier carrier-cls carrier-chosen norm full --budgets 4MB 8MB \
    --json docs/results/eval_endless.json --markdown docs/results/eval_endless.md --journal out/eval_endless.jsonl "$@"
