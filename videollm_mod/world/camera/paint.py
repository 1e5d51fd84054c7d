"""Parts into pixels: anti-aliased patches of colour and coverage, and how they are laid into a picture.

Speed is what counts here: a part touches only the pixels of its own box, all in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from videollm_mod.world.camera.motion import Box, Place
from videollm_mod.world.camera.parts import Part, around, bounds

WEAVES = 12  # number 0 is plain
_TILE = 64


@dataclass(frozen=True)
class Patch:
    """A piece of picture: `rgba` (h, w, 4) float32, colour times coverage (0..255) and coverage (0..1)."""

    row: int  # of its upper left corner in the content, in pixels; may be negative
    column: int
    rgba: np.ndarray


@dataclass(frozen=True)
class Canvas:
    """The content's pixels: how large they are and how soft edges are drawn."""

    height: int
    width: int
    scale: float  # pixels per unit of length
    softness: float  # width of the ramp at an edge, pixels
    light: Place  # direction in which things are brighter, length up to 1


def draw(parts: list[Part], canvas: Canvas, smear: Place = (0.0, 0.0)) -> Patch | None:
    """Parts from back to front as a patch; None if none of it is near the content.

    smear: the way made during the exposure, in fractions of the side.
    """
    if not parts:
        return None
    margin = 2 + math.ceil(max(abs(smear[0]), abs(smear[1])) * canvas.scale / 2)
    raster = _pixels(around(parts), canvas, margin)
    if raster is None:
        return None
    row, column, down, across = raster
    rgba = np.zeros((down, across, 4), np.float32)
    for part in parts:
        _add(rgba, part, row, column, canvas)
    return Patch(row, column, _smeared(rgba, smear[0] * canvas.scale, smear[1] * canvas.scale))


def lay(image: np.ndarray, patch: Patch | None, row: int = 0, column: int = 0) -> None:
    """Blend a patch, moved by (row, column) pixels, into an image (H, W, 3) float32, in place."""
    inside = _overlap(image, patch, row, column)
    if inside is not None:
        target, rgba = inside
        target *= 1 - rgba[:, :, 3:]
        target += rgba[:, :, :3]


def darken(image: np.ndarray, patch: Patch | None, strength: float, row: int = 0, column: int = 0) -> None:
    """A patch's shadow, moved by (row, column) pixels: darker by `strength` where it covers wholly, in place."""
    inside = _overlap(image, patch, row, column)
    if inside is not None:
        target, rgba = inside
        target *= 1 - np.float32(strength) * rgba[:, :, 3:]


def soft_oval(image: np.ndarray, box: Box, strength: float, canvas: Canvas) -> None:
    """A soft dark ellipse that fills a box, in place."""
    raster = _pixels(box, canvas, 0)
    if raster is None:
        return
    row, column, down, across = raster
    cx, cy = (box[0] + box[2]) / 2 * canvas.scale, (box[1] + box[3]) / 2 * canvas.scale
    u = (np.arange(column, column + across, dtype=np.float32) + (0.5 - cx)) / max(
        (box[2] - box[0]) / 2 * canvas.scale, 0.5
    )
    v = (np.arange(row, row + down, dtype=np.float32) + (0.5 - cy)) / max((box[3] - box[1]) / 2 * canvas.scale, 0.5)
    dark = np.clip(1 - (u * u)[None, :] - (v * v)[:, None], 0, 1)
    image[row : row + down, column : column + across] *= 1 - np.float32(strength) * dark[:, :, None]


def _overlap(image: np.ndarray, patch: Patch | None, row: int, column: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The pixels of an image and those of a patch that lie on each other."""
    if patch is None:
        return None
    row, column, (height, width) = row + patch.row, column + patch.column, patch.rgba.shape[:2]
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, image.shape[0]), min(column + width, image.shape[1])
    if top >= bottom or left >= right:
        return None
    return image[top:bottom, left:right], patch.rgba[top - row : bottom - row, left - column : right - column]


def _pixels(box: Box, canvas: Canvas, margin: int) -> tuple[int, int, int, int] | None:
    """Row, column, height and width of the pixels that a box touches, `margin` more on each side, near the content."""
    scale = canvas.scale
    left, top = max(math.floor(box[0] * scale) - margin, -margin), max(math.floor(box[1] * scale) - margin, -margin)
    right = min(math.ceil(box[2] * scale) + margin, canvas.width + margin)
    bottom = min(math.ceil(box[3] * scale) + margin, canvas.height + margin)
    if margin == 0:
        left, top, right, bottom = max(left, 0), max(top, 0), min(right, canvas.width), min(bottom, canvas.height)
    return (top, left, bottom - top, right - left) if right > left and bottom > top else None


def _add(rgba: np.ndarray, part: Part, row: int, column: int, canvas: Canvas) -> None:
    """Blend one part into a patch that begins at (row, column)."""
    scale, ramp = canvas.scale, canvas.softness
    x0, y0, x1, y1 = bounds(part)
    left, right = (
        max(math.floor(x0 * scale - ramp) - column, 0),
        min(math.ceil(x1 * scale + ramp) - column, rgba.shape[1]),
    )
    top, bottom = max(math.floor(y0 * scale - ramp) - row, 0), min(math.ceil(y1 * scale + ramp) - row, rgba.shape[0])
    if left >= right or top >= bottom:
        return
    xs = np.arange(left + column, right + column, dtype=np.float32)[None, :] + 0.5
    ys = np.arange(top + row, bottom + row, dtype=np.float32)[:, None] + 0.5
    cover, shade = _cover(part, xs, ys, canvas)
    if part.alpha < 1:
        cover *= np.float32(part.alpha)
    if part.weave:
        cloth = _weave(part.weave)
        ax, ay = part.points[0]
        size = canvas.scale / 160  # a tile is 0.4 sides wide
        columns = ((xs[0] - ax * scale) / size).astype(np.int32) % _TILE
        rows = ((ys[:, 0] - ay * scale) / size).astype(np.int32) % _TILE
        shade = shade * cloth[rows[:, None], columns[None, :]]
    target = rgba[top:bottom, left:right]
    target *= 1 - cover[:, :, None]
    lit = cover * shade if shade is not None else cover
    for channel in range(3):
        target[:, :, channel] += lit * np.float32(part.colour[channel])
    target[:, :, 3] += cover


def _cover(part: Part, xs: np.ndarray, ys: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, np.ndarray | None]:
    """How much of each pixel a part covers, 0..1, and how bright the part is there, around 1; both (h, w)."""
    scale, ramp = canvas.scale, canvas.softness
    if part.shape == "plate":
        return _plate(part, xs, ys, scale, ramp), np.ones((1, 1), np.float32)
    ax, ay = part.points[0][0] * scale, part.points[0][1] * scale
    r0, r1 = part.radii[0] * scale, part.radii[1] * scale
    dx, dy = xs - np.float32(ax), ys - np.float32(ay)
    if part.shape == "ring":
        away = np.abs(np.sqrt(dx * dx + dy * dy) - r0)
        return np.clip((r1 - away) / ramp + 0.5, 0, 1) * min(1.0, 2 * r1 / ramp + 0.3), np.ones((1, 1), np.float32)
    if part.shape == "oval":
        if part.angle:
            c, s = np.float32(math.cos(part.angle)), np.float32(math.sin(part.angle))
            dx, dy = dx * c + dy * s, dy * c - dx * s
        radius: np.ndarray | float = max(min(r0, r1), 0.3)
        u, v = dx * np.float32(1 / max(r0, 0.3)), dy * np.float32(1 / max(r1, 0.3))
        away = np.sqrt(u * u + v * v)  # in radii: exact on circles, good enough near the rim of the others
        cover = np.clip((1 - away) * (radius / ramp) + 0.5, 0, 1)
    else:
        bx, by = part.points[1][0] * scale - ax, part.points[1][1] * scale - ay
        length = max(bx * bx + by * by, 1e-6)
        t = np.clip((dx * np.float32(bx) + dy * np.float32(by)) * np.float32(1 / length), 0, 1)
        u, v = dx - t * np.float32(bx), dy - t * np.float32(by)
        away = np.sqrt(u * u + v * v)
        radius = np.float32(r0) + t * np.float32(r1 - r0)
        cover = np.clip((radius - away) * np.float32(1 / ramp) + 0.5, 0, 1)
        if max(r0, r1) < 0.5 * ramp:
            cover *= np.float32(max(r0, r1) * 2 / ramp)
        if part.round and max(r0, r1) > 1.5:
            inverse = 1 / np.maximum(radius, 0.5)
            u, v, away = u * inverse, v * inverse, away * inverse
    if not part.round or max(r0, r1) <= 1.5:
        return cover, np.ones((1, 1), np.float32)
    lx, ly = canvas.light
    return cover, (1.05 - np.float32(part.round) * away * away) + np.float32(0.18 * lx) * u + np.float32(0.18 * ly) * v


def _plate(part: Part, xs: np.ndarray, ys: np.ndarray, scale: float, ramp: float) -> np.ndarray:
    """The smallest distance to the edges' lines, positive inside."""
    corners = part.points
    inside: np.ndarray | None = None
    for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0])):
        ex, ey = x1 - x0, y1 - y0
        length = math.hypot(ex, ey)
        if length < 1e-9:
            continue
        nx, ny = -ey / length, ex / length  # to the right of the edge: inside, as y points down
        line = xs * np.float32(nx) + (ys * np.float32(ny) - np.float32((x0 * nx + y0 * ny) * scale))
        inside = line if inside is None else np.minimum(inside, line)
    assert inside is not None, "a plate needs corners"
    return np.clip(inside * np.float32(1 / ramp) + 0.5, 0, 1)


def _smeared(rgba: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """The mean of copies along a way of (dx, dy) pixels: motion blur."""
    count = min(int(max(abs(dx), abs(dy))), 6)
    if count < 1:
        return rgba
    out = np.zeros_like(rgba)
    for i in range(count + 1):
        share = i / count - 0.5
        out += _moved(rgba, round(dy * share), round(dx * share))
    out *= np.float32(1 / (count + 1))
    return out


def _moved(rgba: np.ndarray, rows: int, columns: int) -> np.ndarray:
    if rows == 0 and columns == 0:
        return rgba
    return np.roll(rgba, (rows, columns), (0, 1))  # the margin of a patch is empty, so nothing comes round


@lru_cache(maxsize=16)
def _weave(number: int) -> np.ndarray:
    """A cloth's pattern that repeats: (64, 64) float32, brightness around 1."""
    rng = np.random.default_rng(number)
    places = np.arange(_TILE) / _TILE * math.tau
    strength = rng.uniform(0.15, 0.45)
    kind = number % 4
    pattern: np.ndarray
    if kind == 0:
        pattern = np.sign(np.sin(places * rng.integers(3, 9)))[:, None] * np.ones(_TILE)[None, :]
    elif kind == 1:
        pattern = np.sin(places * rng.integers(3, 9))[None, :] * np.ones(_TILE)[:, None]
    elif kind == 2:
        k = rng.integers(2, 7)
        pattern = np.sin(places * k)[:, None] + np.sin(places * k)[None, :]
    else:
        grid = rng.normal(0, 1, (_TILE // 4, _TILE // 4))
        pattern = np.kron(grid, np.ones((4, 4))) * 0.6
    return (1 + strength * np.clip(pattern, -1.5, 1.5)).astype(np.float32)
