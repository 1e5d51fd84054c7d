"""Colours of skin, hair, cloth, paint and walls, drawn at random."""

from __future__ import annotations

import colorsys
import random

from videollm_mod.world.camera.parts import Colour


def coloured(hue: float, saturation: float, value: float) -> Colour:
    """A colour from hue, saturation and value, each 0..1."""
    r, g, b = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return r * 255, g * 255, b * 255


def skin_colour(rng: random.Random) -> Colour:
    """From very light to very dark."""
    return coloured(rng.uniform(0.02, 0.085), rng.uniform(0.25, 0.6), rng.uniform(0.3, 0.98))


def hair_colour(rng: random.Random) -> Colour:
    """Mostly dark; fair, red and grey too."""
    kind = rng.random()
    if kind < 0.6:
        return coloured(rng.uniform(0.0, 0.1), rng.uniform(0.1, 0.6), rng.uniform(0.04, 0.3))
    if kind < 0.85:
        return coloured(rng.uniform(0.05, 0.13), rng.uniform(0.3, 0.65), rng.uniform(0.35, 0.85))
    return coloured(0.1, rng.uniform(0, 0.08), rng.uniform(0.5, 0.9))


def cloth(rng: random.Random) -> Colour:
    """Clothes are dark, grey or muted more often than bright."""
    kind = rng.random()
    if kind < 0.35:
        return coloured(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.05, 0.25))
    if kind < 0.55:
        return coloured(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.25, 0.95))
    if kind < 0.8:
        return coloured(rng.choice((0.6, 0.62, rng.random())), rng.uniform(0.2, 0.6), rng.uniform(0.25, 0.8))
    return coloured(rng.random(), rng.uniform(0.6, 1.0), rng.uniform(0.5, 1.0))


def paint_colour(rng: random.Random) -> Colour:
    """Cars, boxes, cups: any colour, white, grey and black often."""
    if rng.random() < 0.45:
        return coloured(rng.random(), rng.uniform(0, 0.08), rng.choice((0.08, 0.2, 0.5, 0.75, 0.95)))
    return coloured(rng.random(), rng.uniform(0.4, 1.0), rng.uniform(0.3, 1.0))


def muted(rng: random.Random, low: float = 0.15, high: float = 0.95) -> Colour:
    """Walls, floors, tables: little colour, any brightness from `low` to `high`."""
    return coloured(rng.random(), rng.uniform(0, 0.3) ** 1.3, rng.uniform(low, high))


def wooden(rng: random.Random) -> Colour:
    """From pale to dark wood."""
    return coloured(rng.uniform(0.03, 0.11), rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.85))


def leafy(rng: random.Random) -> Colour:
    """Grass and plants."""
    return coloured(rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.7), rng.uniform(0.15, 0.7))
