"""Streams counted: how many videos, sentences and seconds, and how long it is silent between two sentences."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from videollm_mod.data.segments import Stream


@dataclass
class Count:
    """Of one video, or of all of them together."""

    streams: int = 0
    segments: int = 0  # replies and narrations
    questions: int = 0
    words: int = 0  # of the replies
    seconds: float = 0.0  # watched, by all streams
    gaps: list[float] = field(default_factory=list)  # seconds between a reply and the next one of its stream

    def add(self, stream: Stream) -> None:
        """Count a stream in."""
        times = sorted(reply.time or 0.0 for reply in stream.replies)
        self.streams += 1
        self.segments += len(times)
        self.questions += len(stream.of("user"))
        self.words += sum(len(reply.text.split()) for reply in stream.replies)
        self.seconds += _seconds(stream)
        self.gaps += [later - earlier for earlier, later in zip(times, times[1:])]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; of the gaps median, mean, 90th percentile and longest."""
        values: dict[str, Any] = {
            "streams": self.streams,
            "segments": self.segments,
            "questions": self.questions,
            "words": self.words,
            "seconds": round(self.seconds, 3),
        }
        if self.gaps:
            values["gaps"] = {
                "median": round(statistics.median(self.gaps), 3),
                "mean": round(statistics.fmean(self.gaps), 3),
                "p90": round(percentile(sorted(self.gaps), 0.9), 3),
                "max": round(max(self.gaps), 3),
            }
        return values


def count(streams: Iterable[Stream]) -> tuple[Count, dict[str, Count]]:
    """All streams together, and by video."""
    total, videos = Count(), dict[str, Count]()
    for stream in streams:
        total.add(stream)
        videos.setdefault(video_of(stream), Count()).add(stream)
    return total, videos


def video_of(stream: Stream) -> str:
    """Which video a stream is of: as its data set calls it, else its file."""
    named = stream.meta.get("video")
    return str(named) if named else str(stream.video or stream.features or stream.id)


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value below which so many lie, between neighbours in proportion."""
    place = share * (len(ascending) - 1)
    low = int(place)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (place - low) * (ascending[high] - ascending[low])


def _seconds(stream: Stream) -> float:
    """How much of its video is watched; until the last text, if nobody knows how long that is."""
    watched = stream.of("stream")
    if watched:
        return sum((stretch.end or 0.0) - (stretch.start or 0.0) for stretch in watched)
    return stream.duration or max((segment.time or 0.0 for segment in stream.segments), default=0.0)
