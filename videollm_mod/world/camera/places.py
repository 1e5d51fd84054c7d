"""Places where somebody walks or drives, put together at random: rooms, aisles, streets, roads, and mere planes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.furniture import furniture, post, thing_on_wall, tree
from videollm_mod.world.camera.looks import muted, paint_colour, wooden
from videollm_mod.world.camera.motion import content
from videollm_mod.world.camera.movers import random_figure
from videollm_mod.world.camera.parts import Colour, Part, plate, slab
from videollm_mod.world.camera.people import Pose
from videollm_mod.world.camera.scene import Fixture, Scene, Screen, Surface, random_aspect, random_scene, random_surface


@dataclass(frozen=True)
class Ground:
    """Where walkers may walk, how tall they are there, and who walks there."""

    near: float  # lowest and highest place of feet on the picture, while they are well in view
    far: float
    height: float  # of a person whose feet are at `near`
    growth: float  # how much taller per side further down, as a fraction of `height`
    tilt: float
    from_above: bool
    kinds: tuple[str, ...]
    sides: tuple[str, ...]  # from which they come and to which they go; more often if named more often
    speeds: tuple[float, float]  # seconds to cross the picture's width, fastest and slowest

    def tall(self, y: float) -> float:
        """Height of a person whose feet are at y."""
        return self.height * max(0.2, 1 + self.growth * (y - self.near))


def walkers_place(rng: random.Random, config: CameraConfig) -> tuple[Scene, Ground]:
    """A room, an aisle, a street, a road or nothing in particular."""
    aspect = random_aspect(rng, config)
    kind = rng.choices(("room", "aisle", "street", "road", "any"), (4.5, 1.6, 1.7, 1.7, 1.6))[0]
    make = {"room": _room, "aisle": _aisle, "street": _street, "road": _road, "any": _anywhere}[kind]
    surfaces, fixtures, screens, ground = make(rng, *content(aspect))
    return random_scene(rng, config, aspect, surfaces, fixtures, screens), ground


Parts = tuple[list[Surface], list[Fixture], list[Screen], Ground]


def _sides(rng: random.Random, bottom: int, top: int) -> tuple[str, ...]:
    """Mostly left and right; in some places only one or two sides are used at all."""
    sides = ["left", "left", "right", "right", *["bottom"] * bottom, *["top"] * top]
    if rng.random() < 0.35:
        kept = set(rng.sample(sorted(set(sides)), rng.randint(1, min(2, len(set(sides))))))
        sides = [side for side in sides if side in kept]
    return tuple(sides)


def _room(rng: random.Random, width: float, height: float) -> Parts:
    tilt = rng.choice((0.0, rng.uniform(0, 0.35), rng.uniform(0.2, 0.6)))
    line = rng.uniform(0.2, 0.75) * height
    slope = rng.choice((0.0, 0.0, rng.uniform(-0.15, 0.15)))
    skirting = rng.uniform(0.01, 0.03)
    surfaces = [random_surface(rng, 0, line, "wall")]
    if rng.random() < 0.5:
        surfaces.append(Surface(line - skirting, line, "plain", *(wooden(rng),) * 2, 0, slope))
    surfaces.append(random_surface(rng, line, height, "floor", slope))
    size = rng.choice((rng.uniform(0.35, 0.95), rng.uniform(0.5, 1.4), rng.uniform(1.0, 2.4))) * height
    near = (
        max(0.95 * height, line + 0.1)
        if size < 0.95 * height
        else rng.uniform(0.95, 1.05) * height + 0.6 * (size - 0.8 * height)
    )
    far = max(line + 0.04, near - rng.uniform(0.05, 0.5) * height)
    ground = Ground(
        near,
        min(far, near),
        size,
        rng.choice((rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.9))) / max(1.0, size * 1.6),
        tilt,
        False,
        rng.choice((("person",), ("person", "person", "person", "blob", "cart", "animal"))),
        _sides(rng, rng.choice((1, 3, 5)), rng.choice((0, 0, 1))),
        (1.2, 8.0),
    )
    if rng.random() < 0.25:  # at eye level: heads stay on one line, whoever comes near grows
        head, size, steep = rng.uniform(0.05, 0.35) * height, rng.uniform(0.8, 1.7) * height, rng.uniform(0.85, 1.05)
        deep = size * rng.uniform(0.3, 0.75)
        ground = replace(
            ground,
            near=head + size,
            far=head + size - deep / steep,
            height=size,
            growth=steep / size,
            tilt=0.0,
            sides=rng.choice((("left", "right"), ("left", "right"), ("left",), ("right",))),
        )
    fixtures, screens = [], []
    for _ in range(rng.choice((0, 1, 1, 2, 3, 4))):
        parts, box = thing_on_wall(rng, width, height, 0, line)
        fixtures.append(Fixture(parts, None))
        if rng.random() < 0.25:
            screens.append(Screen(box, rng.uniform(0.2, 4), rng.getrandbits(16)))
    if rng.random() < 0.35:
        fixtures.append(
            Fixture(post(rng, rng.random() * width, line + rng.uniform(0, 0.04), rng.uniform(0.02, 0.1)), None)
        )
    if rng.random() < 0.15:  # a thin post that one passes behind
        fixtures.append(Fixture(post(rng, rng.uniform(0.3, 0.7) * width, height, 0.06 * min(size, 0.7)), height * 2))
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        base = rng.uniform(min(line + 0.03, ground.near), ground.near)
        fixtures.append(furniture(rng, width, base, ground.tall(base)))
    return surfaces, fixtures, screens, ground


def _aisle(rng: random.Random, width: float, height: float) -> Parts:
    """Shelves to the left and right, a floor between them that narrows into the distance, seen from above."""
    line = rng.uniform(0.0, 0.35) * height
    surfaces = [random_surface(rng, 0, height, "floor")]
    if line > 0.05:
        surfaces.append(random_surface(rng, 0, line, "wall"))
    fixtures = []
    middle, gap = rng.uniform(0.4, 0.6) * width, rng.uniform(0.1, 0.3) * width
    for side in (-1, 1):
        if rng.random() < 0.2:
            continue
        foot, border = middle + side * rng.uniform(0.3, 0.6) * width, width / 2 + side * width
        corners = ((border, -0.1), (middle + side * gap, line), (foot, height * 1.1), (border, height * 1.1))
        body = plate(corners if side < 0 else corners[::-1], muted(rng, 0.15, 0.6), rng.randint(0, 11))
        goods: list[Part] = []
        for _ in range(rng.randint(0, 22)):
            v = rng.random()
            x = middle + side * (gap + (abs(foot - middle) - gap) * v + rng.uniform(0.05, 0.3))
            size = rng.uniform(0.01, 0.04)
            goods.append(
                slab(
                    x - size, line + (height - line) * v - size, x + size, line + (height - line) * v, paint_colour(rng)
                )
            )
        fixtures.append(Fixture((body, *goods), None))
    size = rng.uniform(0.3, 0.9) * height
    ground = Ground(
        0.95 * height,
        line + 0.15 * height,
        size,
        rng.uniform(0.2, 1.2) / max(1.0, size * 2),
        rng.uniform(0.1, 0.6),
        rng.random() < 0.25,
        rng.choice((("person",), ("person", "person", "person", "cart"))),
        rng.choice(
            (("bottom", "bottom", "top", "top", "left", "right"), ("bottom", "top"), ("bottom", "left", "right"))
        ),
        (1.5, 8.0),
    )
    return surfaces, fixtures, [], ground


def _street(rng: random.Random, width: float, height: float) -> Parts:
    """Seen from the side: something behind, a pavement, a road."""
    line, kerb = rng.uniform(0.25, 0.6) * height, rng.uniform(0.0, 0.12)
    back = rng.choice(("wall", "grass", "any"))
    surfaces = [
        random_surface(rng, 0, line, back),
        random_surface(rng, line, height, "road", rng.choice((0.0, rng.uniform(-0.1, 0.1)))),
    ]
    if rng.random() < 0.6:
        surfaces.insert(1, random_surface(rng, 0, line * rng.uniform(0.3, 0.8), "wall"))
    if kerb > 0.03:
        surfaces.append(
            random_surface(rng, line + kerb, line + kerb + rng.uniform(0.01, 0.08), rng.choice(("road", "grass")))
        )
    fixtures = [Fixture(thing_on_wall(rng, width, height, 0, line)[0], None) for _ in range(rng.choice((0, 1, 2, 4)))]
    size = rng.uniform(0.25, 0.8) * height
    if rng.random() < 0.5:
        y = line + rng.uniform(0.5, 0.9) * (height - line)
        marks = [slab(x * 0.25, y, x * 0.25 + 0.13, y + 0.012, (225.0, 225.0, 215.0)) for x in range(5)]
        fixtures.append(Fixture(tuple(marks), None))
    for _ in range(rng.choice((0, 0, 1, 2))):  # parked
        car = random_figure(rng, "car", 0, False)
        pose = Pose(
            rng.random() * width, line + 0.03, size * rng.uniform(0.3, 0.5), rng.choice(("left", "right")), 0, 0, 0, 0
        )
        fixtures.append(Fixture(tuple(car.parts(pose)), None))
    if rng.random() < 0.5:
        fixtures.append(Fixture(tree(rng, rng.random() * width, line + 0.02, rng.uniform(0.2, 0.5)), None))
    if rng.random() < 0.25:
        fixtures.append(Fixture(post(rng, rng.uniform(0.3, 0.7) * width, height, 0.02), height * 2))
    kinds = rng.choice(
        (
            ("car",),
            ("car", "car", "bicycle", "person"),
            ("person", "bicycle", "animal", "cart"),
            ("person", "car", "bicycle", "blob"),
        )
    )
    sides = rng.choice((("left", "right"), ("left", "right"), ("left",), ("right",), ("left", "right", "bottom")))
    ground = Ground(
        0.96 * height,
        line + 0.1 * (height - line),
        size,
        rng.uniform(0.3, 1.5) / max(1, 2 * size),
        rng.uniform(0, 0.3),
        False,
        kinds,
        sides,
        (0.9, 6.0),
    )
    return surfaces, fixtures, [], ground


def _road(rng: random.Random, width: float, height: float) -> Parts:
    """Seen from above: a road that lies across, up and down, or anyhow; things keep their size."""
    surfaces = [random_surface(rng, 0, height, rng.choice(("grass", "road", "any")))]
    across = rng.random() < 0.45
    fixtures = []
    half = rng.uniform(0.15, 0.35)
    shade: Colour = muted(rng, 0.2, 0.5)
    lean = rng.uniform(-0.15, 0.15)
    if across:
        y = rng.uniform(0.35, 0.65) * height
        road = plate(
            ((-0.1, y - half - lean), (1.1, y - half + lean), (1.1, y + half + lean), (-0.1, y + half - lean)), shade
        )
        marks = (
            [slab(x * 0.22, y - 0.008, x * 0.22 + 0.11, y + 0.008, (230.0, 230.0, 220.0)) for x in range(5)]
            if abs(lean) < 0.05
            else []
        )
    else:
        x, narrow = rng.uniform(0.35, 0.65) * width, rng.uniform(0.4, 1.0)
        road = plate(
            ((x - half * narrow, -0.1), (x + half * narrow, -0.1), (x + half + lean, 1.1), (x - half + lean, 1.1)),
            shade,
        )
        marks = (
            [slab(x - 0.008, y * 0.22, x + 0.008, y * 0.22 + 0.11, (230.0, 230.0, 220.0)) for y in range(5)]
            if abs(lean) < 0.05
            else []
        )
    fixtures.append(Fixture((road, *marks), None))
    for _ in range(rng.choice((0, 1, 3))):
        fixtures.append(Fixture(tree(rng, rng.random() * width, rng.random() * height, rng.uniform(0.1, 0.25)), None))
    kinds = rng.choice((("car",), ("car", "car", "person", "bicycle"), ("person",), ("blob", "person", "animal")))
    sides: tuple[str, ...] = ("left", "right") if across else ("top", "bottom")
    if rng.random() < 0.2:
        sides = ("left", "right", "top", "bottom")
    size = rng.uniform(0.3, 0.75) * height
    ground = Ground(
        0.85 * height,
        0.3 * height,
        size,
        rng.choice((0.0, rng.uniform(0, 0.8))),
        0.3,
        rng.random() < 0.7,
        kinds,
        sides,
        (0.9, 6.0),
    )
    return surfaces, fixtures, [], ground


def _anywhere(rng: random.Random, width: float, height: float) -> Parts:
    """Planes and patches that mean nothing: what stays is that something comes, stays and goes."""
    surfaces = [random_surface(rng, 0, height, "any")]
    if rng.random() < 0.6:
        surfaces.append(random_surface(rng, rng.uniform(0.1, 0.8) * height, height, "any", rng.uniform(-0.4, 0.4)))
    fixtures = [Fixture(thing_on_wall(rng, width, height, 0, height)[0], None) for _ in range(rng.randint(0, 7))]
    size = rng.choice((rng.uniform(0.25, 0.9), rng.uniform(0.8, 2.0))) * height
    near = 0.95 * height + max(0.0, 0.6 * (size - 0.8 * height))
    ground = Ground(
        near,
        near - rng.uniform(0.02, 0.5) * height,
        size,
        rng.uniform(0, 0.8) / max(1, 2 * size),
        rng.uniform(0, 0.6),
        rng.random() < 0.15,
        ("person", "person", "person", "blob", "blob", "cart", "animal", "bicycle", "car"),
        _sides(rng, rng.choice((1, 3)), rng.choice((0, 1))),
        (1.0, 8.0),
    )
    return surfaces, fixtures, [], ground
