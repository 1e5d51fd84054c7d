#!/usr/bin/env bash
# The paper's tables at a small scale: trains and measures every cell that is not there yet, and draws the page
# docs/results/tables/README.md. Stop it when you like; the same line goes on. Afterwards, on a quiet machine, --costs.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
videollm-mod tables "$@"
