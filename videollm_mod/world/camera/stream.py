"""CameraStream: what a fixed camera sees, with its exact truth."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from videollm_mod.types import InputError
from videollm_mod.world.camera.actors import VisibleActor
from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.motion import Box, Place, area, cut, fitted
from videollm_mod.world.camera.painter import Painter, camera_shift
from videollm_mod.world.camera.parts import Part, around, seen
from videollm_mod.world.camera.questions import CameraQuestion, ask
from videollm_mod.world.camera.story import CameraEvent, Script, write_script
from videollm_mod.world.h264 import compress

MIN_VISIBLE = (0.03, 0.004)  # in the picture is what shows this fraction of itself, or covers this one of the content


@dataclass(frozen=True, eq=False)
class CameraStream:
    """One stream: pixels on demand, and the truth about them. Made by `make_camera_stream`."""

    name: str
    config: CameraConfig
    script: Script = field(repr=False)
    crf: int  # the H.264 quality of this stream
    seed: str = field(repr=False)

    @property
    def times(self) -> np.ndarray:
        """Times of the sampled frames: (F,) float64, i / fps."""
        return np.arange(self.config.frame_count) / self.config.fps

    @property
    def events(self) -> list[CameraEvent]:
        """What is narrated, ascending by time."""
        return list(self.script.events)

    @cached_property
    def questions(self) -> list[CameraQuestion]:
        """What is asked, ascending by time."""
        return ask(self.script, self.config, self.visible, random.Random(f"{self.seed}/questions"))

    @property
    def content(self) -> Box:
        """Where the picture lies in the square, in fractions of its side; the rest is black."""
        x0, y0, x1, y1 = (pixels / self.config.size for pixels in fitted(self.script.scene.aspect, self.config.size))
        return x0, y0, x1, y1

    def render(self, time: float) -> np.ndarray:
        """The uncompressed picture at any time from 0 to `seconds`: (size, size, 3) uint8 RGB.

        Raises:
            InputError: a time outside of the stream.
        """
        return _painter(self.script, self.config).paint(self._inside(time))

    def frames(self) -> np.ndarray:
        """The sampled frames, through H.264 if `config.compress`: (F, size, size, 3) uint8 RGB. Not kept."""
        painter = Painter(self.script, self.config)
        frames = np.stack([painter.paint(time) for time in self.times.tolist()])
        if not self.config.compress:
            return frames
        x0, y0, x1, y1 = fitted(self.script.scene.aspect, self.config.size)
        clean, frames = frames, compress(frames, self.crf)
        if (x0, y0, x1, y1) != (0, 0, self.config.size, self.config.size):
            coded, frames = frames, np.zeros_like(clean)  # a letterbox is put around a video after decoding
            frames[:, y0:y1, x0:x1] = coded[:, y0:y1, x0:x1]
        return frames

    def visible(self, time: float) -> list[VisibleActor]:
        """Everything that acts or moves in the picture at a time: clutter, then walkers, objects and hands.

        Boxes are those of the drawn shapes, camera shake included, without shadows and motion blur.

        Raises:
            InputError: a time outside of the stream.
        """
        time, script, scene = self._inside(time), self.script, self.script.scene
        found: list[VisibleActor] = []
        number = 0

        def add(role: str, name: str, parts: list[Part], state: str, below: float = math.inf) -> None:
            nonlocal number
            number += 1
            one = self._seen(parts, time, below) if parts else None
            if one is not None:
                found.append(VisibleActor(number - 1, role, name, one[0], one[1], state, one[2]))

        for screen in scene.screens:
            add("clutter", "clutter", screen.parts(time), "rests")
        for plant in scene.plants:
            add("clutter", "clutter", plant.parts(time), "moves")
        for speck in scene.specks:
            add("clutter", "clutter", speck.parts(time), "moves")
        for walker in script.walkers:
            there = walker.there(time) and area(cut(walker.rough(time), (0.0, 0.0, *scene.size))) > 0
            state = "moves" if walker.path.moves(time) else "rests"
            add("walker", walker.name, walker.parts(time) if there else [], state, walker.below)
        for thing in script.things:
            place, stage = thing.at(time, script.hands), thing.stage(time)
            add("object", thing.name, [] if place is None else thing.sort.parts(*place), stage.state)
        for hand in script.hands:
            state = "moves" if hand.path.moves(time) else "rests"
            add("hand", "hand", hand.parts(time) if hand.there(time) else [], state)
        return found

    def _seen(self, parts: list[Part], time: float, below: float) -> tuple[Box, Place, float] | None:
        """Parts as (the box of what shows, the middle of it all, the visible fraction) in the square, if they show."""
        size, scene = self.config.size, self.script.scene
        width, height = scene.size
        dx, dy = (pixels / size for pixels in camera_shift(scene, self.config, time))
        box, shows, fraction = seen(parts, (-dx, -dy, width - dx, min(height, below) - dy))
        # Of somebody larger than the picture little shows even when much is covered.
        if box is None or (fraction < MIN_VISIBLE[0] and shows < MIN_VISIBLE[1] * width * height):
            return None
        dx, dy, whole = dx + self.content[0], dy + self.content[1], around(parts)
        middle = (whole[0] + whole[2]) / 2 + dx, (whole[1] + whole[3]) / 2 + dy
        return (box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy), middle, fraction

    def _inside(self, time: float) -> float:
        if not 0 <= time <= self.config.seconds:
            raise InputError(f"Time {time} s is outside of {self.name}; give one from 0 to {self.config.seconds}.")
        return float(time)


@lru_cache(maxsize=4)
def _painter(script: Script, config: CameraConfig) -> Painter:
    return Painter(script, config)  # scripts are told apart by identity


def make_camera_stream(split: str, number: int, config: CameraConfig | None = None) -> CameraStream:
    """Stream `number` of a split ("train", "validation" or "test"); the same arguments, the same stream.

    The story does not change with the dials that concern pixels.

    Raises:
        InputError: no such split, or a negative number.
    """
    config = config or CameraConfig()
    script, seed = write_script(split, number, config), f"camera/{split}/{number}"
    crf = random.Random(f"{seed}/pixels").randint(*config.crf)
    return CameraStream(f"camera-{split}-{number:06d}", config, script, crf, seed)
