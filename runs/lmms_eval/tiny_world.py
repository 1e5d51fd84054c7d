"""The functions that tiny_world.yaml names; and, run as a program, the clips and documents of that task.

python runs/lmms_eval/tiny_world.py FOLDER --clips 10
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def visual(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    return str(doc["question"])


def messages(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The clip until the question is put, then the question."""
    video = {"type": "video", "url": doc["video"], "start_time": 0.0, "end_time": doc["end"]}
    return [{"role": "user", "content": [video, {"type": "text", "text": doc["question"]}]}]


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Exactly right, or wrong."""
    return {"right": float(answers[0].strip() == doc["answer"])}


def main() -> None:
    from videollm_mod.world import make_stream, write_stream

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clips", type=int, default=10)
    flags = parser.parse_args()
    flags.folder.mkdir(parents=True, exist_ok=True)
    with (flags.folder / "docs.jsonl").open("w") as file:
        for number in range(flags.clips):
            stream = make_stream("test", number)
            video = write_stream(stream, flags.folder.resolve())
            for asked in stream.questions:
                end = (asked.frame + 0.5) / stream.config.fps
                doc = {"video": str(video), "end": end, "question": asked.question, "answer": asked.answer}
                file.write(json.dumps(doc) + "\n")


if __name__ == "__main__":
    main()
