"""The background of a scene, painted once per stream: textured surfaces, furniture, and the lamp's light on it all."""

from __future__ import annotations

import numpy as np

from videollm_mod.world.camera.motion import content
from videollm_mod.world.camera.paint import Canvas, draw, lay
from videollm_mod.world.camera.scene import Scene, Surface

_FINE = 2  # textures are painted this many times finer in both directions, and averaged


def paint_backdrop(scene: Scene, canvas: Canvas, pad: int) -> np.ndarray:
    """The background, `pad` pixels more on each side: (height + 2 pad, width + 2 pad, 3) float32."""
    height, width = canvas.height + 2 * pad, canvas.width + 2 * pad
    step = 1 / (canvas.scale * _FINE)
    xs = ((np.arange(width * _FINE, dtype=np.float32) + 0.5) * step - pad / canvas.scale)[None, :]
    ys = ((np.arange(height * _FINE, dtype=np.float32) + 0.5) * step - pad / canvas.scale)[:, None]
    fine = np.zeros((height * _FINE, width * _FINE, 3), np.float32)
    middle = content(scene.aspect)[0] / 2
    for surface in scene.surfaces:
        edge = ys - (surface.top + surface.slope * (xs - middle))
        first = 0 if surface.top <= 0 else max(0, int(np.argmax(edge.max(1) > 0)))
        mix = np.clip(_texture(surface, xs, ys[first:], scene), 0, 1)[:, :, None]
        colours = np.array((surface.first, surface.second), np.float32)
        colour = colours[0] + mix * (colours[1] - colours[0])
        if surface.top <= 0:
            fine[first:] = colour
        else:
            fine[first:] += (edge[first:] > 0)[:, :, None] * (colour - fine[first:])
    image = fine.reshape(height, _FINE, width, _FINE, 3).mean((1, 3))
    blurs = int(scene.softness > 1.3) + int(scene.softness > 1.8)
    for _ in range(blurs):
        image = soften(image)
    inner = image[pad : height - pad or None, pad : width - pad or None]
    for fixture in scene.fixtures:
        lay(inner, draw(list(fixture.parts), canvas))
    x, y, radius, strength = scene.glow
    coarse_x, coarse_y = xs[:, ::_FINE], ys[::_FINE]
    light = strength * np.exp(-((coarse_x - x) ** 2 + (coarse_y - y) ** 2) / radius**2)
    wide, high = content(scene.aspect)
    light = light - scene.vignette * ((coarse_x - wide / 2) ** 2 + (coarse_y - high / 2) ** 2) * 2
    image *= (1 + light)[:, :, None].astype(np.float32)
    return np.clip(image, 0, 255)


def soften(image: np.ndarray) -> np.ndarray:
    """Each pixel mixed with its neighbours, by a binomial of three."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = 0.25 * padded[:-2] + 0.5 * padded[1:-1] + 0.25 * padded[2:]
    return 0.25 * rows[:, :-2] + 0.5 * rows[:, 1:-1] + 0.25 * rows[:, 2:]


def _texture(surface: Surface, xs: np.ndarray, ys: np.ndarray, scene: Scene) -> np.ndarray:
    """How much of the second colour is where: (h, w), around 0..1; xs (1, w), ys (h, 1) in fractions of the side."""
    rng = np.random.default_rng(surface.grain)
    kind, shape = surface.texture, (ys.shape[0], xs.shape[1])
    dirt = _clouds(rng, shape, 2 + int(rng.integers(0, 4)), 3) * rng.uniform(0, 0.5)
    if kind == "plain":
        return dirt + (ys - surface.top) * rng.uniform(-1, 1)
    if kind == "cloud":
        return _clouds(rng, shape, int(rng.integers(2, 7)), 3) * 2
    if kind == "noise":
        return _clouds(rng, shape, int(rng.integers(8, 20)), 3) * 1.5
    if kind == "carpet":
        return rng.normal(0.5, rng.uniform(0.1, 0.6), shape) + dirt
    if kind == "stripes":
        angle, rate = rng.choice((0, 1.57, rng.uniform(0, 3))), rng.uniform(4, 30)
        return np.clip(np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * rate * 3) * 3 + 0.5, 0, 1) + dirt
    if kind == "bricks":
        high = rng.uniform(0.015, 0.08)
        rows = np.floor(ys / high)
        long = high * rng.uniform(1.5, 4)
        columns = np.floor(xs / long + 0.5 * (rows % 2))
        gap = (ys / high % 1 < 0.15) | ((xs / long + 0.5 * (rows % 2)) % 1 < 0.06)
        return np.where(gap, rng.uniform(0.5, 1.5), _hashed(rows, columns, surface.grain) * rng.uniform(0, 0.7)) + dirt
    if kind == "planks":  # all along one direction
        wide = rng.uniform(0.02, 0.12)
        first, second = (ys, xs) if rng.random() < 0.6 else (xs, ys)
        rows = np.floor(first / wide)
        board = _hashed(rows, np.floor(second / (wide * 9) + _hashed(rows, rows * 0, 3)), surface.grain)
        return board * rng.uniform(0.3, 1) + 0.5 * (first / wide % 1 < 0.1) + dirt
    # On a floor that runs into the distance: planks towards a vanishing point, or tiles.
    horizon = surface.top - rng.uniform(0.1, 0.8)
    point = rng.uniform(0, content(scene.aspect)[0])
    depth = 1 / np.maximum(ys - horizon, 0.03)
    across = (xs - point) * depth
    if kind == "rays":
        wide = rng.uniform(0.04, 0.2)
        rows = np.floor(across / wide)
        board = _hashed(rows, np.floor(depth * rng.uniform(0.5, 2) + _hashed(rows, rows * 0, 3)), surface.grain)
        return board * rng.uniform(0.4, 1) + 0.5 * (across / wide % 1 < 0.08) + dirt
    wide = rng.uniform(0.1, 0.4)
    rows, columns = np.floor(depth / wide * rng.uniform(0.5, 1.5)), np.floor(across / wide)
    checks = (rows + columns) % 2 if rng.random() < 0.4 else _hashed(rows, columns, surface.grain)
    return checks * rng.uniform(0.2, 1) + 0.6 * (across / wide % 1 < 0.06) + dirt


def _clouds(rng: np.random.Generator, shape: tuple[int, int], cells: int, octaves: int) -> np.ndarray:
    """Smooth noise around 0, standard deviation about 0.3: random grids, each finer and weaker, drawn large."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        count = cells * 2**octave + 2
        grid = rng.normal(0, 0.4 * 0.55**octave, (count, count)).astype(np.float32)
        down, across = (_stretch(count, length) for length in shape)
        total += down @ grid @ across.T
    return total


def _stretch(count: int, length: int) -> np.ndarray:
    """Weights (length, count) that interpolate `count` values linearly over `length` places."""
    places = np.linspace(0, count - 1, length, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(count, dtype=np.float32)))


def _hashed(rows: np.ndarray, columns: np.ndarray, seed: int) -> np.ndarray:
    """A value 0..1 for each pair, the same for the same pair."""
    return np.abs(np.sin(rows * 12.9898 + columns * 78.233 + seed % 1000) * 43758.547) % 1
