"""Hands place things and take them away, alone or in pairs; now and then they only touch them."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from videollm_mod.world.camera.actors import Hand, Stage, Thing
from videollm_mod.world.camera.config import PLACES, SPACING, CameraConfig
from videollm_mod.world.camera.motion import Knot, Path, Place
from videollm_mod.world.camera.objects import FLAT, SHAPES, HandLook, Sort, random_hand, random_sort
from videollm_mod.world.camera.tables import Top
from videollm_mod.world.camera.visits import Told

APART = 0.04  # of the width: how far the middle of a resting thing is from the lines between the thirds, at least
OUTWARD = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}
STEP = 0.02  # seconds


@dataclass
class _Slot:
    """A place where one thing at a time stands."""

    x: float
    y: float
    place: str
    size: float
    thing: int | None = None


@dataclass
class _Table:
    """What has been planned so far."""

    rng: random.Random
    top: Top
    frame: Place
    shapes: tuple[str, ...]
    same: float  # probability that a new thing looks like one that was there before
    looks: list[tuple[HandLook, str]]  # hands, and the sides from which they come
    sorts: list[Sort] = field(default_factory=list)
    stages: list[list[Stage]] = field(default_factory=list)
    hands: list[Hand] = field(default_factory=list)

    def new_sort(self, size: float) -> int:
        """A thing, not yet placed: its index."""
        rng = self.rng
        if self.sorts and rng.random() < self.same:
            sort = rng.choice(self.sorts)
        else:
            sort = random_sort(rng, rng.choice(self.shapes), size)
            fits = min(1.0, 0.27 * self.frame[0] / sort.width, 0.6 * self.frame[1] / sort.height)
            if fits < 1:
                sort = random_sort(random.Random(rng.random()), sort.shape, size * fits * 0.9)
        self.sorts.append(sort)
        self.stages.append([])
        return len(self.sorts) - 1


def handle(
    rng: random.Random, config: CameraConfig, top: Top, frame: Place, quiet: bool
) -> tuple[list[Thing], list[Hand], list[Told]]:
    """The things and hands of a stream, and its events; in a quiet stream hands touch things at most."""
    table = _set_table(rng, top, frame)
    slots = _slots(rng, top, frame)
    for slot in slots:
        if rng.random() < 0.55:
            slot.thing = table.new_sort(slot.size)
            table.stages[slot.thing].append(Stage(-1.0, "rests", slot.x, slot.y))
    told: list[Told] = []
    pause = max(0.3, 1.4 * 60 / config.events_per_minute - 2.6)
    idle = rng.choice((0.0, 0.1, 0.3))  # how often a hand only touches
    time = rng.uniform(0.3, 0.6 * pause + 1.5)
    while time < config.seconds:
        if quiet and rng.random() < 0.6:
            time += 10
            continue
        touch = quiet or rng.random() < idle
        chosen = [rng.choice(slots)]
        alike = [slot for slot in slots if slot is not chosen[0] and (slot.thing is None) == (chosen[0].thing is None)]
        if alike and not touch and rng.random() < config.pairs:  # both hands at once
            chosen.append(rng.choice(alike))
        moves = (
            rng.uniform(0.4, 1.5),
            rng.choice((rng.uniform(0.2, 0.6), rng.uniform(0.3, 2.0))),
            rng.uniform(0.35, 1.4),
        )
        new: list[Told] = []
        for which, slot in enumerate(chosen):
            new += _act(table, slot, time + which * rng.uniform(0, 0.2), moves, touch, which)
        told += new
        time = max(hand.gone for hand in table.hands)
        time += rng.choice((rng.uniform(0.2, 1.5), rng.expovariate(1 / pause)))
        time = max([time, *(event[0] + SPACING for event in new)])
    things = [Thing(sort, tuple(stages)) for sort, stages in zip(table.sorts, table.stages)]
    return things, table.hands, told


def _set_table(rng: random.Random, top: Top, frame: Place) -> _Table:
    shapes: tuple[str, ...] = FLAT if top.flat else SHAPES
    if rng.random() < 0.6:
        shapes = tuple(rng.sample(sorted(set(shapes)), rng.choice((1, 1, 2, 3))))
        if not top.flat and rng.random() < 0.4:
            shapes = ("bottle",)
    sides = (
        ("bottom", "bottom", "left", "right", "top") if top.flat else ("top", "top", "top", "left", "right", "bottom")
    )
    size = rng.uniform(0.11, 0.21) * (1.0 if frame[0] > 0.8 else 0.8)
    side = rng.choice(sides)
    look = random_hand(rng, size)
    looks = [(look, side)]
    second = rng.random()
    if second < 0.4:  # the other hand of the same person
        mirrored = HandLook(look.size, look.skin, look.sleeve, look.bare, look.weave, look.spread, -look.mirror)
        looks.append((mirrored, side if rng.random() < 0.8 else rng.choice(sides)))
    elif second < 0.6:
        looks.append((random_hand(rng, size), rng.choice(sides)))
    return _Table(rng, top, frame, shapes, rng.choice((0.0, 0.5, 1.0)), looks)


def _slots(rng: random.Random, top: Top, frame: Place) -> list[_Slot]:
    """Places that keep clear of each other and of the lines between the thirds."""
    width, _ = frame
    slots: list[_Slot] = []
    row = rng.uniform(*top.rows) if rng.random() < 0.65 else None
    wanted = rng.choice((1, 2, 3, 3, 3, 4, 5))
    thirds = rng.sample(range(3), 3)
    for attempt in range(40):
        if len(slots) == wanted:
            break
        third = thirds[attempt] if attempt < 3 else rng.randrange(3)
        x = (third + rng.uniform(APART * 3, 1 - APART * 3)) / 3
        if not 0.07 < x < 0.93:
            continue
        y = rng.uniform(*top.rows) if row is None else row + rng.uniform(-0.01, 0.01)
        y = max(y, min(1.1 * top.size, top.rows[1]))  # mostly inside
        near = (abs(x * width - slot.x) < 1.25 * top.size and abs(y - slot.y) < 0.9 * top.size for slot in slots)
        if not any(near):
            slots.append(_Slot(x * width, y, PLACES[third], top.size * rng.uniform(0.85, 1.2)))
    return slots


def _act(
    table: _Table, slot: _Slot, start: float, moves: tuple[float, float, float], touch: bool, which: int
) -> list[Told]:
    """A hand places something on a free slot, or takes or touches what is there; gives the event, if it is one.

    moves: seconds of coming, of holding still, of going.
    """
    rng = table.rng
    look, side = table.looks[which % len(table.looks)] if which else rng.choice(table.looks)
    takes = slot.thing is not None and not touch
    places = slot.thing is None and not touch
    index = table.new_sort(slot.size) if places else slot.thing
    box = (0.1, 0.1) if index is None else (table.sorts[index].width, table.sorts[index].height)
    grip = _grip(rng, side, slot, box, table.top.flat)
    dx, dy = OUTWARD[side]
    lean = rng.uniform(-0.7, 0.7)
    away = (dx + lean * dy, dy + lean * dx)
    away = away[0] / math.hypot(*away), away[1] / math.hypot(*away)
    empty = _out(rng, table.frame, side, grip, look.size, 0.0)
    beyond = _beyond(side, grip, slot, box)
    full = _out(rng, table.frame, side, grip, look.size, beyond)
    reached = start + moves[0]
    released = reached + moves[1]
    gone = released + moves[2]
    knots: list[Knot] = [
        (start, *(full if places else empty)),
        (reached, *grip),
        (released, *grip),
        (gone, *(full if takes else empty)),
    ]
    number = len(table.hands)
    hand = Hand(look, Path(tuple(knots)), away, start, gone, start if places else reached, gone if takes else released)
    table.hands.append(hand)
    if touch or index is None:
        return []
    offset = slot.x - grip[0], slot.y - grip[1]
    if places:
        slot.thing = index
        table.stages[index] += [
            Stage(-1.0, "away"),
            Stage(start, "held", *offset, number),
            Stage(reached, "rests", slot.x, slot.y),
        ]
        return [(reached, "placed", slot.place, index, reached - start)]
    slot.thing = None
    table.stages[index] += [Stage(released, "held", *offset, number), Stage(gone, "away")]
    need = min(0.5 * max(box), 0.5 * math.dist(grip, full))
    time = released
    while math.dist(hand.path.at(time), grip) < need:
        time += STEP
    return [(time, "removed", slot.place, index, time - released)]


def _grip(rng: random.Random, side: str, slot: _Slot, box: Place, flat: bool) -> Place:
    """Where finger tips meet a thing: at its upper end, its side, or the edge that is nearest to the arm."""
    width, height = box
    dx, dy = OUTWARD[side]
    across = 0.3 if flat else 0.38
    x = slot.x + dx * across * width + rng.uniform(-0.05, 0.05) * width
    if side == "top" and not flat:
        return x, slot.y - rng.uniform(0.88, 1.0) * height
    return x, slot.y - rng.uniform(0.45, 0.65) * height + dy * 0.3 * height


def _beyond(side: str, grip: Place, slot: _Slot, box: Place) -> float:
    """How far a held thing reaches inwards from the finger tips."""
    return {
        "left": slot.x + box[0] / 2 - grip[0],
        "right": grip[0] - slot.x + box[0] / 2,
        "top": slot.y - grip[1],
        "bottom": grip[1] - slot.y + box[1],
    }[side]


def _out(rng: random.Random, frame: Place, side: str, grip: Place, size: float, beyond: float) -> Place:
    """Finger tips so far outside that the hand, and what it holds, are out of view."""
    away = 0.45 * size + max(beyond, 0.0) + 0.03
    shift = rng.uniform(-0.12, 0.12)
    return {
        "left": (-away, grip[1] + shift),
        "right": (frame[0] + away, grip[1] + shift),
        "top": (grip[0] + shift, -away),
        "bottom": (grip[0] + shift, frame[1] + away),
    }[side]
