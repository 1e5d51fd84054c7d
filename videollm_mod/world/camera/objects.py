"""What hands place and take away, and the hands themselves."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from videollm_mod.world.camera.looks import cloth, coloured, paint_colour, skin_colour
from videollm_mod.world.camera.motion import Place, turned
from videollm_mod.world.camera.parts import Colour, Part, cone, oval, plate, ring, shaded, slab

SHAPES = (
    "bottle",
    "bottle",
    "bottle",
    "box",
    "box",
    "ball",
    "ball",
    "cup",
    "can",
    "bag",
    "apple",
    "pear",
    "carrot",
    "banana",
    "book",
    "heap",
)
FLAT = ("apple", "pear", "carrot", "banana", "book", "ball", "box", "heap", "cup")  # what also looks right from above
NAMED = ("bottle", "box", "ball")


@dataclass(frozen=True)
class Sort:
    """One object's kind, proportions and colours; it stands on the middle of its lower edge."""

    shape: str
    height: float
    width: float  # of its box
    colour: Colour
    second: Colour
    alpha: float  # of glass and thin plastic
    weave: int
    seed: float  # 0..1: all small differences

    @property
    def name(self) -> str:
        """How sentences call it."""
        return self.shape if self.shape in NAMED else "something"

    def parts(self, x: float, y: float) -> list[Part]:
        """From back to front, standing at (x, y)."""
        h, w, c, d, a, k = self.height, self.width / 2, self.colour, self.second, self.alpha, self.seed
        left, right, top = x - w, x + w, y - h

        def block(
            x0: float, y0: float, x1: float, y1: float, colour: Colour, weave: int = 0, alpha: float = 1.0
        ) -> Part:
            """In fractions of its box, y upwards."""
            return slab(left + 2 * w * x0, y - h * y1, left + 2 * w * x1, y - h * y0, colour, weave, alpha)

        if self.shape == "bottle":
            neck = 0.3 + 0.14 * k  # the neck's share of the width
            belly = w * 0.94
            parts = [
                cone((x, y - 0.1 * h), (x, y - 0.58 * h), belly, belly, c, 0, a),
                cone((x, y - 0.58 * h), (x, y - 0.84 * h), belly * 0.95, w * neck, c, 0, a),
                slab(x - belly, y - 0.14 * h, x + belly, y, c, 0, a),
                slab(x - w * neck, y - 0.93 * h, x + w * neck, y - 0.82 * h, c, 0, a),
                slab(x - w * neck * 1.15, top, x + w * neck * 1.15, y - 0.92 * h, d),
                cone((x - 0.5 * w, y - 0.2 * h), (x - 0.5 * w, y - 0.6 * h), 0.1 * w, 0.08 * w, shaded(c, 1.6), 0, 0.6),
            ]
            if k > 0.4:
                parts.append(
                    slab(x - belly, y - 0.56 * h, x + belly, y - 0.3 * h, d if k > 0.7 else (235.0,) * 3, 0, 0.9)
                )
            return parts
        if self.shape == "box":
            lid = 0.12 + 0.2 * k
            parts = [block(0, 0, 1, 1 - lid, c, self.weave), block(0, 1 - lid, 1, 1, shaded(c, 1.25))]
            if k > 0.5:
                parts.append(block(0.42, 0, 0.58, 1, shaded(d, 0.9)))
            else:
                parts.append(block(0.2, 0.2, 0.2 + 0.6 * k, 0.5, d))
            return parts
        if self.shape == "ball":
            middle = (x, y - h / 2)
            parts = [oval(middle, w, h / 2, c, 0.0, self.weave)]
            if k > 0.5:
                parts.append(
                    cone((x - 0.85 * w, y - h / 2), (x + 0.85 * w, y - (0.3 + 0.4 * k) * h), 0.12 * w, 0.12 * w, d)
                )
            return [*parts, oval((x - 0.35 * w, y - 0.72 * h), 0.2 * w, 0.14 * h, shaded(c, 1.7), 0, 0, 0.7)]
        if self.shape == "cup":
            body = ((left, top), (right, top), (right - 0.3 * k * w, y), (left + 0.3 * k * w, y))
            handle = [ring((right, y - 0.5 * h), 0.2 * h, 0.05 * h, shaded(c, 0.85))] if k > 0.35 else []
            rim = oval((x, top + 0.05 * h), w, 0.07 * h, shaded(c, 0.55))
            return [*handle, plate(body, c, self.weave, a), rim]
        if self.shape == "can":
            return [
                block(0, 0.03, 1, 0.97, c, self.weave),
                block(0, 0.3, 1, 0.3 + 0.4 * k, d),
                oval((x, top + 0.05 * h), w, 0.05 * h, (190.0,) * 3),
            ]
        if self.shape == "bag":
            body = ((x - 0.8 * w, y - 0.72 * h), (x + 0.8 * w, y - 0.72 * h), (right, y), (left, y))
            return [ring((x, y - 0.72 * h), 0.22 * h, 0.03 * h, shaded(c, 0.7)), plate(body, c, self.weave, a)]
        if self.shape == "apple":
            return [
                oval((x, y - 0.46 * h), w, 0.46 * h, c),
                oval((x + 0.2 * w, y - 0.55 * h), 0.6 * w, 0.3 * h, d, 0, 0, 0.35),
                cone((x, y - 0.85 * h), (x + 0.1 * w, top), 0.06 * w, 0.06 * w, (80.0, 60.0, 30.0)),
            ]
        if self.shape == "pear":
            return [cone((x, y - 0.35 * h), (x + (k - 0.5) * w, y - 0.8 * h), min(w, 0.35 * h), 0.18 * h, c)]
        if self.shape == "carrot":
            tip, root = turned(0.42 * h, 0.0, math.pi * k), turned(-0.3 * h, 0.0, math.pi * k)
            middle = (x, y - 0.5 * h)
            ends = (middle[0] + tip[0], middle[1] + tip[1]), (middle[0] + root[0], middle[1] + root[1])
            leaf = (middle[0] + 1.55 * root[0], middle[1] + 1.55 * root[1])
            return [cone(ends[1], leaf, 0.06 * h, 0.02 * h, d), cone(ends[0], ends[1], 0.04 * h, 0.15 * h, c)]
        if self.shape == "banana":
            bow = [(x - w * math.cos(t) * 0.85, y - 0.2 * h - 0.6 * h * math.sin(t)) for t in (0.2, 1.1, 2.04, 2.94)]
            thick = (0.1, 0.19, 0.19, 0.08)
            return [cone(bow[i], bow[i + 1], thick[i] * h, thick[i + 1] * h, c) for i in range(3)]
        if self.shape == "book":
            return [
                block(0, 0, 1, 1, c, self.weave),
                block(0.1, 0.55, 0.9, 0.85, d),
                block(0, 0, 0.08, 1, shaded(c, 0.6)),
            ]
        lumps = []  # a heap of something
        for i in range(4):
            u, v = math.sin(i * 2.4 + 6 * k) * 0.4, 0.3 + 0.13 * i
            lumps.append(oval((x + u * w, y - v * h), 0.55 * w, 0.27 * h, c if i % 2 else d, k * i, self.weave))
        return lumps


PROPORTIONS = {  # width as a fraction of the height
    "bottle": (0.24, 0.42),
    "box": (0.6, 1.7),
    "ball": (0.97, 1.03),
    "cup": (0.6, 1.1),
    "can": (0.45, 0.75),
    "bag": (0.7, 1.1),
    "apple": (0.9, 1.15),
    "pear": (0.65, 0.8),
    "carrot": (0.9, 1.0),
    "banana": (1.3, 2.2),
    "book": (0.6, 1.5),
    "heap": (0.7, 1.6),
}


def random_sort(rng: random.Random, shape: str, size: float) -> Sort:
    """An object of a shape; `size` is about the square root of its box's area."""
    ratio = rng.uniform(*PROPORTIONS[shape])
    height = size / math.sqrt(ratio)
    colour, alpha = paint_colour(rng), 1.0
    if shape == "bottle":
        if rng.random() < 0.7:
            alpha = rng.uniform(0.45, 0.95)
            colour = coloured(
                rng.choice((0.55, 0.58, 0.33, 0.08, rng.random())), rng.uniform(0.05, 0.6), rng.uniform(0.3, 0.9)
            )
    elif shape in ("apple", "pear", "carrot", "banana"):
        colour = coloured(
            rng.choice((0.0, 0.02, 0.07, 0.14, 0.25, 0.3, 0.8)), rng.uniform(0.6, 1.0), rng.uniform(0.5, 0.95)
        )
    elif shape in ("box", "bag", "book") and rng.random() < 0.4:
        colour = coloured(rng.uniform(0.06, 0.11), rng.uniform(0.25, 0.55), rng.uniform(0.4, 0.85))
    elif shape in ("cup", "bag") and rng.random() < 0.3:
        alpha = rng.uniform(0.5, 0.9)
    second = paint_colour(rng)
    weave = rng.choice((0, 0, *range(1, 12))) if shape not in ("bottle", "apple", "pear", "banana") else 0
    return Sort(shape, height, height * ratio, colour, second, alpha, weave, rng.random())


@dataclass(frozen=True)
class HandLook:
    """A hand with its sleeve; `size` is the hand's length."""

    size: float
    skin: Colour
    sleeve: Colour
    bare: float  # how much of the arm is bare, in hands' lengths
    weave: int
    spread: float  # how far the fingers are apart
    mirror: float  # 1 or -1: on which side the thumb is

    def parts(self, tip: Place, away: Place, closed: float) -> list[Part]:
        """From back to front: fingers at `tip`, the arm towards the direction `away` (of length 1), far out.

        closed: 0 an open hand .. 1 one that holds something.
        """
        s, (ax, ay) = self.size, away

        def at(along: float, across: float) -> Place:
            across *= self.mirror
            return tip[0] + (along * ax - across * ay) * s, tip[1] + (along * ay + across * ax) * s

        dark = shaded(self.skin, 0.82)
        spread = self.spread * (1 - 0.6 * closed)
        parts = [
            cone(at(0.85, 0), at(6.0, 0.3), 0.2 * s, 0.4 * s, dark),
            cone(at(0.85 + self.bare, 0.02), at(8.0, 0.35), 0.3 * s, 0.5 * s, self.sleeve, self.weave),
        ]
        for i in range(4):
            across = (i - 1.2) * (0.12 + 0.1 * spread)
            knuckle, bend = at(0.42, (i - 1.3) * 0.13 + 0.05), at(0.16 + 0.05 * closed, across + 0.16 * closed)
            end = at(-0.06 + 0.05 * abs(i - 1), across * 0.8 + 0.02 - 0.05 * closed)
            shade = shaded(self.skin, 0.88 + 0.06 * i)
            parts += [cone(knuckle, bend, 0.085 * s, 0.075 * s, shade), cone(bend, end, 0.07 * s, 0.055 * s, shade)]
        parts.append(cone(at(0.8, 0), at(0.45, 0.02), 0.19 * s, 0.25 * s, self.skin))
        thumb = at(0.22, -0.34 - 0.1 * spread), at(0.02, -0.22 - 0.2 * spread + 0.12 * closed)
        parts += [
            cone(at(0.6, -0.18), thumb[0], 0.1 * s, 0.075 * s, self.skin),
            cone(*thumb, 0.075 * s, 0.055 * s, self.skin),
        ]
        return parts


def random_hand(rng: random.Random, size: float) -> HandLook:
    """Anybody's hand; a glove now and then."""
    skin = skin_colour(rng) if rng.random() < 0.9 else cloth(rng)
    return HandLook(
        size,
        skin,
        cloth(rng),
        rng.choice((0.1, rng.uniform(0.2, 1.5), 8.0)),
        rng.choice((0, 0, *range(1, 12))),
        rng.uniform(0.2, 1.0),
        rng.choice((-1.0, 1.0)),
    )
