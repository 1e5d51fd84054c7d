"""Pixels: draws a moment of a script, anti-aliased, with drifting light and pixel noise.

Speed is what counts here (training renders hundreds of thousands of frames): a frame is one copy of the scene's
background, a few small patches blended into it, one gain and one addition of noise, all in float32.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from videollm_mod.world.actors import Clutter, Hand, Scene, Thing
from videollm_mod.world.config import WorldConfig
from videollm_mod.world.script import Script

RGB = {
    "red": (214, 42, 40),
    "green": (44, 168, 62),
    "blue": (42, 82, 216),
    "yellow": (238, 208, 44),
    "purple": (158, 52, 184),
    "white": (240, 240, 240),
}
SHADE = 0.7  # how dark the dark parts of a texture are
STEPS = 32  # places within a pixel that shapes are drawn at; resting things then come from the cache


def render(script: Script, config: WorldConfig, time: float) -> np.ndarray:
    """The uncompressed picture at `time`: (size, size, 3) uint8 RGB."""
    size, scene = config.size, script.scene(time)
    dx, dy = scene.camera(time, size)
    pad = _pad(size, config.jitter)
    image = _background(scene, size, pad)[pad - dy : pad - dy + size, pad - dx : pad - dx + size].copy()
    for clutter in scene.clutter:
        _draw_clutter(image, clutter, time - scene.start, dx, dy)
    for hand in script.hands:
        tip = hand.tip(time)
        if tip is not None:
            _draw_hand(image, hand, tip, dx, dy)
    for thing in script.things:
        if thing.alive(time):
            _draw_thing(image, thing, time, dx, dy)
    image *= np.float32(1 + scene.light.at(time))
    if config.noise:
        image += _noise(size, config.noise, time)
    np.clip(image, 0, 255, out=image)
    return image.astype(np.uint8)


def coverage(shape: str, pixels: float, across: int, down: int, left: float, top: float) -> np.ndarray:
    """How much of each pixel a shape covers: (down, across) float32 in 0..1.

    The shape's box is `pixels` wide and high and begins at (left, top) of a raster of `across` x `down` pixels.
    Signed distance to the outline, positive inside, in units of half the box; one pixel wide ramp at the outline.
    """
    u = ((np.arange(across, dtype=np.float32) + 0.5 - left) * (2 / pixels) - 1)[None, :]
    v = ((np.arange(down, dtype=np.float32) + 0.5 - top) * (2 / pixels) - 1)[:, None]
    distance = _DISTANCES[shape](u, v)
    return np.clip(distance * (pixels / 2) + 0.5, 0, 1).astype(np.float32)


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return 1 - np.hypot(u, v)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(1 - np.abs(u), 1 - np.abs(v))


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.minimum(((v + 1) / 2 - np.abs(u)) * (2 / math.sqrt(5)), 1 - v)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # Fold the plane into one of ten equal sectors between a tip (radius 1.05) and a notch (radius 0.46).
    v = v - 0.1  # five tips fill their box when the centre lies a little low
    angle = np.arctan2(u, -v)
    sector = math.tau / 5
    angle = np.abs((angle + sector / 2) % sector - sector / 2)
    radius = np.hypot(u, v)
    x, y = radius * np.cos(angle), radius * np.sin(angle)
    notch_x, notch_y = 0.46 * math.cos(sector / 2), 0.46 * math.sin(sector / 2)
    edge_x, edge_y = notch_x - 1.05, notch_y
    return ((x - 1.05) * edge_y - y * edge_x) / -math.hypot(edge_x, edge_y)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v, arm = np.abs(u), np.abs(v), 0.34
    return np.maximum(np.minimum(1 - u, arm - v), np.minimum(arm - u, 1 - v))


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    radius = np.hypot(u, v)
    return np.minimum(1 - radius, radius - 0.55)


_DISTANCES = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


@lru_cache(maxsize=512)
def _stamp(shape: str, texture: str | None, pixels: float, left: float, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Coverage and coverage times shade of a thing, both (n, n, 1) float32, for its box at (left, top) < 1."""
    n = math.ceil(pixels + max(left, top)) + 1
    cover = coverage(shape, pixels, n, n, left, top)
    shade = np.ones_like(cover)
    if texture is not None:
        u = ((np.arange(n) + 0.5 - left) / pixels)[None, :]
        v = ((np.arange(n) + 0.5 - top) / pixels)[:, None]
        # A pattern of three or so periods across the thing, positive where it is dark.
        if texture == "stripes":
            pattern = np.sin(math.tau * 3 * (u + v))
        elif texture == "checks":
            pattern = np.sin(math.tau * 2 * u) * np.sin(math.tau * 2 * v) * 2
        else:
            pattern = np.sin(math.tau * 3 * u) + np.sin(math.tau * 3 * v) - 0.8
        shade = 1 - (1 - SHADE) * np.clip(pattern * pixels / 12 + 0.5, 0, 1)
    return cover[:, :, None], (cover * shade).astype(np.float32)[:, :, None]


def _draw_thing(image: np.ndarray, thing: Thing, time: float, dx: int, dy: int) -> None:
    size, (x, y) = len(image), thing.leg(time).at(time)
    left, top = (x - thing.extent / 2) * size, (y - thing.extent / 2) * size
    column, row = math.floor(left), math.floor(top)
    cover, paint = _stamp(
        thing.shape,
        thing.texture,
        thing.extent * size,
        math.floor((left - column) * STEPS) / STEPS,
        math.floor((top - row) * STEPS) / STEPS,
    )
    colour = np.array(RGB[thing.look(time).colour], np.float32) + np.array(thing.tint, np.float32)
    _blend(image, column + dx, row + dy, cover, paint, colour)


def _draw_hand(image: np.ndarray, hand: Hand, tip: tuple[float, float], dx: int, dy: int) -> None:
    """A capsule from its rounded end to the border and beyond."""
    size = len(image)
    x0, y0, x1, y1 = hand.box(tip)
    column, row = max(math.floor(x0 * size) - 1, -2), max(math.floor(y0 * size) - 1, -2)
    across, down = min(math.ceil(x1 * size) + 1, size + 2) - column, min(math.ceil(y1 * size) + 1, size + 2) - row
    if across <= 0 or down <= 0:
        return
    u = np.arange(column, column + across, dtype=np.float32) + 0.5 - tip[0] * size
    v = np.arange(row, row + down, dtype=np.float32) + 0.5 - tip[1] * size
    # Beyond the tip's centre the distance to the end, elsewhere the distance to the middle line.
    along, over = (u[None, :], v[:, None]) if hand.side in ("left", "right") else (v[:, None], u[None, :])
    ahead = np.maximum(along if hand.side in ("left", "top") else -along, 0)
    from_line = np.hypot(ahead, over)
    cover = np.clip(hand.width * size / 2 - from_line + 0.5, 0, 1)
    paint = cover * (1.06 - 0.25 * np.square(from_line * (2 / (hand.width * size))))  # a little rounder
    _blend(image, column + dx, row + dy, cover[:, :, None], paint[:, :, None], np.array(hand.tone, np.float32))


def _draw_clutter(image: np.ndarray, clutter: Clutter, time: float, dx: int, dy: int) -> None:
    """A product of two profiles, along x and along y: cheap, and soft."""
    size, (x, y) = len(image), clutter.at(time)
    places = (np.arange(size, dtype=np.float32) + 0.5) / size
    profiles = []
    for place, half in ((x + dx / size, clutter.half_width), (y + dy / size, clutter.half_height)):
        away = np.abs(places - place)
        if clutter.kind == "blob":
            profile = np.where(away < half, np.exp(-4 * np.square(away / half)), 0)
        else:
            profile = np.clip((half - away) * 50, 0, 1)  # an edge of a fiftieth of the side
        inside = np.flatnonzero(profile)
        if not len(inside):
            return
        profiles.append((inside[0], profile[inside[0] : inside[-1] + 1].astype(np.float32)))
    (column, along_x), (row, along_y) = profiles
    cover = (along_y[:, None] * (along_x * np.float32(clutter.opacity))[None, :])[:, :, None]
    _blend(image, int(column), int(row), cover, cover, np.full(3, clutter.grey, np.float32))


def _blend(image: np.ndarray, column: int, row: int, cover: np.ndarray, paint: np.ndarray, colour: np.ndarray) -> None:
    """In place: image * (1 - cover) + paint * colour where the patch at (row, column) lies inside the image."""
    height, width = cover.shape[:2]
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, image.shape[0]), min(column + width, image.shape[1])
    if top >= bottom or left >= right:
        return
    inside = slice(top - row, bottom - row), slice(left - column, right - column)
    patch = image[top:bottom, left:right]
    patch *= 1 - cover[inside]
    patch += paint[inside] * colour


def _pad(size: int, jitter: float) -> int:
    return math.ceil(jitter * size) + 1


@lru_cache(maxsize=16)
def _background(scene: Scene, size: int, pad: int) -> np.ndarray:
    """The scene's background with `pad` more pixels on each side: (size + 2 pad, size + 2 pad, 3) float32."""
    places = (np.arange(-pad, size + pad, dtype=np.float32) + 0.5) / size
    rng = np.random.default_rng(scene.grain)
    first, second = np.array(scene.palette, np.float32)
    mix: np.ndarray  # (n, n), how much of the second colour
    if scene.background == "flat":
        mix = np.zeros((len(places), len(places)))
    elif scene.background == "gradient":
        angle = rng.uniform(0, math.tau)
        mix = 0.5 + (places - 0.5)[None, :] * math.cos(angle) + (places - 0.5)[:, None] * math.sin(angle)
    elif scene.background == "tiles":
        count, shift = rng.integers(3, 8), rng.uniform(0, 2, size=2)
        wave_x, wave_y = (np.sin(math.pi * (places * count + s)) for s in shift)
        mix = np.clip(wave_y[:, None] * wave_x[None, :] * (size / 6) + 0.5, 0, 1)
    else:
        cells = int(rng.integers(4, 8))
        weights = np.maximum(0, 1 - np.abs(places[:, None] * (cells - 1) - np.arange(-1, cells + 1)))  # (n, cells + 2)
        weights = weights / weights.sum(1, keepdims=True)
        mix = weights @ rng.uniform(-0.3, 1.3, (cells + 2, cells + 2)) @ weights.T
    return (first + np.asarray(mix, np.float32)[:, :, None] * (second - first)).astype(np.float32)


@lru_cache(maxsize=4)
def _noise_pool(size: int, deviation: float) -> np.ndarray:
    """Noise for two pictures; a frame takes a window of it, which is much cheaper than drawing it anew."""
    return np.random.default_rng(0).normal(0, deviation, 2 * size * size * 3).astype(np.float32)


def _noise(size: int, deviation: float, time: float) -> np.ndarray:
    count = size * size * 3
    start = int(time * 7_919_777) % count  # a prime: neighbouring frames get quite different windows
    return _noise_pool(size, deviation)[start : start + count].reshape(size, size, 3)
