"""Places where hands move objects, put together at random: tables against walls, and surfaces seen from above."""

from __future__ import annotations

import random
from dataclasses import dataclass

from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.furniture import post, thing_on_wall
from videollm_mod.world.camera.motion import content
from videollm_mod.world.camera.scene import Fixture, Scene, Screen, random_aspect, random_scene, random_surface


@dataclass(frozen=True)
class Top:
    """Where objects stand."""

    rows: tuple[float, float]  # highest and lowest place of an object's foot
    size: float  # typical object
    flat: bool  # seen from above
    edge: float  # the table's far edge


def objects_place(rng: random.Random, config: CameraConfig) -> tuple[Scene, Top]:
    """A table against a wall, or a surface seen from above."""
    aspect = random_aspect(rng, config)
    width, height = content(aspect)
    fixtures: list[Fixture] = []
    screens: list[Screen] = []
    flat = rng.random() < 0.35
    if flat:
        surfaces = [random_surface(rng, 0, height, rng.choice(("table", "table", "any")))]
        rows = (0.4 * height, 0.95 * height)
        for _ in range(rng.choice((0, 0, 1, 2, 3))):  # papers, boards, tools
            fixtures.append(Fixture(thing_on_wall(rng, width, height, 0, height)[0], None))
    else:
        edge = rng.uniform(0.35, 0.85) * height
        surfaces = [
            random_surface(rng, 0, edge, rng.choice(("wall", "wall", "any"))),
            random_surface(rng, edge, height, "table", rng.choice((0.0, rng.uniform(-0.08, 0.08)))),
        ]
        lip = rng.uniform(0.0, 0.5)
        if rng.random() < 0.25 and edge < 0.7 * height:  # the table's front side
            low = edge + (height - edge) * rng.uniform(0.4, 0.8)
            surfaces.append(random_surface(rng, low, height, "wall"))
            rows = (edge + 0.2 * (low - edge), low - 0.1 * (low - edge))
        else:
            rows = (edge + (0.05 + 0.3 * lip) * (height - edge), min(edge + 0.8 * (height - edge), 0.97 * height))
        for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
            parts, box = thing_on_wall(rng, width, height, 0, edge)
            fixtures.append(Fixture(parts, None))
            if rng.random() < 0.3:
                screens.append(Screen((box[0], box[1], box[2], box[3]), rng.uniform(0.2, 4), rng.getrandbits(16)))
        if rng.random() < 0.3:
            fixtures.append(Fixture(post(rng, rng.choice((0.02, 0.98)) * width, height, 0.06), None))
    size = rng.uniform(0.11, 0.24) if not flat else rng.uniform(0.12, 0.26)
    if width < 0.8:
        size *= 0.75
    return random_scene(rng, config, aspect, surfaces, fixtures, screens), Top(
        rows, size, flat, 0.0 if flat else edge - 0.05
    )
