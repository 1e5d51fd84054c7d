"""What people look like: articulated, from the side, from the front, from behind, and from above."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from videollm_mod.world.camera.looks import cloth, hair_colour, skin_colour
from videollm_mod.world.camera.motion import Place
from videollm_mod.world.camera.parts import Colour, Part, cone, oval, plate, shaded, slab


@dataclass(frozen=True)
class Pose:
    """Where a figure stands and how it holds itself at one moment."""

    x: float  # of the feet
    y: float
    height: float
    view: str  # "left", "right" (walks there), "front", "back"
    angle: float  # direction of walking on the picture, radians
    phase: float  # of the step, radians
    swing: float  # 0 at rest .. 1 walking
    time: float  # for what moves also at rest


@dataclass(frozen=True)
class Person:
    """One person's build and clothes; lengths are fractions of the person's height."""

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    weave: int
    width: float
    head: float
    hair_length: float
    coat: float  # how far the coat hangs below the hips; 0 for none
    tilt: float  # how much the camera looks down: legs grow short
    stride: float
    hat: Colour | None
    pack: Colour | None  # a backpack
    bag: Colour | None  # carried in a hand
    restless: float  # how much the arms move while standing
    short_sleeves: bool
    from_above: bool
    beat: float  # phase of all small movements

    half_width = 0.36  # no limb reaches further from the middle, as a fraction of the height

    def parts(self, pose: Pose) -> list[Part]:
        """From back to front."""
        if self.from_above:
            return self._above(pose)
        h, wide, k = pose.height, self.width, self.tilt
        side = pose.view in ("left", "right")
        sign = -1.0 if pose.view == "left" else 1.0
        sway = 0.012 * math.sin(1.7 * pose.time + self.beat) * (1 - pose.swing)
        step = math.sin(pose.phase) * pose.swing * self.stride
        bob = 0.012 * abs(math.cos(pose.phase)) * pose.swing

        def at(u: float, v: float) -> Place:
            return pose.x + (u + sway * v) * h, pose.y - (v * (1 - k) + k * v * v + bob) * h

        parts: list[Part] = []
        lean = sign * 0.035 * pose.swing if side else 0.0
        legs, arms = self._legs(at, h, side, sign, step), self._arms(at, pose, side, sign, step, lean)
        if side:
            parts += arms[0] + legs[0] + legs[1]
        else:
            parts += (arms[0] + arms[1] if pose.view == "back" and k > 0.3 else []) + legs[0] + legs[1]
        shoulder = (0.085 if side else 0.135) * wide
        hips = (0.075 if side else 0.095) * wide
        if self.coat:
            hem = hips * (1.15 + 0.5 * self.coat) + (abs(step) * 0.06 if side else 0.0)
            low = 0.5 - self.coat
            corners = (at(lean - hips, 0.6), at(lean + hips, 0.6), at(hem + 0.2 * lean, low), at(-hem, low))
            parts.append(plate(corners, shaded(self.top, 0.92), self.weave))
        parts.append(cone(at(lean, 0.75), at(0.5 * lean, 0.54), shoulder * h * 0.92, hips * h, self.top, self.weave))
        if not side:  # square shoulders
            ends = at(-shoulder * 0.62, 0.775), at(shoulder * 0.62, 0.775)
            parts.append(cone(ends[0], ends[1], 0.05 * h, 0.05 * h, self.top, self.weave))
        if self.pack and pose.view != "front":
            back = -sign * 0.1 if side else 0.0
            parts.append(oval(at(lean + back, 0.68), (0.05 if side else 0.1) * h, 0.12 * h, self.pack))
        parts.append(cone(at(lean, 0.81), at(lean * 1.2, 0.86), 0.035 * h, 0.035 * h, self.skin))
        parts += self._head(at, h, pose.view, lean, sign)
        if side:
            parts += arms[1]
        elif not (pose.view == "back" and k > 0.3):
            parts += arms[0] + arms[1]
        return parts

    def _legs(self, at, h: float, side: bool, sign: float, step: float) -> list[list[Part]]:  # type: ignore[no-untyped-def]
        legs = []
        for which, s in ((-1.0, -step), (1.0, step)):
            dark = shaded(self.bottom, 0.8 if side and which < 0 else 1.0)
            if side:
                hip, knee = at(0.0, 0.5), at(0.17 * s + sign * 0.02 * abs(s), 0.27)
                foot = at(0.3 * s - sign * 0.05 * abs(s), 0.035 + 0.05 * max(0.0, -s * sign))
                toe = (foot[0] + sign * 0.055 * h, foot[1] + 0.01 * h)
            else:
                lift = max(0.0, s)
                hip, knee = at(which * 0.05 * self.width, 0.5), at(which * 0.055, 0.27 + 0.03 * lift)
                foot = at(which * 0.055 - 0.02 * which * lift, 0.035 + 0.1 * lift)
                toe = (foot[0] + which * 0.008 * h, foot[1] + 0.015 * h)
            leg = [cone(hip, knee, 0.068 * h * self.width, 0.05 * h, dark), cone(knee, foot, 0.05 * h, 0.034 * h, dark)]
            legs.append([*leg, cone(foot, toe, 0.032 * h, 0.026 * h, self.shoes)])
        return legs

    def _arms(self, at, pose: Pose, side: bool, sign: float, step: float, lean: float) -> list[list[Part]]:  # type: ignore[no-untyped-def]
        h, arms = pose.height, []
        rest = 1 - pose.swing
        for which, s in ((-1.0, step), (1.0, -step)):
            move = self.restless * rest * (0.5 + 0.5 * math.sin(1.3 * pose.time + which + self.beat))
            if side:
                shoulder = at(lean, 0.78)
                elbow = at(lean + 0.12 * s + 0.05 * sign * move, 0.61)
                hand = at(lean + 0.22 * s + sign * (0.05 + 0.16 * move), 0.47 + 0.2 * move + 0.03 * abs(s))
            else:
                shoulder = at(which * 0.14 * self.width, 0.77)
                elbow = at(which * (0.18 * self.width + 0.05 * move), 0.61 + 0.02 * s)
                hand = at(which * (0.19 * self.width - 0.1 * move), 0.47 + 0.22 * move + 0.05 * s)
            dark = shaded(self.top, 0.82 if side and which < 0 else 0.95)
            lower = self.skin if self.short_sleeves else dark
            arm = [
                cone(shoulder, elbow, 0.045 * h, 0.038 * h, dark, self.weave),
                cone(elbow, hand, 0.036 * h, 0.027 * h, lower, 0 if self.short_sleeves else self.weave),
                oval(hand, 0.028 * h, 0.032 * h, self.skin),
            ]
            if self.bag and which > 0:
                x, y = hand
                arm.insert(0, slab(x - 0.07 * h, y, x + 0.07 * h, y + 0.16 * h, self.bag))
            arms.append(arm)
        return arms

    def _head(self, at, h: float, view: str, lean: float, sign: float) -> list[Part]:  # type: ignore[no-untyped-def]
        big = self.head * (1 + 0.35 * self.tilt)
        rx, ry = 0.058 * h * big, 0.072 * h * big
        x, y = at(lean * 1.3, 0.92)
        face = oval((x, y), rx, ry, self.skin)
        strand = self.hair_length * h
        parts: list[Part] = []
        if view == "back":
            parts = [face, oval((x, y - 0.1 * ry), rx * 1.1, ry * 1.02, self.hair)]
            if strand:
                parts.append(cone((x, y), (x, y + strand), rx * 1.1, rx * 0.95, self.hair, 1))
        elif view == "front":
            if strand:
                for s in (-1, 1):
                    ends = (x + s * 0.75 * rx, y - 0.3 * ry), (x + s * 0.95 * rx, y + strand * 0.8)
                    parts.append(cone(*ends, rx * 0.4, rx * 0.4, shaded(self.hair, 0.85)))
            parts.append(face)
            parts.append(oval((x, y - 0.72 * ry), rx * 0.98, ry * 0.42, self.hair))
            dark = shaded(self.skin, 0.35)
            parts += [oval((x + s * 0.38 * rx, y - 0.05 * ry), 0.16 * rx, 0.09 * ry, dark) for s in (-1, 1)]
            parts.append(oval((x, y + 0.5 * ry), 0.32 * rx, 0.07 * ry, shaded(self.skin, 0.6)))
        else:
            if strand:
                parts.append(
                    cone((x - sign * 0.5 * rx, y), (x - sign * 0.8 * rx, y + strand), rx * 0.7, rx * 0.6, self.hair)
                )
            parts += [face, oval((x + sign * rx, y + 0.1 * ry), 0.25 * rx, 0.2 * ry, self.skin)]
            parts.append(oval((x - sign * 0.28 * rx, y - 0.3 * ry), rx * 0.9, ry * 0.8, self.hair))
        if self.hat:
            parts.append(oval((x, y - 0.6 * ry), rx * 1.12, ry * 0.5, self.hat))
            parts.append(cone((x - rx, y - 0.3 * ry), (x + rx, y - 0.3 * ry), 0.12 * ry, 0.12 * ry, self.hat))
        return parts

    def _above(self, pose: Pose) -> list[Part]:
        """Seen from high above: shoulders across the direction of walking, the head in front, feet peeping out."""
        h = pose.height
        ux, uy = math.cos(pose.angle), math.sin(pose.angle)

        def at(along: float, across: float) -> Place:
            return pose.x + (along * ux - across * uy) * h, pose.y + (along * uy + across * ux - 0.35) * h

        s = math.sin(pose.phase) * pose.swing
        move = 0.05 * math.sin(1.5 * pose.time + self.beat) * self.restless
        parts = []
        for which, swing in ((-1.0, s), (1.0, -s)):
            foot = at(0.22 * swing + 0.02, which * 0.09)
            parts.append(cone(foot, at(0.22 * swing + 0.1, which * 0.09), 0.05 * h, 0.045 * h, self.shoes))
        for which, swing in ((-1.0, -s), (1.0, s)):
            hand = at(0.2 * swing + 0.09 + move, which * 0.24)
            parts.append(cone(at(0, which * 0.2), hand, 0.065 * h, 0.05 * h, shaded(self.top, 0.85)))
            parts.append(oval(hand, 0.04 * h, 0.04 * h, self.skin))
        parts.append(cone(at(0, -0.15), at(0, 0.15), 0.1 * h, 0.1 * h, self.top, self.weave))
        if self.pack:
            parts.append(oval(at(-0.12, 0), 0.1 * h, 0.1 * h, self.pack))
        parts.append(oval(at(0.05, 0), 0.105 * h * self.head, 0.105 * h * self.head, self.hat or self.hair))
        if not self.hat:
            parts.append(oval(at(0.125, 0), 0.05 * h, 0.05 * h, self.skin))
        return parts


def random_person(rng: random.Random, tilt: float, from_above: bool) -> Person:
    """Anybody."""
    top = cloth(rng)
    return Person(
        skin=skin_colour(rng),
        hair=hair_colour(rng),
        top=top,
        bottom=cloth(rng) if rng.random() < 0.8 else shaded(top, rng.uniform(0.7, 1.1)),
        shoes=rng.choice(((25.0, 25.0, 28.0), (70.0, 50.0, 40.0), (220.0, 220.0, 220.0))),
        weave=rng.choice((0, 0, 0, *range(1, 12))),
        width=rng.uniform(0.8, 1.35),
        head=rng.uniform(0.9, 1.2),
        hair_length=rng.choice((0.0, 0.0, rng.uniform(0.05, 0.2))),
        coat=rng.choice((0.0, 0.0, rng.uniform(0.05, 0.3))),
        tilt=tilt,
        stride=rng.uniform(0.7, 1.15),
        hat=cloth(rng) if rng.random() < 0.15 else None,
        pack=cloth(rng) if rng.random() < 0.15 else None,
        bag=cloth(rng) if rng.random() < 0.2 else None,
        restless=rng.choice((0.0, rng.random(), 1.0)),
        short_sleeves=rng.random() < 0.3,
        from_above=from_above,
        beat=rng.uniform(0, math.tau),
    )
