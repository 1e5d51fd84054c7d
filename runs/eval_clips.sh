#!/usr/bin/env bash
# The bundled model of fixed cameras on real clips with labels by hand, the README's strip of frames, and the camera
# world's test split: runs/eval_clips.sh ../shared/data, 10 minutes; with --streams 32 behind it a third of them.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
data="$1"
shift
clips=()
for labels in "$data"/events/*.jsonl; do clips+=("$data/videos/$(basename "$labels" .jsonl).mp4"); done
mkdir -p docs/results
videollm-mod eval clips "${clips[@]}" --labels "$data/events" --model camera --json docs/results/eval_clips.json
videollm-mod watch "$data/videos/bottle-detection.mp4" --model camera --strip docs/camera.png
videollm-mod eval world --world cameras --model camera --streams 100 --heldout 0 --json docs/results/eval_cameras.json "$@"
