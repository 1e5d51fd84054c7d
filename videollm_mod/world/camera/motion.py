"""Motion as functions of continuous time: ways with stops, boxes, and what lies inside the picture."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field

Place = tuple[float, float]
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
Knot = tuple[float, float, float]  # time, x, y


@dataclass(frozen=True)
class Path:
    """A way through knots, straight between them; two knots at one place are a stop, with easing before and after.

    Before the first knot and after the last one it is at rest there.
    """

    knots: tuple[Knot, ...]  # ascending by time
    times: tuple[float, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", tuple(knot[0] for knot in self.knots))

    def _leg(self, time: float) -> int:
        return min(max(bisect_right(self.times, time) - 1, 0), len(self.knots) - 2)

    def _stands(self, leg: int) -> bool:
        return 0 <= leg < len(self.knots) - 1 and self.knots[leg][1:] == self.knots[leg + 1][1:]

    def moves(self, time: float) -> bool:
        """Whether it is on its way at `time`."""
        return len(self.knots) > 1 and self.times[0] <= time < self.times[-1] and not self._stands(self._leg(time))

    def at(self, time: float) -> Place:
        """The place at `time`."""
        if len(self.knots) == 1 or time <= self.times[0]:
            return self.knots[0][1:]
        if time >= self.times[-1]:
            return self.knots[-1][1:]
        leg = self._leg(time)
        (t0, x0, y0), (t1, x1, y1) = self.knots[leg], self.knots[leg + 1]
        s = (time - t0) / (t1 - t0)
        from_rest, to_rest = self._stands(leg - 1), self._stands(leg + 1)
        if from_rest and to_rest:
            s = s * s * (3 - 2 * s)
        elif from_rest:
            s = s * s * (2 - s)
        elif to_rest:
            s = 1 - (1 - s) * (1 - s) * (1 + s)
        return x0 + (x1 - x0) * s, y0 + (y1 - y0) * s

    def course(self, time: float) -> Place:
        """The direction of the leg at `time`, as long as the leg; at rest that of the leg before, or else after."""
        if len(self.knots) == 1:
            return 0.0, 0.0
        leg = self._leg(time)
        for i in (*range(leg, -1, -1), *range(leg, len(self.knots) - 1)):
            if not self._stands(i):
                return self.knots[i + 1][1] - self.knots[i][1], self.knots[i + 1][2] - self.knots[i][2]
        return 0.0, 0.0

    def velocity(self, time: float) -> Place:
        """Sides per second at `time`."""
        (x0, y0), (x1, y1) = self.at(time - 0.02), self.at(time + 0.02)
        return (x1 - x0) / 0.04, (y1 - y0) / 0.04


def union(boxes: list[Box]) -> Box:
    """The box around boxes (at least one)."""
    return min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)


def area(box: Box) -> float:
    """0 for a box that is turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def cut(box: Box, frame: Box) -> Box:
    """The part of a box inside another one (turned inside out, of area 0, if there is none)."""
    return max(box[0], frame[0]), max(box[1], frame[1]), min(box[2], frame[2]), min(box[3], frame[3])


def content(aspect: tuple[int, int]) -> Place:
    """Width and height of the picture's content in fractions of the square's side; the longer one is 1."""
    return aspect[0] / max(aspect), aspect[1] / max(aspect)


def fitted(aspect: tuple[int, int], size: int) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the content in pixels of the square, as videollm_mod.video.letterbox does it."""
    width, height = (min(size, max(1, round(length * size))) for length in content(aspect))
    x0, y0 = (size - width) // 2, (size - height) // 2
    return x0, y0, x0 + width, y0 + height


def turned(x: float, y: float, angle: float) -> Place:
    """A vector turned by an angle in radians."""
    return x * math.cos(angle) - y * math.sin(angle), x * math.sin(angle) + y * math.cos(angle)
