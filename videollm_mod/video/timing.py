"""Which picture is shown when: timestamps made sane, and pictures chosen on a regular grid of times.

Both are plain arithmetic on seconds and know nothing of files.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

TOLERANCE = 0.002  # s; Matroska and FLV round to whole milliseconds, the start as well, so 1 ms errors are normal
STEP_BACK = 1.0  # s; a larger step back is a new part of the recording, not a slip
LONGEST_STEP = 3600.0  # s; where no duration is known, a larger step ahead is a broken clock, not a still picture


@dataclass
class Clock:
    """Turns timestamps as they come into strictly increasing seconds since `origin`.

    Rules, in the order of precedence:
      missing, or the same as the one before: one `period` after the picture before;
      more than a second back, or more than 10 s ahead of `latest`: a cut, time goes on one `period` later;
      slightly back, or not yet past the repaired ones: half a `period` later, until real time has caught up.
    """

    origin: float | None = None  # timestamp that is time 0; None: the first timestamp seen
    period: float = 0.04  # nominal time between pictures, seconds
    latest: float | None = None  # no later time is believable (the duration); None: unknown
    repaired: int = (
        0  # how many timestamps made no sense (missing ones, which some formats lack by design, not counted)
    )
    last: float | None = None  # time of the newest picture
    _last_stamp: float | None = None
    _shift: float = 0.0

    def __call__(self, stamp: float | None) -> float:
        """Time in seconds of a picture with timestamp `stamp` (seconds on the source's own clock, None if missing)."""
        if self.origin is None and stamp is not None:
            self.origin = stamp - (0.0 if self.last is None else self.last + self.period)
        if stamp is None or self.origin is None:
            now = 0.0 if self.last is None else self.last + self.period
        else:
            now = stamp - self.origin + self._shift
            if self.last is not None:
                now = self._after(self.last, now, stamp)
            self._last_stamp = stamp
        self.last = now
        return now

    def _after(self, last: float, now: float, stamp: float) -> float:
        latest = last + LONGEST_STEP if self.latest is None else self.latest + 10
        if last - now > STEP_BACK or (now - last > 10 and now > latest):
            self.repaired += 1
            self._shift += last + self.period - now
            return last + self.period
        if now > last:
            return now
        self.repaired += 1
        return last + (self.period if stamp == self._last_stamp else self.period / 2)


def on_grid(
    pictures: Iterable[tuple[float, float, T]],
    fps: float,
    start: float = 0.0,
    end: float | None = None,
    live: bool = False,
) -> Iterator[tuple[float, T]]:
    """Sample pictures at the times t_k = k / fps with start <= t_k < end.

    pictures: (time, duration, item) with increasing times; each is on the screen until the next one comes, the last
    for its duration. Yields (t_k, the item on the screen at t_k), that is the last one with time <= t_k + TOLERANCE.
    Nothing is yielded before the first picture or after the last has gone. A long still picture is yielded again and
    again, since time passes; from a `live` source only once, since what was missed there is over.
    Holds one picture; asks for no more pictures than it needs.
    """
    k = max(0, math.ceil((start - TOLERANCE) * fps))
    held: tuple[float, float, T] | None = None
    for picture in pictures:
        # first grid time at which this picture, not the one held, is on the screen
        first = max(k, math.ceil((picture[0] - TOLERANCE) * fps))
        if held is not None:
            if live:
                k = max(k, first - 1)
            for j in range(k, first):
                if end is not None and j / fps >= end:
                    return
                yield j / fps, held[2]
        k, held = first, picture
        if end is not None and k / fps >= end:
            return
    if held is not None:
        gone = held[0] + max(held[1], 2 * TOLERANCE)
        while k / fps < gone - TOLERANCE and (end is None or k / fps < end):
            yield k / fps, held[2]
            k += 1
