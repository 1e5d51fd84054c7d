"""Streams to train on: a JSONL file (segments.py, docs/data.md), one's own or one that `data build` made of a data set.

Whole videos are taken in random stretches of a phase's length. A line that says which stretches are watched (a segment
"stream") is one sample: all of them are taken, in another order in each epoch, and clipped to a phase's length.
What directly follows a question is its answer, anything else of the assistant is a narration.
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from torch import Tensor

from videollm_mod.data.conversation import Conversation, converse
from videollm_mod.data.frames import frame_total, pictures, seconds_of, stored_vectors
from videollm_mod.data.segments import Segment, Stream, read_streams
from videollm_mod.data.stats import video_of
from videollm_mod.dialogue import Segment as DialogueSegment
from videollm_mod.types import InputError
from videollm_mod.world import WorldConfig, WorldEvent, WorldQuestion
from videollm_mod.world.conversation import segments as world_segments

EVERY = 10  # of so many videos one is held out for validation
MOST_HELD = 64  # but of a data set of samples no more


@dataclass(frozen=True)
class OwnVideo:
    """One line: an annotated video."""

    path: Path  # of the video, or of its features
    duration: float  # seconds
    narrations: tuple[tuple[float, str], ...]  # (time, text), ascending
    questions: tuple[tuple[float, str, str], ...]  # (time, question, answer), ascending
    stream: Stream = field(repr=False, compare=False)

    @property
    def is_sample(self) -> bool:
        """Whether the line says what is watched, and so is one sample."""
        return bool(self.stream.of("stream"))

    def window(self, start: float, config: WorldConfig) -> OwnStream:
        """`config.seconds` of it from `start` on, or what there is of them."""
        return OwnStream(f"{self.path.stem}@{start:g}", self, start, config)

    def sample(self, config: WorldConfig) -> OwnSample:
        """What its line says is watched, at most `config.seconds` of it."""
        limit = max(1, math.floor(config.seconds * config.fps + 1e-9))
        laid = converse(self.stream, config.fps, frames=frame_total(self.stream, config.fps), limit=limit)
        return OwnSample(self.stream.id, self, laid, config)


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

    @property
    def numbers(self) -> list[int]:
        """The frames' numbers, counted from the video's beginning."""
        first = math.ceil(self.start * self.config.fps - 1e-6)
        return list(range(first, first + len(self.times)))

    def conversation(self, system: str) -> list[DialogueSegment]:
        """What training teaches."""
        return world_segments(self, system)

    def frames(self) -> np.ndarray:
        """The frames, letterboxed: (F, size, size, 3) uint8 RGB. Where the video ends early its last one stays."""
        return _pictures(self.video, self.numbers, self.config)

    def features(self) -> Tensor | None:
        """(F, 1 + h * w, width) float32 of its features file; None if it has none."""
        return _features(self.video, self.numbers, self.config)

    def _frame(self, time: float) -> int | None:
        """The first frame at or after a time of the video; None if it is not among ours."""
        frame = math.ceil((time - self.start) * self.config.fps - 1e-9)
        return frame if time >= self.start and frame < len(self.times) else None


@dataclass(frozen=True)
class OwnSample:
    """What a line says is watched, as a conversation. Times are counted in frames watched, and begin at 0."""

    name: str
    video: OwnVideo = field(repr=False)
    laid: Conversation = field(repr=False)
    config: WorldConfig

    @property
    def times(self) -> np.ndarray:
        """Times of the frames: (F,) float64, i / fps."""
        return np.arange(len(self.laid.frames)) / self.config.fps

    @property
    def events(self) -> list[WorldEvent]:
        """The narrations: replies that do not follow a question."""
        found, last = [], ""
        for place, text in self.laid.said:
            if text.kind == "assistant" and last != "user" and place > 0:
                found.append(WorldEvent((place - 1) / self.config.fps, place - 1, "narration", text.text))
            last = text.kind
        return found

    @property
    def questions(self) -> list[WorldQuestion]:
        """The questions with their answers, those before the first frame at the first frame."""
        found = []
        for (place, asked), (_, answer) in zip(self.laid.said, self.laid.said[1:]):
            if asked.kind == "user" and answer.kind == "assistant":
                frame = max(place - 1, 0)
                found.append(WorldQuestion(frame / self.config.fps, frame, asked.text, answer.text, "question"))
        return found

    def conversation(self, system: str) -> list[DialogueSegment]:
        """What training teaches."""
        return self.laid.dialogue(system)

    def frames(self) -> np.ndarray:
        """As those of an `OwnStream`."""
        return _pictures(self.video, self.laid.frames, self.config)

    def features(self) -> Tensor | None:
        """As those of an `OwnStream`."""
        return _features(self.video, self.laid.frames, self.config)


Own = OwnStream | OwnSample


@lru_cache(maxsize=8)
def read_videos(path: Path) -> tuple[OwnVideo, ...]:
    """All lines of a JSONL file. Raises InputError that names the line and what is wrong with it."""
    videos = tuple(_video(path, stream) for stream in read_streams(path))
    if not videos:
        raise InputError(f"{path} has no line; give one video a line.")
    samples = sum(video.is_sample for video in videos)
    if 0 < samples < len(videos):
        raise InputError(
            f"{path}: {samples} of {len(videos)} lines have a segment of kind stream; give one to all, or to none."
        )
    return videos


def has_features(path: Path) -> bool:
    """Whether a file's streams are features. Raises InputError when some are and some are not."""
    videos = read_videos(path)
    stored = sum(video.stream.features is not None for video in videos)
    if 0 < stored < len(videos):
        raise InputError(
            f"{path}: {stored} of {len(videos)} lines have features; extract them of all videos, or of none."
        )
    return stored > 0


def split_videos(videos: tuple[OwnVideo, ...], split: str) -> tuple[OwnVideo, ...]:
    """Those for "train", or those for "validation": every tenth, at least the last one; a single video is both.

    Of samples, at most about 64 are held out, and no video has samples in both.
    """
    if len(videos) == 1:
        return videos
    if videos[0].is_sample:
        names = list(dict.fromkeys(video_of(video.stream) for video in videos))
        if len(names) > 1:
            every = max(EVERY, len(names) * math.ceil(len(videos) / len(names)) // MOST_HELD)
            kept_out = {name for i, name in enumerate(names) if i % every == every - 1} or {names[-1]}
            wanted = split == "validation"
            return tuple(video for video in videos if (video_of(video.stream) in kept_out) == wanted)
    last = len(videos) - 1
    held = {i for i in range(len(videos)) if i % EVERY == EVERY - 1} or {last}
    return tuple(video for i, video in enumerate(videos) if (i in held) == (split == "validation"))


def own_stream(path: Path, split: str, number: int, config: WorldConfig) -> Own:
    """Sample `number` of a split. The same arguments, the same sample.

    Of whole videos, stretches from anywhere, videos by their length; of samples, one after another, shuffled anew for
    each epoch.
    """
    videos = _split(path, split)
    if videos[0].is_sample:
        epoch, place = divmod(number, len(videos))
        return videos[_shuffled(len(videos), f"{split}/{epoch}/own")[place]].sample(config)
    rng = random.Random(f"{split}/{number}/own")
    (video,) = rng.choices(videos, [video.duration for video in videos])
    room = max(0.0, video.duration - config.seconds)
    return video.window(math.floor(rng.uniform(0, room) * config.fps) / config.fps, config)


@lru_cache(maxsize=16)
def _split(path: Path, split: str) -> tuple[OwnVideo, ...]:
    return split_videos(read_videos(path), split)


@lru_cache(maxsize=8)
def _shuffled(count: int, seed: str) -> tuple[int, ...]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return tuple(order)


def _pictures(video: OwnVideo, numbers: list[int] | tuple[int, ...], config: WorldConfig) -> np.ndarray:
    assert video.stream.video is not None
    images: np.ndarray = pictures(video.stream.video, numbers, config.fps, config.size).numpy()
    return images


def _features(video: OwnVideo, numbers: list[int] | tuple[int, ...], config: WorldConfig) -> Tensor | None:
    path = video.stream.features
    return None if path is None else stored_vectors(path, numbers, config.fps)


def _video(file: Path, stream: Stream) -> OwnVideo:
    """A line, whose video must be there, and whose questions must have answers."""
    where = f"{file}, stream '{stream.id}'"
    path = stream.features or stream.video
    if path is None:
        raise InputError(f"{where} has neither video nor features; add one of them.")
    if not path.exists():
        raise InputError(f"{where}: there is no video {path}; give its path relative to the folder of this file.")
    texts = [segment for segment in stream.segments if segment.kind in ("user", "assistant")]
    if not stream.of("stream"):
        texts.sort(key=lambda segment: segment.time or 0.0)  # stable: a question stays before its answer
    narrations: list[tuple[float, str]] = []
    questions: list[tuple[float, str, str]] = []
    asked: Segment | None = None
    for text in [*texts, None]:
        if asked is not None and (text is None or text.kind == "user"):
            raise InputError(f"{where}: the question at {asked.time or 0:g} s has no answer; add one after it.")
        if text is None:
            break
        if text.kind == "user":
            asked = text
        elif asked is not None:
            questions.append((asked.time or 0.0, asked.text, text.text))
            asked = None
        else:
            narrations.append((text.time or 0.0, text.text))
    if stream.duration is None:
        stream = dataclasses.replace(stream, duration=seconds_of(stream))
    assert stream.duration is not None
    return OwnVideo(path, stream.duration, tuple(narrations), tuple(questions), stream)
