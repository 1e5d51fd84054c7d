"""What the synthetic world is made of: colours, shapes, sizes, splits, held-out pairs, and the dials of a stream.

All lengths are fractions of the picture's side, all times are seconds, so that one story can be drawn at any size.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from videollm_mod.types import InputError

COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
SIZES = ("small", "large")
TEXTURES = ("stripes", "checks", "dots")
SIDES = ("left", "right", "top", "bottom")
EVENT_KINDS = ("enters", "leaves", "appears", "disappears", "placed", "taken", "turns", "starts", "stops", "cut")
SPLITS = ("train", "validation", "test", "heldout")

# (colour, shape) pairs that exist in the split "heldout" only. Each colour and each shape is still seen in at least
# four other pairs, and stars and rings have two held-out colours each so that things can turn colour there too.
HELD_OUT = frozenset(
    {("red", "star"), ("blue", "star"), ("green", "ring"), ("yellow", "ring"), ("purple", "triangle")},
)


@dataclass(frozen=True)
class Look:
    """What a sentence can say about a thing."""

    colour: str
    shape: str
    size: str


def looks_of(split: str) -> tuple[Look, ...]:
    """Every look that a thing may have in `split`: held-out pairs only in "heldout", all the others elsewhere."""
    return tuple(
        Look(colour, shape, size)
        for colour in COLOURS
        for shape in SHAPES
        for size in SIZES
        if ((colour, shape) in HELD_OUT) == (split == "heldout")
    )


@dataclass(frozen=True)
class WorldConfig:
    """The dials of a stream. The story depends on all but `size`, `noise` and `compress`, which concern pixels only.

    Raises:
        InputError: a dial is out of its range.
    """

    seconds: float = 30.0  # length of the stream
    fps: float = 2.0  # sampled frames per second: the rate at which a model watches
    size: int = 112  # side of the square picture in pixels, even
    questions: float = 2.0  # mean number of questions per 30 s
    events_per_minute: float = 11.0  # mean number of narrations per minute
    favoured: tuple[tuple[str, float], ...] = ()  # (kind of event, how many times as often as usual it is tried)
    max_things: int = 3  # things in view at once, at most
    scale: float = 1.0  # of things: small ones are 0.135 to 0.16 sides wide, large ones 0.27 to 0.32
    motion: float = 1.0  # how many times as fast as usual things, hands and clutter move
    clutter: int = 3  # grey drifting clutter per scene: 0 to this many, evenly
    textured: float = 0.4  # probability that a thing is striped, checked or dotted (never a thin small one)
    jitter: float = 0.008  # camera shake, largest displacement as a fraction of the side
    light: float = 0.12  # slow change of brightness, largest relative change
    noise: float = 4.0  # pixel noise, standard deviation in 8-bit levels
    compress: bool = True  # frames() go through H.264
    crf: tuple[int, int] = (18, 28)  # H.264 quality, drawn evenly from this range (0 best, 51 worst)

    def __post_init__(self) -> None:
        _check("seconds", self.seconds, 1.0, 3600.0)
        _check("fps", self.fps, 1.0, 30.0)
        _check("size", self.size, 32, 2048)
        if self.size % 2:
            raise InputError(f"World size {self.size} is odd; H.264 needs an even one, such as {self.size + 1}.")
        _check("questions", self.questions, 0.0, 30.0)
        _check("events_per_minute", self.events_per_minute, 0.5, 18.0)
        for kind, factor in self.favoured:
            if kind not in EVENT_KINDS:
                raise InputError(f"World event {kind!r} does not exist; choose of {', '.join(EVENT_KINDS)}.")
            _check(f"factor of {kind!r}", factor, 0.0, 100.0)
        _check("max_things", self.max_things, 1, 3)
        _check("scale", self.scale, 0.4, 1.2)
        _check("motion", self.motion, 0.9, 1.6)  # slower, what drifts could not be told from what rests
        _check("clutter", self.clutter, 0, 20)
        _check("textured", self.textured, 0.0, 1.0)
        # The rules of what is "wholly inside" and "clearly displaced" allow for a camera that shakes no more than this.
        _check("jitter", self.jitter, 0.0, 0.009)
        _check("light", self.light, 0.0, 0.2)
        _check("noise", self.noise, 0.0, 30.0)
        for crf in self.crf:
            _check("crf", crf, 0, 51)
        if self.crf[0] > self.crf[1]:
            raise InputError(f"World crf {self.crf} is empty; give the smaller number first.")

    @property
    def frame_count(self) -> int:
        """Number of sampled frames; frame i is at i / fps."""
        return math.floor(self.seconds * self.fps + 1e-9)

    def frame_at(self, time: float) -> int:
        """The first sampled frame at or after `time` (it may lie beyond the last one)."""
        return math.ceil(time * self.fps - 1e-9)


DIFFICULTIES: dict[str, dict[str, Any]] = {
    "easy": {
        "scale": 1.2,
        "clutter": 1,
        "textured": 0.2,
        "jitter": 0.004,
        "light": 0.06,
        "noise": 2.0,
        "crf": (18, 22),
    },
    "medium": {},  # the dials' defaults
    "hard": {"scale": 0.75, "clutter": 8, "textured": 0.6, "motion": 1.3, "light": 0.2, "noise": 8.0, "crf": (24, 32)},
}


def difficulty(name: str, **dials: Any) -> WorldConfig:
    """The world in one of three difficulties, "easy", "medium" or "hard"; `dials` change more of it.

    Raises:
        InputError: no such difficulty, or a dial out of its range.
    """
    if name not in DIFFICULTIES:
        raise InputError(f"World difficulty {name!r} does not exist; choose of {', '.join(DIFFICULTIES)}.")
    return WorldConfig(**{**DIFFICULTIES[name], **dials})


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches nan
        raise InputError(f"World {name} {value} is out of range; give a number from {low} to {high}.")
