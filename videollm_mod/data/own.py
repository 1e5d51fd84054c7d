"""One's own videos with what is to be said about them: a JSONL file, one video a line, as `world.write_stream` writes.

    {"video": "desk.mp4", "segments": [
        {"time": 3.2, "role": "assistant", "text": "A cup is placed on the table."},
        {"time": 9.0, "role": "user", "text": "How many cups are there?"},
        {"time": 9.0, "role": "assistant", "text": "One."}]}

Times are seconds from the video's beginning; the video's path is relative to the file's folder. What directly follows a
question is its answer, anything else of the assistant is a narration. "duration" may be given, else the video tells.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from videollm_mod.types import InputError
from videollm_mod.video import letterbox, open_video
from videollm_mod.world import WorldConfig, WorldEvent, WorldQuestion

EVERY = 10  # of so many videos one is held out for validation


@dataclass(frozen=True)
class OwnVideo:
    """One annotated video."""

    path: Path
    duration: float  # seconds
    narrations: tuple[tuple[float, str], ...]  # (time, text), ascending
    questions: tuple[tuple[float, str, str], ...]  # (time, question, answer), ascending

    def window(self, start: float, config: WorldConfig) -> OwnStream:
        """`config.seconds` of it from `start` on, or what there is of them."""
        return OwnStream(f"{self.path.stem}@{start:g}", self, start, config)


@dataclass(frozen=True)
class OwnStream:
    """A stretch of a video with its truth. Of the config only seconds, fps and size count; times begin at 0."""

    name: str
    video: OwnVideo = field(repr=False)
    start: float
    config: WorldConfig

    @property
    def times(self) -> np.ndarray:
        """Times of the frames: (F,) float64, i / fps."""
        seconds = min(self.config.seconds, self.video.duration - self.start)
        return np.arange(max(1, math.floor(seconds * self.config.fps + 1e-9))) / self.config.fps

    @property
    def events(self) -> list[WorldEvent]:
        """The narrations within, ascending by time."""
        told = [(time, self._frame(time), text) for time, text in self.video.narrations]
        return [
            WorldEvent(time - self.start, frame, "narration", text) for time, frame, text in told if frame is not None
        ]

    @property
    def questions(self) -> list[WorldQuestion]:
        """The questions within, ascending by time."""
        asked = [(self._frame(time), question, answer) for time, question, answer in self.video.questions]
        return [
            WorldQuestion(frame / self.config.fps, frame, question, answer, "question")
            for frame, question, answer in asked
            if frame is not None
        ]

    def frames(self) -> np.ndarray:
        """The frames, letterboxed: (F, size, size, 3) uint8 RGB. Where the video ends early its last one stays."""
        count, size = len(self.times), self.config.size
        end = self.start + (count - 0.5) / self.config.fps
        with open_video(self.video.path, fps=self.config.fps, start=self.start, end=end) as source:
            images = [letterbox(frame.image[None], size)[0].numpy() for frame in source][:count]
        if not images:
            raise InputError(f"{self.video.path} shows nothing from {self.start:g} s on; correct its duration.")
        return np.stack(images + [images[-1]] * (count - len(images)))

    def _frame(self, time: float) -> int | None:
        """The first frame at or after a time of the video; None if it is not among ours."""
        frame = math.ceil((time - self.start) * self.config.fps - 1e-9)
        return frame if time >= self.start and frame < len(self.times) else None


@lru_cache(maxsize=8)
def read_videos(path: Path) -> tuple[OwnVideo, ...]:
    """All videos of a JSONL file. Raises InputError that names the line and what is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSONL ({error}); give a file with a video a line.") from error
    videos = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                videos.append(_video(path.parent, json.loads(line)))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from error
            except ValueError as error:
                raise InputError(f"{path}, line {number}, is no JSON: {error}") from error
    if not videos:
        raise InputError(f"{path} has no line; give one video a line.")
    return tuple(videos)


def split_videos(videos: tuple[OwnVideo, ...], split: str) -> tuple[OwnVideo, ...]:
    """Those for "train", or those for "validation": every tenth, at least the last one; a single video is both."""
    if len(videos) == 1:
        return videos
    last = len(videos) - 1
    held = {i for i in range(len(videos)) if i % EVERY == EVERY - 1} or {last}
    return tuple(video for i, video in enumerate(videos) if (i in held) == (split == "validation"))


def own_stream(path: Path, split: str, number: int, config: WorldConfig) -> OwnStream:
    """Stretch `number` of a split: videos by their length, from anywhere. The same arguments, the same stretch."""
    videos, rng = split_videos(read_videos(path), split), random.Random(f"{split}/{number}/own")
    (video,) = rng.choices(videos, [video.duration for video in videos])
    room = max(0.0, video.duration - config.seconds)
    return video.window(math.floor(rng.uniform(0, room) * config.fps) / config.fps, config)


def _video(folder: Path, line: Any) -> OwnVideo:
    if (
        not isinstance(line, dict)
        or not isinstance(line.get("video"), str)
        or not isinstance(line.get("segments"), list)
    ):
        raise InputError('a line is {"video": "NAME", "segments": [...]}; this one is not.')
    path = folder / line["video"]
    if not path.exists():
        raise InputError(f"there is no video {path}; give its path relative to the folder of this file.")
    told = [_segment(i, segment) for i, segment in enumerate(line["segments"])]
    told.sort(key=lambda segment: segment[0])  # stable: a question stays before its answer
    narrations, questions = [], []
    asked: tuple[float, str] | None = None
    for time, role, text in told:
        if role == "user":
            if asked is not None:
                raise InputError(f"the question at {asked[0]:g} s has no answer; add one after it.")
            asked = time, text
        elif asked is not None:
            questions.append((*asked, text))
            asked = None
        else:
            narrations.append((time, text))
    if asked is not None:
        raise InputError(f"the question at {asked[0]:g} s has no answer; add one after it.")
    return OwnVideo(path, _duration(path, line.get("duration")), tuple(narrations), tuple(questions))


def _segment(number: int, segment: Any) -> tuple[float, str, str]:
    """(time, role, text) of a segment, checked."""
    known = segment if isinstance(segment, dict) else {}
    time, role, text = known.get("time"), known.get("role"), known.get("text")
    if not isinstance(time, int | float) or isinstance(time, bool) or not 0 <= time < math.inf:
        raise InputError(f"segment {number} has time {time!r}; give seconds from the video's beginning.")
    if role not in ("assistant", "user"):
        raise InputError(f"segment {number} has role {role!r}; give assistant or user.")
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"segment {number} has text {text!r}; give a sentence.")
    return float(time), role, " ".join(text.split())


def _duration(path: Path, given: Any) -> float:
    if given is None:
        with open_video(path) as source:
            given = source.duration
        if given is None:
            raise InputError(f'{path} does not tell how long it is; add "duration" in seconds to its line.')
    if not isinstance(given, int | float) or isinstance(given, bool) or not 0 < given < math.inf:
        raise InputError(f"duration {given!r} of {path} is no number of seconds; correct it or leave it out.")
    return float(given)
