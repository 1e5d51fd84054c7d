"""The world as data: things, hands, clutter and scenes as functions of continuous time, and what is visible when.

Coordinates are fractions of the picture's side, x to the right and y downwards; times are seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from videollm_mod.world.config import Look

Box = tuple[float, float, float, float]  # x0, y0, x1, y1

# A thing counts as inside or outside only when it clears the border by this much: more than the camera can shake.
EDGE = 0.015
TO_SIDE = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}


@dataclass(frozen=True)
class Leg:
    """A piece of motion from `start` on: (x, y) + velocity * dt + radius * (cos, sin)(phase + spin * dt).

    Resting: velocity and radius 0. Straight: radius 0. Drifting: velocity 0, a circle around (x, y).
    """

    start: float
    x: float
    y: float
    vx: float = 0.0
    vy: float = 0.0
    radius: float = 0.0
    phase: float = 0.0
    spin: float = 0.0  # radians per second, signed

    @property
    def drifts(self) -> bool:
        return self.radius > 0

    @property
    def moves(self) -> bool:
        return self.radius > 0 or self.vx != 0 or self.vy != 0

    def at(self, time: float) -> tuple[float, float]:
        """The place at `time`, also before the start."""
        dt = time - self.start
        angle = self.phase + self.spin * dt
        return (
            self.x + self.vx * dt + self.radius * math.cos(angle),
            self.y + self.vy * dt + self.radius * math.sin(angle),
        )


@dataclass(frozen=True)
class Thing:
    """A coloured shape from `born` until `gone` (exclusive)."""

    shape: str
    size: str
    extent: float  # side of its square box
    texture: str | None
    tint: tuple[int, int, int]  # its own small deviation from the colour's RGB
    colours: tuple[tuple[float, str], ...]  # (from when, colour), ascending
    legs: tuple[Leg, ...]  # ascending by start
    born: float
    gone: float = math.inf

    def leg(self, time: float) -> Leg:
        return self.legs[max(0, bisect_right(self.legs, time, key=lambda leg: leg.start) - 1)]

    def look(self, time: float) -> Look:
        colour = self.colours[max(0, bisect_right(self.colours, time, key=lambda item: item[0]) - 1)][1]
        return Look(colour, self.shape, self.size)

    def alive(self, time: float) -> bool:
        return self.born <= time < self.gone


@dataclass(frozen=True)
class Hand:
    """An arm of the given width from a side; its tip comes in to (x, y), holds, and goes back out."""

    side: str
    x: float
    y: float
    travel: float  # distance from the tip's place outside to (x, y)
    width: float
    tone: tuple[int, int, int]  # RGB
    start: float  # sets out, just outside
    reached: float
    released: float
    gone: float  # outside again

    def tip(self, time: float) -> tuple[float, float] | None:
        """Centre of the rounded end, or None while there is no hand."""
        if not self.start <= time < self.gone:
            return None
        if time < self.reached:
            out = (self.reached - time) / (self.reached - self.start)
        else:
            out = max(0.0, time - self.released) / (self.gone - self.released)
        dx, dy = TO_SIDE[self.side]
        return self.x + dx * self.travel * out, self.y + dy * self.travel * out

    def box(self, tip: tuple[float, float]) -> Box:
        """The arm's box from its rounded end to far outside the picture."""
        half, (dx, dy) = self.width / 2, TO_SIDE[self.side]
        return (
            -2.0 if dx < 0 else tip[0] - half,
            -2.0 if dy < 0 else tip[1] - half,
            3.0 if dx > 0 else tip[0] + half,
            3.0 if dy > 0 else tip[1] + half,
        )


@dataclass(frozen=True)
class Clutter:
    """A soft grey "blob" or "bar" that drifts behind everything, leaves and comes back on the other side."""

    kind: str
    x: float
    y: float
    vx: float
    vy: float
    half_width: float
    half_height: float
    grey: float
    opacity: float

    def at(self, time: float) -> tuple[float, float]:
        def wrap(place: float, half: float) -> float:
            return (place + half) % (1 + 2 * half) - half

        return wrap(self.x + self.vx * time, self.half_width), wrap(self.y + self.vy * time, self.half_height)


@dataclass(frozen=True)
class Wave:
    """A slow or quick oscillation: two sines that sum to at most `amplitude`."""

    amplitude: float
    rates: tuple[float, float]  # hertz
    phases: tuple[float, float]

    def at(self, time: float) -> float:
        return (self.amplitude / 2) * sum(math.sin(math.tau * r * time + p) for r, p in zip(self.rates, self.phases))


@dataclass(frozen=True)
class Scene:
    """A background with its clutter, camera shake and light, from `start` until the next scene."""

    start: float
    background: str  # "flat", "gradient", "noise" or "tiles"
    palette: tuple[tuple[float, float, float], ...]  # muted RGB colours of the background
    grain: int  # seed of the background's pattern
    clutter: tuple[Clutter, ...]
    shake: tuple[Wave, Wave]  # x, y
    light: Wave  # relative brightness, around 0

    def camera(self, time: float, size: int) -> tuple[int, int]:
        """Displacement of the whole picture in whole pixels at a side of `size` pixels."""
        return round(self.shake[0].at(time) * size), round(self.shake[1].at(time) * size)


@dataclass(frozen=True)
class VisibleThing:
    """Something in the picture at one moment; role "thing" is what sentences speak of."""

    box: Box  # clipped to the picture, fractions of the side
    centre: tuple[float, float]  # of the whole box, clipped or not
    colour: str  # "skin" for a hand, "grey" for clutter
    shape: str  # "hand" for a hand, "blob" or "bar" for clutter
    size: str  # "" for hands and clutter
    moving: bool
    visible: float  # fraction of its box's area inside the picture, greater than 0; for a hand, of the arm's tip
    role: str  # "thing", "hand" or "clutter"

    @property
    def look(self) -> Look:
        return Look(self.colour, self.shape, self.size)


def around(centre: tuple[float, float], half_width: float, half_height: float) -> Box:
    """The box around a centre."""
    return centre[0] - half_width, centre[1] - half_height, centre[0] + half_width, centre[1] + half_height


def clip(box: Box) -> tuple[Box, float]:
    """The part of a box inside the picture, and which fraction of its area that is (0 if none)."""
    x0, y0, x1, y1 = (min(max(value, 0.0), 1.0) for value in box)
    area = (box[2] - box[0]) * (box[3] - box[1])
    return (x0, y0, x1, y1), (x1 - x0) * (y1 - y0) / area
