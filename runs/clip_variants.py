"""How much of a score is the clip's: the same footage mirrored, backwards, in other colours, half a step later.

    python runs/clip_variants.py ../shared/data --model camera --out docs/results/clip_variants.json

Mirrored, left is right; backwards, what entered leaves and what was placed is taken away. For telling what a model is
weak at, not for choosing checkpoints. Right is what has the event and its side or place within a second, as in
`eval clips`. The last line on stdout is the JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # runs without being installed

import numpy as np

import videollm_mod as vm
from videollm_mod.bench.measure import progress
from videollm_mod.evaluate.clips import read_labels
from videollm_mod.evaluate.events import events_told
from videollm_mod.evaluate.metrics import Said, match, precision_recall_f1
from videollm_mod.files import atomic_write

Picture = np.ndarray  # (H, W, 3) uint8
MIRRORED = {"left": "right", "right": "left"}
BACKWARDS = {"enter": "leave", "leave": "enter", "placed": "removed", "removed": "placed"}
GREY = np.array((0.299, 0.587, 0.114))


def grey(picture: Picture) -> Picture:
    return np.repeat((picture @ GREY)[..., None].round().astype(np.uint8), 3, -1)


def gains(red: float, green: float, blue: float) -> Callable[[Picture], Picture]:
    return lambda picture: (picture * np.array((red, green, blue))).clip(0, 255).astype(np.uint8)


def cropped(picture: Picture) -> Picture:
    height, width = picture.shape[:2]
    return np.ascontiguousarray(picture[height // 25 : height - height // 25, width // 25 : width - width // 25])


def noisy(picture: Picture) -> Picture:
    noise = np.random.default_rng(int(picture.sum()) % 2**32).normal(0, 12, picture.shape)
    return (picture + noise).clip(0, 255).astype(np.uint8)


def mirrored(picture: Picture) -> Picture:
    return np.ascontiguousarray(picture[:, ::-1])


COLOURS: dict[str, Callable[[Picture], Picture]] = {
    "as it is": lambda picture: picture,
    "mirrored": mirrored,
    "dark": gains(0.5, 0.5, 0.5),
    "bright": gains(1.4, 1.4, 1.4),
    "warm": gains(1.25, 1.0, 0.75),
    "cold": gains(0.75, 1.0, 1.25),
    "grey": grey,
    "noisy": noisy,
    "8 % cut off": cropped,
}
VARIANTS = (*COLOURS, "backwards", "backwards, mirrored", "a quarter of a second later")


def variant(name: str, frames: list[vm.Frame], events: list[Said]) -> tuple[list[vm.Frame], list[Said]]:
    """A clip and its labels, changed. `frames` are of twice the model's rate; the later ones are those in between."""
    own = frames[1::2] if name == "a quarter of a second later" else frames[::2]
    change = COLOURS.get(name, mirrored if "mirrored" in name else COLOURS["as it is"])
    if "backwards" in name:
        end = own[-1].time
        own = [replace(frame, time=end - frame.time) for frame in own[::-1]]
        events = [Said(end - event.time, _renamed(event.text, BACKWARDS)) for event in events][::-1]
    if "mirrored" in name:
        events = [Said(event.time, _renamed(event.text, MIRRORED)) for event in events]
    pictures = [replace(frame, image=change(frame.image), index=number) for number, frame in enumerate(own)]
    return pictures, sorted(events, key=lambda event: event.time)


def _renamed(text: str, names: dict[str, str]) -> str:
    return " ".join(names.get(word, word) for word in text.split())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="a folder with videos/ and, for some of them, events/NAME.jsonl")
    parser.add_argument("--model", default="camera")
    parser.add_argument("--out", type=Path)
    flags = parser.parse_args()
    model = vm.load(flags.model)
    found: dict[str, dict[str, Any]] = {name: {"right": 0, "said": 0, "true": 0} for name in VARIANTS}
    for labels in sorted((flags.data / "events").glob("*.jsonl")):
        with vm.open_video(flags.data / "videos" / f"{labels.stem}.mp4", fps=2 * model.settings.fps) as video:
            frames = list(video)
        for name in VARIANTS:
            pictures, true = variant(name, frames, read_labels(labels))
            session = vm.StreamSession(model)
            told = [Said(event.time, event.text) for frame in pictures for event in session.push(frame)]
            said = events_told(told)
            counts = {"right": len(match(said, true, tolerance=1.0)), "said": len(said), "true": len(true)}
            found[name] = {key: found[name][key] + count for key, count in counts.items()}
            progress(f"{labels.stem}, {name}: {json.dumps(counts)}")
    for row in found.values():
        row["f1"] = round(precision_recall_f1(row["right"], row["said"], row["true"])[2], 4)
    line = json.dumps({"variants": found, "model": flags.model, "threshold": model.settings.threshold})
    if flags.out is not None:
        with atomic_write(flags.out) as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
