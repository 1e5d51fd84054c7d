"""What else walks and drives through the picture: cars, bicycles, animals, carts, and blobs of no kind at all."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from videollm_mod.world.camera.looks import cloth, coloured, paint_colour, skin_colour
from videollm_mod.world.camera.motion import Place, turned
from videollm_mod.world.camera.parts import Colour, Part, cone, oval, plate, ring, shaded, slab
from videollm_mod.world.camera.people import Person, Pose, random_person

DARK: Colour = (22.0, 22.0, 25.0)


@dataclass(frozen=True)
class Car:
    """A car, van or truck; lengths are fractions of its height."""

    colour: Colour
    glass: Colour
    length: float  # of the side view
    cabin: tuple[float, float, float, float]  # from tail to nose: where the cabin begins and ends, below and above
    from_above: bool
    half_width = 1.75

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front."""
        if self.from_above:
            return self._above(pose)
        return self._side(pose) if pose.view in ("left", "right") else self._end(pose)

    def _side(self, pose: Pose) -> list[Part]:
        h, sign, half = pose.height, -1.0 if pose.view == "left" else 1.0, self.length / 2

        def at(u: float, v: float) -> Place:  # u: -1 tail .. 1 nose
            return pose.x + sign * u * half * h, pose.y - v * h

        def shape(*corners: Place) -> tuple[Place, ...]:
            points = tuple(at(*corner) for corner in corners)
            return points if sign > 0 else points[::-1]

        a, b, c, d = self.cabin
        parts = [
            plate(shape((b, 0.98), (c, 0.98), (d, 0.52), (a, 0.52)), self.colour),
            plate(shape((b + 0.04, 0.92), (c - 0.04, 0.92), (d - 0.07, 0.56), (a + 0.07, 0.56)), self.glass),
            plate(shape((-0.97, 0.58), (0.8, 0.58), (0.99, 0.46), (1.0, 0.18), (-1.0, 0.18)), self.colour),
            plate(shape((-1.0, 0.28), (1.0, 0.28), (0.98, 0.16), (-0.98, 0.16)), shaded(self.colour, 0.6)),
            cone(at((b + c) / 2, 0.95), at((b + c) / 2, 0.5), 0.025 * h, 0.025 * h, self.colour),
            oval(at(0.95, 0.43), 0.06 * h, 0.05 * h, (250.0, 245.0, 220.0)),
            oval(at(-0.97, 0.45), 0.04 * h, 0.06 * h, (190.0, 30.0, 30.0)),
        ]
        for u in (-0.6, 0.62):
            parts += [oval(at(u, 0.18), 0.18 * h, 0.18 * h, DARK), oval(at(u, 0.18), 0.09 * h, 0.09 * h, (130.0,) * 3)]
        return parts

    def _end(self, pose: Pose) -> list[Part]:
        h, x, y, wide = pose.height, pose.x, pose.y, 0.62 * pose.height
        front = pose.view == "front"
        lamp: Colour = (250.0, 245.0, 220.0) if front else (200.0, 30.0, 30.0)
        roof = (
            (x - 0.7 * wide, y - h),
            (x + 0.7 * wide, y - h),
            (x + 0.95 * wide, y - 0.5 * h),
            (x - 0.95 * wide, y - 0.5 * h),
        )
        pane = (
            (x - 0.6 * wide, y - 0.93 * h),
            (x + 0.6 * wide, y - 0.93 * h),
            (x + 0.8 * wide, y - 0.56 * h),
            (x - 0.8 * wide, y - 0.56 * h),
        )
        return [
            *(
                slab(x + s * 0.78 * wide - 0.1 * h, y - 0.3 * h, x + s * 0.78 * wide + 0.1 * h, y, DARK)
                for s in (-1, 1)
            ),
            plate(roof, self.colour),
            plate(pane, self.glass),
            slab(x - wide, y - 0.55 * h, x + wide, y - 0.12 * h, shaded(self.colour, 0.95)),
            slab(x - 0.5 * wide, y - 0.33 * h, x + 0.5 * wide, y - 0.2 * h, shaded(self.colour, 0.5)),
            *(oval((x + s * 0.75 * wide, y - 0.42 * h), 0.1 * h, 0.06 * h, lamp) for s in (-1, 1)),
        ]

    def _above(self, pose: Pose) -> list[Part]:
        h, half = pose.height, self.length * 0.36
        middle = pose.y - 0.5 * h

        def at(u: float, v: float) -> Place:  # u along, 1 at the nose; v across, 1 at the right side
            x, y = turned(u * half * h, v * 0.36 * h, pose.angle)
            return pose.x + x, middle + y

        def block(u0: float, u1: float, v: float, colour: Colour) -> Part:
            return plate((at(u0, -v), at(u1, -v), at(u1, v), at(u0, v)), colour)

        nose = plate((at(0.7, -0.95), at(1.0, -0.7), at(1.0, 0.7), at(0.7, 0.95)), self.colour)
        return [
            block(-1.0, 0.75, 0.95, self.colour),
            nose,
            block(0.2, 0.42, 0.8, self.glass),
            block(-0.55, 0.2, 0.8, shaded(self.colour, 1.12)),
            block(-0.75, -0.55, 0.75, self.glass),
        ]


@dataclass(frozen=True)
class Bicycle:
    """A bicycle with its rider, or a motor scooter without pedals to speak of."""

    colour: Colour
    rider: Person
    bulky: float  # how thick frame and wheels are
    half_width = 0.62

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front."""
        h, x, y, person = pose.height, pose.x, pose.y, self.rider
        thick = 0.014 * self.bulky * h
        if pose.view in ("front", "back"):
            wheel = cone((x, y - 0.36 * h), (x, y - 0.03 * h), 0.03 * h, 0.03 * h, DARK)
            bar = cone((x - 0.16 * h, y - 0.52 * h), (x + 0.16 * h, y - 0.52 * h), 0.018 * h, 0.018 * h, self.colour)
            seated = Pose(x, y - 0.08 * h, 0.92 * h, pose.view, pose.angle, pose.phase, 0.5, pose.time)
            return [wheel, *person.parts(seated), bar] if pose.view == "front" else [bar, *person.parts(seated), wheel]
        sign = -1.0 if pose.view == "left" else 1.0

        def at(u: float, v: float) -> Place:
            return x + sign * u * h, y - v * h

        parts = []
        for u in (-0.32, 0.32):
            parts.append(ring(at(u, 0.2), 0.18 * h, thick * 1.3, DARK))
        crank, saddle, grip = at(-0.02, 0.2), at(-0.1, 0.47), at(0.24, 0.55)
        for a, b in ((at(-0.32, 0.2), crank), (crank, saddle), (saddle, at(0.22, 0.45)), (crank, at(0.22, 0.45))):
            parts.append(cone(a, b, thick, thick, self.colour))
        parts.append(cone(at(0.32, 0.2), grip, thick, thick, self.colour))
        turn = pose.phase * 1.3
        for which in (1.0, -1.0):
            pedal = at(-0.02 + which * 0.07 * math.cos(turn), 0.2 - which * 0.07 * math.sin(turn))
            knee = at(0.08 + which * 0.03 * math.cos(turn), 0.43 - which * 0.05 * math.sin(turn))
            dark = shaded(person.bottom, 0.85 if which > 0 else 1.0)
            parts += [cone(saddle, knee, 0.055 * h, 0.045 * h, dark), cone(knee, pedal, 0.045 * h, 0.03 * h, dark)]
        shoulder = at(0.08, 0.78)
        parts += [
            cone(at(-0.09, 0.52), shoulder, 0.075 * h, 0.075 * h, person.top, person.weave),
            cone(shoulder, grip, 0.04 * h, 0.03 * h, shaded(person.top, 0.85)),
            oval(at(0.14, 0.91), 0.055 * h, 0.065 * h, person.skin),
            oval(at(0.12, 0.94), 0.06 * h, 0.05 * h, person.hat or person.hair),
        ]
        return parts


@dataclass(frozen=True)
class Animal:
    """Something on four legs."""

    colour: Colour
    length: float
    neck: float
    leg: float
    weave: int
    half_width = 1.3

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front; from the front and behind it is short."""
        h, x, y = pose.height, pose.x, pose.y
        along = pose.view in ("left", "right")
        sign = (-1.0 if pose.view == "left" else 1.0) * (1.0 if along else 0.25)
        half, body = self.length / 2, (1 - self.leg) * 0.36

        def at(u: float, v: float) -> Place:
            return x + sign * u * h, y - v * h

        parts = []
        for i, u in enumerate((-half, half, -half, half)):
            s = 0.16 * math.sin(pose.phase + (0, 2.6, 3.14, 5.7)[i]) * pose.swing
            dark = shaded(self.colour, 0.7 if i < 2 else 0.95)
            parts.append(cone(at(u, self.leg), at(u + s, 0.04), 0.09 * h, 0.055 * h, dark))
        wag = 0.1 * math.sin(5 * pose.time)
        parts.append(
            cone(at(-half, self.leg + body), at(-half - 0.28, self.leg + 0.3 + wag), 0.05 * h, 0.03 * h, self.colour)
        )
        middle = self.leg + body * 0.6
        parts.append(cone(at(-half, middle), at(half, middle), body * h, body * 1.1 * h, self.colour, self.weave))
        head = at(half + 0.22, self.leg + body + self.neck)
        parts.append(cone(at(half, self.leg + body), head, 0.15 * h, 0.12 * h, self.colour))
        parts.append(
            cone(head, (head[0] + sign * 0.17 * h, head[1] + 0.05 * h), 0.13 * h, 0.07 * h, shaded(self.colour, 0.9))
        )
        return parts


@dataclass(frozen=True)
class Cart:
    """A box on wheels, pushed by somebody or driving by itself."""

    colour: Colour
    load: Colour
    weave: int
    pusher: Person | None
    half_width = 1.15

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front."""
        h, sign = pose.height, -1.0 if pose.view == "left" else 1.0
        along = pose.view in ("left", "right")
        x, y = (pose.x + sign * (0.5 * h if self.pusher and along else 0.0)), pose.y
        cart = [
            slab(x - 0.3 * h, y - 0.75 * h, x + 0.3 * h, y - 0.45 * h, self.load, self.weave),
            slab(x - 0.36 * h, y - 0.5 * h, x + 0.36 * h, y - 0.14 * h, self.colour),
            *(oval((x + s * 0.26 * h, y - 0.08 * h), 0.08 * h, 0.08 * h, DARK) for s in (-1, 1)),
        ]
        if self.pusher is None:
            return cart
        person = self.pusher.parts(pose)
        return person + cart if pose.view != "back" else cart + person


@dataclass(frozen=True)
class Blob:
    """A wobbling heap of ovals in a few colours: stands for all that no one thought of."""

    lumps: tuple[tuple[float, float, float, float, Colour, int, float], ...]  # x, y, half axes, colour, weave, phase
    half_width = 0.85

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front."""
        h, parts = pose.height, []
        for x, y, rx, ry, colour, weave, phase in self.lumps:
            wobble = 0.05 * math.sin(phase + pose.phase) * pose.swing + 0.02 * math.sin(phase + 2 * pose.time)
            place = (pose.x + (x + wobble) * h, pose.y - (y + 0.5 * wobble) * h)
            parts.append(oval(place, rx * h, ry * h, colour, 0.6 * math.sin(phase), weave))
        return parts


Figure = Person | Car | Bicycle | Animal | Cart | Blob
NAME_OF = {"Person": "person", "Car": "car"}


def name_of(figure: Figure) -> str:
    """How sentences call it."""
    return NAME_OF.get(type(figure).__name__, "something")


def random_figure(rng: random.Random, kind: str, tilt: float, from_above: bool) -> Figure:
    """Somebody or something of a kind: "person", "car", "bicycle", "animal", "cart" or "blob"."""
    if kind == "person":
        return random_person(rng, tilt, from_above)
    if kind == "car":
        cabin = rng.choice(
            ((-0.75, -0.5, 0.2, 0.5), (-0.98, -0.9, 0.25, 0.55), (-0.99, -0.97, 0.6, 0.75), (0.2, 0.3, 0.75, 0.9))
        )
        glass = coloured(0.58, rng.uniform(0, 0.3), rng.uniform(0.08, 0.5))
        return Car(paint_colour(rng), glass, rng.uniform(2.4, 3.2), cabin, from_above)
    if kind == "bicycle":
        return Bicycle(paint_colour(rng), random_person(rng, 0.0, False), rng.choice((1.0, 1.5, 3.0)))
    if kind == "animal":
        colour = coloured(rng.uniform(0.02, 0.12), rng.uniform(0, 0.6), rng.uniform(0.08, 0.9))
        return Animal(
            colour, rng.uniform(0.8, 1.3), rng.uniform(-0.05, 0.15), rng.uniform(0.35, 0.5), rng.choice((0, 0, 3, 5))
        )
    if kind == "cart":
        pusher = random_person(rng, tilt, False) if rng.random() < 0.6 else None
        return Cart(paint_colour(rng), paint_colour(rng), rng.randint(0, 11), pusher)
    colours = [rng.choice((cloth, paint_colour, skin_colour))(rng) for _ in range(3)]
    lumps = []
    for _ in range(rng.randint(2, 6)):
        rx, ry = rng.uniform(0.12, 0.38), rng.uniform(0.12, 0.4)
        lumps.append(
            (
                rng.uniform(-0.3, 0.3),
                rng.uniform(ry, 1 - ry),
                rx,
                ry,
                rng.choice(colours),
                rng.randint(0, 11),
                rng.uniform(0, 6.28),
            )
        )
    return Blob(tuple(lumps))
