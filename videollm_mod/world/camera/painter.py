"""A moment of a script as a picture: the backdrop, patches laid on it from back to front, light, noise, black bars.

One painter per stream: it keeps the backdrop and the patches of whatever stands still.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from videollm_mod.world.camera.actors import Thing, Walker
from videollm_mod.world.camera.backdrop import paint_backdrop, soften
from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.motion import area, content, cut, fitted
from videollm_mod.world.camera.paint import Canvas, Patch, darken, draw, lay, soft_oval
from videollm_mod.world.camera.scene import Film, Fixture, Scene
from videollm_mod.world.camera.story import Script

LAG = 0.4  # seconds by which auto-exposure comes late
JOLT = 0.35  # seconds that a push of the camera lasts
_GREY = np.array((0.299, 0.587, 0.114), np.float32)


def camera_shift(scene: Scene, config: CameraConfig, time: float) -> tuple[int, int]:
    """Displacement (x, y) of the whole picture in whole pixels."""
    dx, dy = scene.shake[0].at(time), scene.shake[1].at(time)
    if 0 <= time - scene.jolt < JOLT:
        push = config.jitter * math.sin((time - scene.jolt) / JOLT * math.pi)
        dx, dy = dx + push, dy - push
    return round(dx * config.size), round(dy * config.size)


class Painter:
    """Draws the moments of one script."""

    def __init__(self, script: Script, config: CameraConfig) -> None:
        self.script, self.config, scene = script, config, script.scene
        self.box = fitted(scene.aspect, config.size)
        width, height = self.box[2] - self.box[0], self.box[3] - self.box[1]
        softness = max(1.0, scene.softness * config.size / 112)
        self.canvas = Canvas(height, width, float(config.size), softness, scene.light)
        self.pad = math.ceil(2 * config.jitter * config.size) + 1
        self.backdrop = paint_backdrop(scene, self.canvas, self.pad)
        self.fronts = [(fixture, draw(list(fixture.parts), self.canvas)) for fixture in scene.fixtures if fixture.base]
        self.still: dict[int, tuple[float, float, Patch | None]] = {}  # thing -> where it was drawn, and how

    def paint(self, time: float) -> np.ndarray:
        """The picture: (size, size, 3) uint8 RGB."""
        scene, config, pad = self.script.scene, self.config, self.pad
        dx, dy = camera_shift(scene, config, time)
        height, width = self.canvas.height, self.canvas.width
        image = self.backdrop[pad - dy : pad - dy + height, pad - dx : pad - dx + width].copy()
        self._distract(image, time, dx, dy)
        drawn: list[tuple[float, int, Walker | Fixture]] = []
        for i, walker in enumerate(self.script.walkers):
            if walker.there(time) and area(cut(walker.rough(time), (0.0, 0.0, *scene.size))) > 0:
                drawn.append((walker.path.at(time)[1], i, walker))
        drawn += [(fixture.base or 0.0, -1, fixture) for fixture, _ in self.fronts]
        for _, _, actor in sorted(drawn, key=lambda item: item[:2]):
            if isinstance(actor, Walker):
                self._walker(image, actor, time, dx, dy)
            else:
                lay(image, next(patch for fixture, patch in self.fronts if fixture is actor), dy, dx)
        self._things(image, time, dx, dy)
        for speck in scene.specks:
            lay(image, draw(speck.parts(time), self.canvas), dy, dx)
        return self._developed(image, time)

    def _walker(self, image: np.ndarray, walker: Walker, time: float, dx: int, dy: int) -> None:
        pose, size = walker.pose(time), self.config.size
        patch = draw(walker.figure.parts(pose), self.canvas, self._way(walker.path.velocity(time)))
        if patch is not None and walker.below < math.inf:
            patch.rgba[max(0, math.floor(walker.below * size) - patch.row) :] = 0
        strength = self.config.shadows * walker.shadow
        if strength > 0.02:
            half = walker.figure.half_width * pose.height * 0.75
            sx, sy = dx / size, dy / size
            low = (
                pose.x - half + sx,
                pose.y - 0.08 * pose.height + sy,
                pose.x + half + sx,
                pose.y + 0.06 * pose.height + sy,
            )
            soft_oval(image, low, strength, self.canvas)
            self._shadow(image, patch, 0.4 * strength, dx, dy)
        lay(image, patch, dy, dx)

    def _things(self, image: np.ndarray, time: float, dx: int, dy: int) -> None:
        """Things at rest from back to front, then each hand with what it holds."""
        script = self.script
        held: dict[int, list[Patch | None]] = {}
        resting: list[tuple[float, Patch | None, Thing]] = []
        for i, thing in enumerate(script.things):
            stage, place = thing.stage(time), thing.at(time, script.hands)
            if place is None:
                continue
            if stage.state == "rests":
                if i not in self.still or self.still[i][:2] != place:
                    self.still[i] = (*place, draw(thing.sort.parts(*place), self.canvas))
                resting.append((place[1], self.still[i][2], thing))
            else:
                way = self._way(script.hands[stage.hand].path.velocity(time))
                held.setdefault(stage.hand, []).append(draw(thing.sort.parts(*place), self.canvas, way))
        for _, patch, thing in sorted(resting, key=lambda item: item[0]):
            self._shadow(image, patch, self.config.shadows * script.scene.shadow[2] * 0.7 * thing.sort.alpha, dx, dy)
            lay(image, patch, dy, dx)
        for i, hand in enumerate(script.hands):
            if hand.there(time):
                patches = [*held.get(i, []), draw(hand.parts(time), self.canvas, self._way(hand.path.velocity(time)))]
                for patch in patches:
                    self._shadow(image, patch, self.config.shadows * script.scene.shadow[2] * 0.7, dx, dy)
                for patch in patches:
                    lay(image, patch, dy, dx)

    def _shadow(self, image: np.ndarray, patch: Patch | None, strength: float, dx: int, dy: int) -> None:
        x, y, share = self.script.scene.shadow
        if strength > 0.02 and share > 0:
            darken(image, patch, strength, dy + round(y * self.config.size), dx + round(x * self.config.size))

    def _way(self, velocity: tuple[float, float]) -> tuple[float, float]:
        """How far something moves during the exposure."""
        exposure = self.script.scene.exposure
        return velocity[0] * exposure, velocity[1] * exposure

    def _distract(self, image: np.ndarray, time: float, dx: int, dy: int) -> None:
        """Screens, plants, and shades that wander."""
        scene, size = self.script.scene, self.config.size
        for screen in scene.screens:
            lay(image, draw(screen.parts(time), self.canvas), dy, dx)
        for plant in scene.plants:
            lay(image, draw(plant.parts(time), self.canvas), dy, dx)
        for shade in scene.shades:
            x, y = shade.middle[0] + shade.wave.at(time) + dx / size, shade.middle[1] + dy / size
            box = (x - shade.half[0], y - shade.half[1], x + shade.half[0], y + shade.half[1])
            soft_oval(image, box, shade.strength * self.config.shadows, self.canvas)

    def _developed(self, image: np.ndarray, time: float) -> np.ndarray:
        """Light, colours and noise of the camera; bars around the picture."""
        scene, config = self.script.scene, self.config
        gain = np.array(scene.tint, np.float32) * np.float32(1 + scene.drift.at(time) + self._exposure(time - LAG))
        for lamp in scene.lamps:
            if lamp.time <= time:
                gain = gain * np.array(lamp.gain, np.float32)
        if scene.grey:
            image = np.repeat((image @ (_GREY * gain))[:, :, None], 3, 2)
        else:
            image *= gain
        if scene.film is not None:
            image = filmed(np.clip(image, 0, 255), scene.film, config.size)
        if config.noise:
            image += _noise(image.shape, time) * np.float32(config.noise * scene.noise)
        np.clip(image, 0, 255, out=image)
        square = np.zeros((config.size, config.size, 3), np.uint8)
        x0, y0, x1, y1 = self.box
        square[y0:y1, x0:x1] = image
        return square

    def _exposure(self, time: float) -> float:
        """The relative change of brightness by auto-exposure."""
        scene, frame = self.script.scene, (0.0, 0.0, *content(self.script.scene.aspect))
        if not scene.auto:
            return 0.0
        covered = sum(area(cut(walker.rough(time), frame)) for walker in self.script.walkers if walker.there(time))
        for hand in self.script.hands:
            if hand.there(time):
                x, y = hand.path.at(time)
                if 0 < x < frame[2] and 0 < y < frame[3]:
                    covered += 2 * hand.look.size**2
        return scene.auto * min(0.5, covered / area(frame))


def filmed(image: np.ndarray, film: Film, size: int) -> np.ndarray:
    """(H, W, 3) float32 of 0..255 as a camera gives it; what it gives may lie outside, to be clipped.

    size: side of the square picture in pixels; a soft picture is as soft at any.
    """
    light = (image / 255) ** np.float32(film.gamma) * np.array(film.cast, np.float32)
    grey = (light @ _GREY)[:, :, None]
    light = grey + np.float32(film.saturation) * (light - grey)
    light = np.float32(film.pivot) + np.float32(film.contrast) * (light - np.float32(film.pivot))
    if film.blur:
        soft = light
        for _ in range(max(1, round((size / 112) ** 2))):
            soft = soften(soft)
        light = light + np.float32(film.blur) * (soft - light)
    return light * np.float32(255)


@lru_cache(maxsize=4)
def _pool(count: int) -> np.ndarray:
    """Noise of deviation 1 for two pictures; a frame takes a window of it, much cheaper than drawing it anew."""
    return np.random.default_rng(0).normal(0, 1, 2 * count).astype(np.float32)


def _noise(shape: tuple[int, ...], time: float) -> np.ndarray:
    count = math.prod(shape)
    start = int(time * 7_919_777) % count  # a prime: neighbouring frames get quite different windows
    return _pool(count)[start : start + count].reshape(shape)
