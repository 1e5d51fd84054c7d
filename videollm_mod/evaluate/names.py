"""What the list of commands must know of evaluation before anything is loaded: names and defaults. Imports nothing."""

from __future__ import annotations

# Streams that share a process's steps. Measured with the bundled model on one core, seconds of CPU for a stream on its
# own words: 1.60 one after another, 0.98 by 2, 0.96 by 4, 0.72 by 8, 0.71 by 16
BATCH = 8

BENCHMARK_NAMES: dict[str, str] = {
    "ego4d-narration": "Ego4D: what the camera wearer does, told as it happens.",
    "ego4d-narration-refined": "The same, with VideoLLM-online's refined sentences.",
    "ego4d-lta": "Ego4D: the twenty actions to come.",
    "egoexo4d-narration": "EgoExo4D: atomic descriptions, told as it happens.",
    "egoexo4d-keystep": "EgoExo4D: which keystep a stretch shows.",
    "coin-step": "COIN: which step a stretch shows.",
    "coin-task": "COIN: what a video is about.",
    "coin-next": "COIN: which step comes next.",
    "coin-procedure": "COIN: the steps that follow.",
    "coin-procedure-goal": "COIN: the same, with the goal told.",
    "epic-narration": "EPIC-KITCHENS-100: what the camera wearer does, told as it happens.",
    "epic-anticipation": "EPIC-KITCHENS-100: the next action.",
    "epic-lta": "EPIC-KITCHENS-100: the twenty actions to come.",
    "ovo-bench": "OVO-Bench: backward, real-time and forward questions.",
    "streamingbench": "StreamingBench: choices at their times, and proactive output.",
    "video-qa": "Questions in JSON or JSONL, as MSVD-QA and ActivityNet-QA.",
    "narration": "Timed sentences of your own, in our JSONL format.",
}
