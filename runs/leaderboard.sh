#!/usr/bin/env bash
# Cheap baselines and models on the same 200 test streams: the usual world with the bundled model, and the smaller one of
# the paper's tables with their dense model. Five minutes. Writes docs/results/leaderboard.json, leaderboard_tables.json.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
dense=$(echo docs/results/tables/base-*/model)
videollm-mod eval leaderboard --json docs/results/leaderboard.json "$@"
videollm-mod eval leaderboard --models "$dense" --seconds 16 --dials scale=1.2 events_per_minute=15 questions=4 \
    --json docs/results/leaderboard_tables.json "$@"
