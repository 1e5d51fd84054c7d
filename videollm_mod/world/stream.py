"""WorldStream: one small video with its exact truth; and writing it as mp4 + JSONL."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from videollm_mod.types import InputError
from videollm_mod.world.actors import Box, VisibleThing, around, clip
from videollm_mod.world.config import Look, WorldConfig
from videollm_mod.world.draw import render
from videollm_mod.world.h264 import compress, compressed, write_mp4
from videollm_mod.world.questions import WorldQuestion, ask
from videollm_mod.world.script import Script, write_script
from videollm_mod.world.stage import WorldEvent

Place = tuple[float, float]

MIN_VISIBLE = 0.02  # what shows less than this fraction of its box is not in the picture


@dataclass(frozen=True)
class WorldStream:
    """One stream: pixels on demand, and the truth about them. Made by `make_stream`."""

    name: str
    config: WorldConfig
    script: Script = field(repr=False)
    crf: int  # the H.264 quality of this stream
    seed: str = field(repr=False)

    @property
    def times(self) -> np.ndarray:
        """Times of the sampled frames: (F,) float64, i / fps."""
        return np.arange(self.config.frame_count) / self.config.fps

    @property
    def events(self) -> list[WorldEvent]:
        """What is narrated, ascending by time."""
        return list(self.script.events)

    @cached_property
    def questions(self) -> list[WorldQuestion]:
        """What is asked, ascending by time."""
        return ask(self.script, self.config, self.visible, random.Random(f"{self.seed}/questions"))

    def render(self, time: float) -> np.ndarray:
        """The uncompressed picture at any time from 0 to `seconds`: (size, size, 3) uint8 RGB.

        Raises:
            InputError: a time outside of the stream.
        """
        return render(self.script, self.config, self._inside(time))

    def frames(self) -> np.ndarray:
        """The sampled frames, through H.264 if `config.compress`: (F, size, size, 3) uint8 RGB. Not kept."""
        frames = np.stack([self.render(time) for time in self.times])
        return compress(frames, self.crf) if self.config.compress else frames

    def each_frame(self) -> Iterator[np.ndarray]:
        """The frames of `frames`, one by one and rendered when they are asked for: an hour takes no more memory than a
        minute. (size, size, 3) uint8 RGB each."""
        rendered = (self.render(time) for time in self.times)
        return compressed(rendered, self.config.size, self.crf) if self.config.compress else rendered

    def visible(self, time: float) -> list[VisibleThing]:
        """Everything in the picture at a time, camera shake included: clutter, then hands, then things.

        What is told about is in the role "thing". Nothing hides a thing; clutter and hands may be hidden in part.

        Raises:
            InputError: a time outside of the stream.
        """
        time, size = self._inside(time), self.config.size
        scene = self.script.scene(time)
        found: list[VisibleThing] = []
        dx, dy = (pixels / size for pixels in scene.camera(time, size))

        def add(tip: Place, half: Place, box: Box, look: Look, moving: bool, role: str) -> None:
            _, inside = clip(around((tip[0] + dx, tip[1] + dy), *half))
            if inside >= MIN_VISIBLE:
                seen, _ = clip((box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy))
                centre = (tip[0] + dx, tip[1] + dy)
                found.append(VisibleThing(seen, centre, look.colour, look.shape, look.size, moving, inside, role))

        for clutter in scene.clutter:
            place, half = clutter.at(time - scene.start), (clutter.half_width, clutter.half_height)
            add(place, half, around(place, *half), Look("grey", clutter.kind, ""), True, "clutter")
        for hand in self.script.hands:
            tip = hand.tip(time)
            if tip is not None:
                moving = not hand.reached <= time < hand.released
                half = (hand.width / 2, hand.width / 2)
                add(tip, half, hand.box(tip), Look("skin", "hand", ""), moving, "hand")
        for thing in self.script.things:
            if thing.alive(time):
                leg, half = thing.leg(time), (thing.extent / 2, thing.extent / 2)
                add(leg.at(time), half, around(leg.at(time), *half), thing.look(time), leg.moves, "thing")
        return found

    def _inside(self, time: float) -> float:
        if not 0 <= time <= self.config.seconds:
            raise InputError(f"Time {time} s is outside of {self.name}; give one from 0 to {self.config.seconds}.")
        return float(time)


def make_stream(split: str, number: int, config: WorldConfig | None = None) -> WorldStream:
    """Stream `number` of a split ("train", "validation", "test" or "heldout"); the same arguments, the same stream.

    The story and its pixels do not change with `config.size`, apart from resolution.

    Raises:
        InputError: no such split, or a negative number.
    """
    config = config or WorldConfig()
    script, seed = write_script(split, number, config), f"{split}/{number}"
    crf = random.Random(f"{seed}/pixels").randint(*config.crf)
    return WorldStream(f"{split}-{number:06d}", config, script, crf, seed)


def stream_record(stream: WorldStream, video: str) -> dict[str, Any]:
    """The stream's line of JSONL, for a video file of that name: times in seconds, segments ascending by time.

    Events are assistant segments, stamped with `WorldEvent.time`; a question is a user segment and an assistant
    segment of the same time.
    """
    segments: list[dict[str, Any]] = [
        {"time": e.time, "role": "assistant", "text": e.text, "kind": e.kind} for e in stream.events
    ]
    for q in stream.questions:
        segments.append({"time": q.time, "role": "user", "text": q.question, "kind": q.kind})
        segments.append({"time": q.time, "role": "assistant", "text": q.answer, "kind": q.kind})
    for segment in segments:
        segment["time"] = round(float(segment["time"]), 4)
    segments.sort(key=lambda segment: segment["time"])  # stable: a question stays before its answer
    return {"video": video, "duration": stream.config.seconds, "fps": stream.config.fps, "segments": segments}


def write_stream(stream: WorldStream, folder: str | Path, fps: float = 8) -> Path:
    """Write NAME.mp4 (H.264, frames rendered at `fps`) and NAME.jsonl (one line) into a folder; gives the mp4's path.

    Each file appears under its name only when it is complete.

    Raises:
        InputError: `fps` is not from 1 to 60, or the folder cannot be written.
    """
    if not 1 <= fps <= 60:
        raise InputError(f"World video fps {fps} is out of range; give a number from 1 to 60.")
    folder = Path(folder)
    video, lines = folder / f"{stream.name}.mp4", folder / f"{stream.name}.jsonl"
    times = np.arange(max(1, math.floor(stream.config.seconds * fps + 1e-9))) / fps
    parts = [video.with_suffix(".mp4.part"), lines.with_suffix(".jsonl.part")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_mp4(parts[0], (stream.render(time) for time in times), stream.config.size, fps, stream.crf)
        parts[1].write_text(json.dumps(stream_record(stream, video.name)) + "\n")
        parts[0].replace(video)
        parts[1].replace(lines)
    except OSError as error:
        raise InputError(f"Cannot write {stream.name} into {folder} ({error}); choose a writable folder.") from error
    finally:
        for part in parts:
            if part.exists():  # only after a failure
                part.unlink()
    return video
