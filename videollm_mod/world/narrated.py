"""A video with its truth, as training and evaluation need it: of the world, of a fixed camera, or of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple, Protocol

import numpy as np


class Told(Protocol):
    """What is narrated; a WorldEvent, say."""

    @property
    def time(self) -> float: ...  # seconds
    @property
    def frame(self) -> int: ...  # the first sampled frame at or after `time`
    @property
    def kind(self) -> str: ...
    @property
    def text(self) -> str: ...


class Asked(Protocol):
    """A question and its answer; a WorldQuestion, say."""

    @property
    def time(self) -> float: ...
    @property
    def frame(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def question(self) -> str: ...
    @property
    def answer(self) -> str: ...


class Dials(Protocol):
    """Of a stream's config, what everybody needs."""

    @property
    def seconds(self) -> float: ...
    @property
    def fps(self) -> float: ...


class Narrated(Protocol):
    """The stream itself."""

    @property
    def name(self) -> str: ...
    @property
    def config(self) -> Dials: ...
    @property
    def times(self) -> np.ndarray: ...  # (F,) float64 seconds
    @property
    def events(self) -> Sequence[Told]: ...  # ascending by time, and so are the questions
    @property
    def questions(self) -> Sequence[Asked]: ...
    def frames(self) -> np.ndarray: ...  # (F, size, size, 3) uint8 RGB


class Narration(NamedTuple):
    """All that is told of one frame: a model speaks once a frame."""

    time: float  # of the last event
    frame: int
    kind: str  # of the first event
    text: str


def narrations(stream: Narrated) -> list[Narration]:
    """A stream's events, those that show on the same frame as one."""
    found = []
    for frame, group in groupby(stream.events, key=lambda event: event.frame):
        events = list(group)
        found.append(Narration(events[-1].time, frame, events[0].kind, " ".join(event.text for event in events)))
    return found
