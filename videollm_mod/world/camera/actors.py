"""Who acts in a stream: walkers on their ways, things at rest or held, and hands. Functions of continuous time."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass

from videollm_mod.world.camera.motion import Box, Path, Place
from videollm_mod.world.camera.movers import Figure, name_of
from videollm_mod.world.camera.objects import HandLook, Sort
from videollm_mod.world.camera.parts import Part, around
from videollm_mod.world.camera.people import Person, Pose
from videollm_mod.world.camera.places import Ground

_SIDEWAYS = 0.8  # a way this much across, as a fraction of up and down, is seen from the side


@dataclass(frozen=True)
class Walker:
    """Somebody or something that moves by itself; there from the first to the last knot of its path."""

    figure: Figure
    path: Path
    ground: Ground
    share: float  # its height as a fraction of a person's there
    born: float
    gone: float
    cadence: float  # steps per second, both feet together
    turns: tuple[float, tuple[str, ...]]  # at rest people turn every so many seconds to the next of these views
    shadow: float  # of its feet, 0..1
    below: float = math.inf  # further down than this it is hidden by a table

    @property
    def name(self) -> str:
        return name_of(self.figure)

    def there(self, time: float) -> bool:
        """Whether it exists at `time`; in view it may be for a shorter time."""
        return self.born <= time < self.gone

    def pose(self, time: float) -> Pose:
        """How it stands or walks at `time`."""
        x, y = self.path.at(time)
        moving = self.path.moves(time)
        dx, dy = self.path.course(time)
        view = ("left" if dx < 0 else "right") if abs(dx) >= _SIDEWAYS * abs(dy) else ("back" if dy < 0 else "front")
        if not moving and isinstance(self.figure, Person):
            every, views = self.turns
            view = views[int(time / every) % len(views)]
        height = self.ground.tall(y) * self.share
        return Pose(x, y, height, view, math.atan2(dy, dx), math.tau * self.cadence * time, float(moving), time)

    def rough(self, time: float) -> Box:
        """A box that it does not leave with any limb, found quickly."""
        pose = self.pose(time)
        half = self.figure.half_width * pose.height
        return pose.x - half, pose.y - 1.1 * pose.height, pose.x + half, pose.y + 0.12 * pose.height

    def parts(self, time: float) -> list[Part]:
        """From back to front."""
        return self.figure.parts(self.pose(time))

    def box(self, time: float) -> Box:
        """The box of its parts, hidden or not."""
        return around(self.parts(time))


@dataclass(frozen=True)
class Hand:
    """A hand on its way in and out; its path is that of its finger tips."""

    look: HandLook
    path: Path
    away: Place  # direction of its arm, length 1
    born: float
    gone: float
    closes: float  # closed from then
    opens: float  # until then

    def there(self, time: float) -> bool:
        """Whether it exists at `time`."""
        return self.born <= time < self.gone

    def parts(self, time: float) -> list[Part]:
        """From back to front."""
        closed = 1.0 if self.closes <= time < self.opens else 0.25
        return self.look.parts(self.path.at(time), self.away, closed)


@dataclass(frozen=True)
class Stage:
    """How a thing is from `start` on: away, at rest at (x, y), or held, (x, y) away from a hand's finger tips."""

    start: float
    state: str  # "away", "rests" or "held"
    x: float = 0.0
    y: float = 0.0
    hand: int = -1


@dataclass(frozen=True)
class Thing:
    """Something that hands place and take away."""

    sort: Sort
    stages: tuple[Stage, ...]  # ascending by start

    @property
    def name(self) -> str:
        return self.sort.name

    def stage(self, time: float) -> Stage:
        """How it is at `time`."""
        return self.stages[max(0, bisect_right(self.stages, time, key=lambda stage: stage.start) - 1)]

    def at(self, time: float, hands: tuple[Hand, ...]) -> Place | None:
        """The middle of its lower edge; None while it is away."""
        stage = self.stage(time)
        if stage.state == "away":
            return None
        if stage.state == "rests":
            return stage.x, stage.y
        x, y = hands[stage.hand].path.at(time)
        return x + stage.x, y + stage.y


@dataclass(frozen=True)
class VisibleActor:
    """What can be seen of something at one moment; boxes in fractions of the square picture, bars included."""

    number: int  # the same for one actor throughout the stream
    role: str  # "walker", "object", "hand" or "clutter"
    name: str  # as sentences call it; "hand" and "clutter" are never told about
    box: Box  # clipped to the content
    centre: Place  # of the whole box, clipped or not
    state: str  # "moves", "rests" or "held"
    visible: float  # fraction of its box's area inside the content; what stands in front of it is not counted
