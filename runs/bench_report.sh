#!/usr/bin/env bash
# docs/bench.md and its plots, from whatever stands in docs/results.
set -euo pipefail
cd "$(dirname "$0")/.."
python="python"
[ -x .venv/bin/python ] && python=".venv/bin/python"
exec "$python" -m videollm_mod bench report "$@"
