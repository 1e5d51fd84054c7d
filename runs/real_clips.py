"""What the bundled model says of real video, clip by clip, for the README: it was trained on coloured shapes alone.

python runs/real_clips.py ../shared/data/videos --out docs/results/real_clips.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import videollm_mod as vm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    model = vm.load("tiny")
    told = {}
    for clip in sorted(path for path in flags.folder.iterdir() if path.is_file()):
        session = vm.StreamSession(model)
        said, frames = [], 0
        with vm.open_video(clip, fps=2) as video:
            for frame in video:
                said += [{"time": event.time, "text": event.text} for event in session.push(frame)]
                frames += 1
            told[clip.name] = {"frames": frames, "said": said, "warnings": video.warnings}
        print(f"{clip.name}: {frames} frames, {len(said)} sentences")
        for line in said:
            print(f"  {line['time']:6.1f}  {line['text']}")
    if flags.out:
        flags.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
