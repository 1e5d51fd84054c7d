"""What stands and hangs about in places: pictures, windows, posts, trees, tables and chests."""

from __future__ import annotations

import random

from videollm_mod.world.camera.looks import coloured, leafy, muted, paint_colour, wooden
from videollm_mod.world.camera.parts import Part, cone, oval, plate, shaded, slab
from videollm_mod.world.camera.scene import Fixture


def thing_on_wall(
    rng: random.Random, width: float, height: float, top: float, bottom: float
) -> tuple[tuple[Part, ...], tuple[float, float, float, float]]:
    """A window, picture, notice, door or shelf board, and its box."""
    w, h = rng.uniform(0.04, 0.4) * width, rng.uniform(0.06, 0.8) * max(bottom - top, 0.1)
    x, y = rng.uniform(-0.1, 1.0) * width, top + rng.uniform(-0.2, 0.7) * (bottom - top)
    frame, inner = shaded(muted(rng), rng.uniform(0.3, 1)), muted(rng, 0.05, 1.0)
    edge = rng.uniform(0.003, 0.02)
    skew = rng.choice((0.0, 0.0, rng.uniform(-0.06, 0.06)))
    outer = plate(((x, y + skew), (x + w, y), (x + w, y + h), (x, y + h + skew)), frame, rng.choice((0, 0, 3, 7)))
    inside = plate(
        (
            (x + edge, y + skew + edge),
            (x + w - edge, y + edge),
            (x + w - edge, y + h - edge),
            (x + edge, y + h + skew - edge),
        ),
        inner,
        rng.choice((0, 0, 0, 5, 6)),
    )
    parts = [outer, inside]
    for _ in range(rng.choice((0, 0, 1, 3))):
        a, b = x + rng.uniform(0.1, 0.7) * w, y + rng.uniform(0.1, 0.7) * h
        parts.append(slab(a, b, a + 0.25 * w, b + 0.2 * h, coloured(rng.random(), rng.random(), rng.random())))
    return tuple(parts), (x + edge, y + edge, x + w - edge, y + h - edge)


def post(rng: random.Random, x: float, bottom: float, wide: float) -> tuple[Part, ...]:
    """A pillar from above the picture down to `bottom`."""
    colour = muted(rng)
    return slab(x - wide / 2, -0.1, x + wide / 2, bottom, colour), slab(
        x + wide * 0.2, -0.1, x + wide / 2, bottom, shaded(colour, 0.8)
    )


def tree(rng: random.Random, x: float, y: float, size: float) -> tuple[Part, ...]:
    colour, trunk = leafy(rng), coloured(0.08, 0.4, 0.3)
    crown = [
        oval(
            (x + rng.uniform(-0.3, 0.3) * size, y - rng.uniform(0.5, 1.1) * size),
            0.3 * size,
            0.28 * size,
            shaded(colour, rng.uniform(0.7, 1.3)),
            0,
            3,
        )
        for _ in range(5)
    ]
    return (cone((x, y), (x, y - 0.6 * size), 0.05 * size, 0.04 * size, trunk), *crown)


def furniture(rng: random.Random, width: float, base: float, person: float) -> Fixture:
    """A table, counter or chest on `base`, up to half as tall as a person there, away from the borders."""
    tall = person * rng.uniform(0.25, 0.48)
    half = min(tall * rng.uniform(0.25, 0.8), 0.3 * width)
    x = rng.uniform(0.15 * width + half, max(0.16 * width + half, 0.85 * width - half))
    colour = rng.choice((wooden, muted, paint_colour))(rng)
    kind = rng.choice(("round", "table", "chest"))
    if kind == "round":
        parts = [
            cone((x, base - tall), (x, base), 0.05 * tall, 0.05 * tall, shaded(colour, 0.6)),
            cone((x - 0.4 * half, base), (x + 0.4 * half, base - 0.03), 0.04 * tall, 0.04 * tall, shaded(colour, 0.5)),
            oval((x, base - tall), half, 0.3 * half, colour),
        ]
    elif kind == "table":
        legs = [
            slab(x + s * half * 0.85 - 0.008, base - tall, x + s * half * 0.85 + 0.008, base, shaded(colour, 0.6))
            for s in (-1, 1)
        ]
        deep = 0.3 * half
        top = plate(
            (
                (x - half * 0.85, base - tall - deep),
                (x + half * 0.85, base - tall - deep),
                (x + half, base - tall),
                (x - half, base - tall),
            ),
            colour,
        )
        parts = [*legs, top, slab(x - half, base - tall, x + half, base - tall + 0.02, shaded(colour, 0.75))]
    else:
        parts = [
            slab(x - half, base - tall, x + half, base, colour, rng.choice((0, 0, 3, 5))),
            slab(x - half, base - tall, x + half, base - tall * 0.85, shaded(colour, 1.15)),
        ]
    return Fixture(tuple(parts), base)
