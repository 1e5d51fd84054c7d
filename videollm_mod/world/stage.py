"""The stage on which a story is planned: who is in view, which room is free, what new things and scenes are like."""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass, replace

from videollm_mod.world.actors import Box, Clutter, Hand, Leg, Scene, Thing, Wave, around
from videollm_mod.world.config import TEXTURES, Look, WorldConfig
from videollm_mod.world.words import narration

MARGIN = 0.03  # things rest and drift at least this far inside the picture
GAP = 0.02  # and this far from each other
MIN_STEP = 0.06  # a drifting thing moves at least this far in 0.5 s
EXTENTS = {"small": (0.135, 0.16), "large": (0.27, 0.32)}
RADII = {"small": (0.09, 0.16), "large": (0.08, 0.12)}  # of the circle on which a thing drifts
DRIFT_SPEED = (0.16, 0.28)  # sides per second


@dataclass(frozen=True)
class WorldEvent:
    """Something that is narrated."""

    time: float  # when it is unambiguously visible, seconds
    frame: int  # the first sampled frame at or after `time`
    kind: str  # one of config.EVENT_KINDS
    text: str  # the narration
    look: Look | None = None  # the thing, as the sentence names it; None for a cut
    side: str | None = None  # for enters and leaves
    became: str | None = None  # for turns: the new colour
    thing: int | None = None  # index into Script.things
    vague: float = 0.0  # seconds before `time` in which it shows in part; no sampled frame lies there


@dataclass(frozen=True)
class Action:
    """One thing done on the stage; nothing else happens from `start` to `end`."""

    start: float
    end: float
    events: tuple[WorldEvent, ...]
    index: int | None = None  # the thing that acts: a number in view, or the next free one
    thing: Thing | None = None  # the thing as it is from now on
    hand: Hand | None = None
    cut: bool = False


class Stage:
    """What has been planned so far. Only `perform` and `set_scene` change it, apart from the random state."""

    def __init__(self, rng: random.Random, config: WorldConfig, looks: tuple[Look, ...]) -> None:
        self.rng, self.config, self.looks = rng, config, looks
        self.things: list[Thing] = []
        self.hands: list[Hand] = []
        self.scenes: list[Scene] = []
        self.in_view: list[int] = []  # indices of the things that are on stage after the last action

    def event(
        self,
        kind: str,
        time: float,
        index: int | None = None,
        look: Look | None = None,
        vague: float = 0.0,
        **more: str,
    ) -> WorldEvent:
        """A WorldEvent with its frame and sentence; `more` is its side or the colour it became."""
        text = narration(kind, look, **more)
        return WorldEvent(time, self.config.frame_at(time), kind, text, look, thing=index, vague=vague, **more)

    def is_crisp(self, action: Action) -> bool:
        """Whether no sampled frame shows one of its events in part."""
        frame_at = self.config.frame_at
        return all(frame_at(event.time) == frame_at(event.time - event.vague) for event in action.events)

    def perform(self, action: Action) -> None:
        """Make an action part of the story."""
        if action.cut:
            self.set_scene(action.start)
        if action.hand is not None:
            self.hands.append(action.hand)
        if action.thing is not None and action.index is not None:
            if action.index == len(self.things):
                self.things.append(action.thing)
                self.in_view.append(action.index)
            self.things[action.index] = action.thing
            if action.thing.gone < math.inf:
                self.in_view.remove(action.index)

    def set_scene(self, start: float) -> None:
        """A new background; whatever was in view is gone, up to two new things rest or drift instead."""
        for index in self.in_view:
            self.things[index] = replace(self.things[index], gone=start)
        self.in_view = []
        self.scenes.append(random_scene(self.rng, self.config, start))
        for _ in range(min(self.rng.choice((0, 1, 1, 2)), self.config.max_things)):
            thing = self.new_thing(start)
            leg = self.drift(thing, start) if self.rng.random() < 0.3 else None
            leg = leg or self.rest(thing, start)
            if leg is not None:
                self.in_view.append(len(self.things))
                self.things.append(replace(thing, legs=(leg,)))

    # ------------------------------------------------------------------------------------------- who
    def choose(self, time: float, drifting: bool | None = None) -> int | None:
        """One of the things in view, if asked for one that drifts or one that does not."""
        indices = [i for i in self.in_view if drifting is None or self.things[i].leg(time).drifts == drifting]
        return self.rng.choice(indices) if indices else None

    def shown(self, time: float) -> set[Look]:
        """The looks in view: no two things in view share colour, shape and size."""
        return {self.things[i].look(time) for i in self.in_view}

    def new_thing(self, time: float) -> Thing:
        """A thing that looks like none in view, without a place yet."""
        shown = self.shown(time)
        look = self.rng.choice([look for look in self.looks if look not in shown])
        texture = self.rng.choice(TEXTURES) if self.rng.random() < self.config.textured else None
        if look.size == "small" and look.shape not in ("circle", "square"):
            texture = None  # the pattern would eat up the outline of a thin shape of 15 pixels
        tint = (self.rng.randint(-8, 8), self.rng.randint(-8, 8), self.rng.randint(-8, 8))
        extent = self.rng.uniform(*EXTENTS[look.size]) * self.config.scale
        return Thing(look.shape, look.size, extent, texture, tint, ((time, look.colour),), (), born=time)

    # ----------------------------------------------------------------------------------------- where
    def free(self, box: Box, time: float, but: int | None = None) -> bool:
        """Whether no thing in view (except number `but`) owns a part of the box."""
        for index in self.in_view:
            x0, y0, x1, y1 = room(self.things[index], time)
            apart = box[2] + GAP <= x0 or x1 + GAP <= box[0] or box[3] + GAP <= y0 or y1 + GAP <= box[1]
            if index != but and not apart:
                return False
        return True

    def rest(self, thing: Thing, start: float) -> Leg | None:
        """A free place to rest, or None if none was found in a few tries."""
        low = MARGIN + thing.extent / 2
        for _ in range(8):
            leg = Leg(start, self.rng.uniform(low, 1 - low), self.rng.uniform(low, 1 - low))
            if self.free(around((leg.x, leg.y), thing.extent / 2, thing.extent / 2), start):
                return leg
        return None

    def drift(
        self, thing: Thing, start: float, through: tuple[float, float] | None = None, but: int | None = None
    ) -> Leg | None:
        """A free circle to drift on, through a given place if one is given, or None."""
        radius, phase = self.rng.uniform(*RADII[thing.size]), self.rng.uniform(-math.pi, math.pi)
        spin = self.rng.choice((-1, 1)) * self.rng.uniform(*DRIFT_SPEED) * self.config.motion / radius
        # The chord that is seen in 0.5 s is what counts.
        if 2 * radius * math.sin(abs(spin) / 4) < MIN_STEP:
            return None
        half = radius + thing.extent / 2
        for _ in range(8):
            if through is None:
                low = MARGIN + half
                x, y = self.rng.uniform(low, 1 - low), self.rng.uniform(low, 1 - low)
            else:
                phase = self.rng.uniform(-math.pi, math.pi)
                x, y = through[0] - radius * math.cos(phase), through[1] - radius * math.sin(phase)
            box = around((x, y), half, half)
            if min(box) >= MARGIN and max(box) <= 1 - MARGIN and self.free(box, start, but):
                return Leg(start, x, y, radius=radius, phase=phase, spin=spin)
        return None


def room(thing: Thing, time: float) -> Box:
    """The box that a resting or drifting thing owns."""
    leg = thing.leg(time)
    half = thing.extent / 2 + leg.radius
    return around((leg.x, leg.y), half, half)


def random_scene(rng: random.Random, config: WorldConfig, start: float) -> Scene:
    """A muted background with grey clutter, a camera that shakes or not, and drifting light."""
    hue, level = rng.random(), rng.uniform(60, 130)
    palette = []
    for step in (-0.5, 0.5):
        colour = colorsys.hsv_to_rgb((hue + rng.uniform(-0.1, 0.1)) % 1, rng.uniform(0.04, 0.22), 1.0)
        brightness = level + step * rng.uniform(15, 50)
        palette.append((colour[0] * brightness, colour[1] * brightness, colour[2] * brightness))

    def wave(amplitude: float, low: float, high: float) -> Wave:
        return Wave(
            amplitude, (rng.uniform(low, high), rng.uniform(low, high)), (rng.uniform(0, 6.28), rng.uniform(0, 6.28))
        )

    shake = config.jitter * (rng.uniform(0.4, 1.0) if rng.random() < 0.7 else 0.0)
    return Scene(
        start,
        rng.choice(("flat", "gradient", "noise", "tiles")),
        tuple(palette),
        rng.getrandbits(32),
        tuple(_random_clutter(rng, config.motion) for _ in range(rng.randint(0, config.clutter))),
        (wave(shake, 0.4, 2.5), wave(shake, 0.4, 2.5)),
        wave(config.light, 0.02, 0.1),
    )


def _random_clutter(rng: random.Random, motion: float) -> Clutter:
    kind = rng.choice(("blob", "bar"))
    long, short = rng.uniform(0.15, 0.35), rng.uniform(0.05, 0.12)
    if kind == "blob":
        half_width, half_height = rng.uniform(0.1, 0.25), rng.uniform(0.1, 0.25)
    else:
        half_width, half_height = (long, short) if rng.random() < 0.5 else (short, long)
    speed, angle = rng.uniform(0.03, 0.16) * motion, rng.uniform(0, math.tau)
    velocity = (speed * math.cos(angle), speed * math.sin(angle))
    return Clutter(
        kind,
        rng.random(),
        rng.random(),
        *velocity,
        half_width,
        half_height,
        rng.uniform(50, 165),
        rng.uniform(0.3, 0.6),
    )
