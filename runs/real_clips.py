"""What the bundled models say of real video, clip by clip, for the README: neither has seen any in training.

python runs/real_clips.py ../shared/data/videos --out docs/results/real_clips.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import videollm_mod as vm
from videollm_mod.flags import BUNDLED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    clips = sorted(path for path in flags.folder.iterdir() if path.is_file())
    told = {name: {clip.name: watch(vm.load(name), clip) for clip in clips} for name in BUNDLED}
    for name, clips_told in told.items():
        for clip_name, row in clips_told.items():
            print(f"{name}, {clip_name}: {row['frames']} frames, {len(row['said'])} sentences")
            for line in row["said"]:
                print(f"  {line['time']:6.1f}  {line['text']}")
    if flags.out:
        flags.out.write_text(json.dumps(told, indent=1) + "\n")


def watch(model: vm.StreamingVideoLM, clip: Path) -> dict[str, Any]:
    """What is said of a clip, and what the reader had to warn of."""
    session = vm.StreamSession(model)
    said, frames = [], 0
    with vm.open_video(clip, fps=2) as video:
        for frame in video:
            said += [{"time": event.time, "text": event.text} for event in session.push(frame)]
            frames += 1
        return {"frames": frames, "said": said, "warnings": video.warnings}


if __name__ == "__main__":
    main()
