"""Writes the bundled demo clip again: test-split stream 0, one minute, with its truth beside it.

python runs/demo_clip.py
"""

from __future__ import annotations

from pathlib import Path

from videollm_mod.world import WorldConfig, make_stream, write_stream

ASSETS = Path(__file__).parents[1] / "videollm_mod" / "assets"


def main() -> None:
    video = write_stream(make_stream("test", 0, WorldConfig(seconds=60, size=336)), ASSETS, fps=8)
    line = video.with_suffix(".jsonl").read_text().replace(video.name, "demo.mp4")
    (ASSETS / "demo.jsonl").write_text(line)
    video.with_suffix(".jsonl").unlink()
    video.rename(ASSETS / "demo.mp4")


if __name__ == "__main__":
    main()
