"""What the camera world is made of: kinds of events, sides, places, names, splits, and the dials of a stream.

All lengths are fractions of the square picture's side, all times are seconds. A picture's content is a rectangle whose
longer side is 1, with (0, 0) at its upper left corner; the square around it is black.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from videollm_mod.types import InputError

SPLITS = ("train", "validation", "test")
KINDS = ("enter", "leave", "placed", "removed")
SIDES = ("left", "right", "top", "bottom")
PLACES = ("left", "middle", "right")  # thirds of the content's width
NAMES = ("person", "car", "bottle", "box", "ball", "something")  # "something": all that has no name of its own
ASPECTS = ((16, 9), (16, 9), (16, 9), (16, 9), (16, 9), (16, 10), (4, 3), (4, 3), (3, 2), (1, 1), (3, 4), (9, 16))

SPACING = 1.0  # seconds between consecutive events, at least, but for what two hands do at once


@dataclass(frozen=True)
class CameraConfig:
    """The dials of a stream. The story depends on the first block only; the second one concerns pixels.

    Raises:
        InputError: a dial is out of its range.
    """

    seconds: float = 30.0  # length of the stream
    fps: float = 2.0  # sampled frames per second: the rate at which a model watches
    events_per_minute: float = 8.0  # mean number of narrations per minute, quiet streams left out; about
    questions: float = 2.0  # mean number of questions per 30 s
    objects: float = 0.45  # fraction of the streams in which hands move objects; walkers come and go in the others
    quiet: float = 0.1  # fraction of the streams in which nothing happens
    pairs: float = 0.15  # how often two hands act at once, where there is something for both to do
    crowd: float = 0.0  # fraction of the walkers' streams in which several come and go all the time
    aspects: tuple[tuple[int, int], ...] = ASPECTS  # of the picture, each as likely as the others

    size: int = 112  # side of the square picture in pixels, even
    noise: float = 6.0  # pixel noise of the noisiest stream, standard deviation in 8-bit levels
    jitter: float = 0.008  # camera shake, largest displacement as a fraction of the side; most cameras stand still
    light: float = 0.15  # drifting light, auto-exposure and switched lamps: largest relative change, roughly
    shadows: float = 0.4  # how dark the darkest shadow is
    blur: float = 0.06  # longest exposure in seconds: what moves is smeared over the way it makes meanwhile
    distractors: float = 0.35  # probability of each kind of moving distractor (plants, screens, specks, dark borders)
    film: float = 0.0  # fraction of the streams with another film: flat, hard, pale, gaudy, grey, tinted, soft or sharp
    compress: bool = True  # frames() go through H.264
    crf: tuple[int, int] = (12, 27)  # H.264 quality, drawn evenly from this range (0 best, 51 worst)

    def __post_init__(self) -> None:
        _check("seconds", self.seconds, 1.0, 3600.0)
        _check("fps", self.fps, 1.0, 30.0)
        _check("events_per_minute", self.events_per_minute, 0.5, 20.0)
        _check("questions", self.questions, 0.0, 30.0)
        _check("objects", self.objects, 0.0, 1.0)
        _check("quiet", self.quiet, 0.0, 1.0)
        _check("pairs", self.pairs, 0.0, 1.0)
        _check("crowd", self.crowd, 0.0, 1.0)
        if not self.aspects or any(min(aspect) < 1 for aspect in self.aspects):
            raise InputError(f"Camera aspects {self.aspects} will not do; give one or more, such as ((16, 9), (4, 3)).")
        _check("film", self.film, 0.0, 1.0)
        _check("size", self.size, 32, 2048)
        if self.size % 2:
            raise InputError(f"Camera size {self.size} is odd; H.264 needs an even one, such as {self.size + 1}.")
        _check("noise", self.noise, 0.0, 30.0)
        _check("jitter", self.jitter, 0.0, 0.05)
        _check("light", self.light, 0.0, 0.5)
        _check("shadows", self.shadows, 0.0, 0.9)
        _check("blur", self.blur, 0.0, 0.25)
        _check("distractors", self.distractors, 0.0, 1.0)
        for crf in self.crf:
            _check("crf", crf, 0, 51)
        if self.crf[0] > self.crf[1]:
            raise InputError(f"Camera crf {self.crf} is empty; give the smaller number first.")

    @property
    def frame_count(self) -> int:
        """Number of sampled frames; frame i is at i / fps."""
        return math.floor(self.seconds * self.fps + 1e-9)

    def frame_at(self, time: float) -> int:
        """The first sampled frame at or after `time` (it may lie beyond the last one)."""
        return math.ceil(time * self.fps - 1e-9)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also catches nan
        raise InputError(f"Camera {name} {value} is out of range; give a number from {low} to {high}.")
