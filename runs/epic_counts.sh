#!/usr/bin/env bash
# EPIC-KITCHENS-100's validation set as streams: videos, sentences, seconds, gaps, by video, and how long that took.
#   runs/epic_counts.sh ../shared/data/annotations -> docs/results/epic_{narration,anticipation,lta}.json
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
mkdir -p docs/results
for task in narration anticipation lta; do
    videollm-mod data stats "epic-$task" --root "${1:?the folder of EPIC_100_validation.csv}" --json "docs/results/epic_$task.json"
done
