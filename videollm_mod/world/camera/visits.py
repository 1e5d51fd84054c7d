"""Walkers come in, walk, stand about, and go out again."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from videollm_mod.world.camera.actors import Walker
from videollm_mod.world.camera.config import SPACING, CameraConfig
from videollm_mod.world.camera.motion import Box, Knot, Path, Place, area, cut
from videollm_mod.world.camera.movers import Figure, random_figure
from videollm_mod.world.camera.parts import seen
from videollm_mod.world.camera.places import Ground

Told = tuple[float, str, str, int, float]  # time, kind, side or place, index of the actor, vague

CLEAR = (0.25, 0.009)  # clearly seen: this fraction of it is inside, or as much as this fraction of the content
BORDER = 0.02  # what comes in from above or below keeps this far from the other borders
STEP = 0.04  # seconds: how exactly the moments of events are found
COARSE = 4  # of these steps at once are taken as long as nothing shows
SHARES = {  # height as a fraction of a person's
    "person": (0.85, 1.1),
    "car": (0.35, 0.75),
    "bicycle": (0.85, 1.1),
    "animal": (0.25, 0.6),
    "cart": (0.7, 1.0),
    "blob": (0.3, 1.1),
}
VIEWS = ("left", "right", "front", "back")


def visit(
    rng: random.Random, config: CameraConfig, ground: Ground, size: Place, quiet: bool
) -> tuple[list[Walker], list[Told]]:
    """The walkers of a stream and their events; in a quiet stream nobody, or somebody who stays throughout."""
    walkers: list[Walker] = []
    told: list[Told] = []
    if quiet:
        if rng.random() < 0.5:
            walkers.append(_stays(rng, ground, size))
        return walkers, told
    if rng.random() < 0.08:
        walkers.append(_stays(rng, ground, size))
    tracks = rng.choice((1, 1, 1, 2, 2, 3))
    if config.crowd and rng.random() < config.crowd:
        tracks = rng.choice((2, 3, 4))
    cycle = 120 * tracks / config.events_per_minute  # seconds from one visit of a track to the next
    for _ in range(tracks):
        inside = rng.random() < 0.4  # somebody is there when the stream begins
        time = 0.0 if inside else rng.uniform(0.3, 0.7 * cycle)
        while time < config.seconds:
            for attempt in range(8):
                start = time + 0.37 * attempt
                walker, sides = _visitor(rng, ground, size, start, inside)
                new = _events(config, walker, sides, size, len(walkers), inside)
                if new is not None and _fits(new, told) and _apart(walker, new, walkers, told, size):
                    walkers.append(walker)
                    told += new
                    stayed = walker.gone - start
                    time = walker.gone + rng.choice(
                        (rng.uniform(0.5, 3), rng.expovariate(1 / max(2.0, cycle - stayed)))
                    )
                    inside = False
                    break
            else:
                time += rng.uniform(1, 4)
    return walkers, told


def bystander(rng: random.Random, size: Place, edge: float) -> Walker:
    """Somebody who stands behind a table, hidden below its edge, from beginning to end."""
    height = rng.uniform(0.8, 1.8) * size[1]
    foot = edge + rng.uniform(0.2, 0.55) * height
    ground = Ground(foot, foot, height, 0.0, 0.0, False, ("person",), ("left",), (1.0, 2.0))
    return replace(_stays(rng, ground, size), below=edge)


def _stays(rng: random.Random, ground: Ground, size: Place) -> Walker:
    y = rng.uniform(ground.far, ground.near)
    place = rng.uniform(0.15, 0.85) * size[0], y
    kind = "person" if "person" in ground.kinds else rng.choice(ground.kinds)
    return _walker(
        rng, ground, kind, random_figure(rng, kind, ground.tilt, ground.from_above), 1.0, [(0.0, *place)], True
    )


def _walker(
    rng: random.Random, ground: Ground, kind: str, figure: Figure, share: float, knots: list[Knot], stays: bool = False
) -> Walker:
    views = tuple(rng.sample(VIEWS, rng.choice((1, 1, 2, 3))))
    born, gone = (-math.inf, math.inf) if stays else (knots[0][0], knots[-1][0])
    shadow = rng.choice((0.0, rng.random(), rng.random()))
    return Walker(
        figure,
        Path(tuple(knots)),
        ground,
        share,
        born,
        gone,
        rng.uniform(0.7, 1.1),
        (rng.uniform(3, 15), views),
        shadow,
    )


def _visitor(
    rng: random.Random, ground: Ground, size: Place, start: float, inside: bool
) -> tuple[Walker, tuple[str, str]]:
    """Somebody who comes in at `start` (or is inside then), stops here and there, and goes out."""
    width, _ = size
    kind = rng.choice(ground.kinds)
    figure = random_figure(rng, kind, ground.tilt, ground.from_above)
    share = rng.uniform(*SHARES[kind])
    comes = rng.choice(ground.sides)
    goes = rng.choice(ground.sides)
    if goes == comes and rng.random() < 0.75:
        goes = rng.choice(ground.sides)
    low, high = ground.speeds
    pace = width / (low * (high / low) ** rng.random())  # sides per second
    stops = _stops(rng, ground, size, kind, comes == goes)
    first, last = _outside(rng, ground, figure, share, size, comes), _outside(rng, ground, figure, share, size, goes)
    if not stops and ({comes, goes} & {"left", "right"}) and ({comes, goes} & {"top", "bottom"}):  # round a corner
        stops = [(rng.uniform(0.3, 0.7) * width, rng.uniform(ground.far, ground.near), 0.0)]
    if not stops:  # straight through
        if {comes, goes} == {"left", "right"}:
            last = last[0], min(max(first[1] + rng.uniform(-0.1, 0.1), ground.far), ground.near)
        elif {comes, goes} == {"top", "bottom"}:
            last = min(max(first[0] + rng.uniform(-0.15, 0.15), 0.15 * width), 0.85 * width), last[1]
    if stops and comes in ("top", "bottom"):  # steeply in, so that no other border is touched
        x, y, dwell = stops[0]
        reach = 0.4 * abs(y - first[1])
        first = min(max(first[0], x - reach), x + reach), first[1]
    if stops and goes in ("top", "bottom"):
        x, y, dwell = stops[-1]
        reach = 0.4 * abs(y - last[1])
        last = min(max(last[0], x - reach), x + reach), last[1]
    time, knots = start, [(start, *first)]
    if inside:
        time -= rng.uniform(0.0, 2.0)
        knots = []
        if not stops:
            stops = [(rng.uniform(0.2, 0.8) * width, rng.uniform(ground.far, ground.near), rng.uniform(0.5, 6))]
    for x, y, dwell in stops:
        if knots:
            time += _seconds(knots[-1], (x, y), pace, ground)
        knots.append((time, x, y))
        if dwell:
            time += dwell
            knots.append((time, x, y))
    knots.append((time + _seconds(knots[-1], last, pace, ground), *last))
    return _walker(rng, ground, kind, figure, share, knots), (comes, goes)


def _stops(rng: random.Random, ground: Ground, size: Place, kind: str, back: bool) -> list[Knot]:
    """Places on the way (x, y) with the seconds of rest there, 0 for walking on: given as (x, y, seconds)."""
    chance = {"person": 0.6, "car": 0.2, "bicycle": 0.15}.get(kind, 0.4)
    if not back and rng.random() > chance:
        return []
    stops = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        dwell = 0.0 if rng.random() < 0.15 else 1.5 * (25 / 1.5) ** (rng.random() ** 1.3)
        stops.append((rng.uniform(0.15, 0.85) * size[0], rng.uniform(ground.far, ground.near), dwell))
    return stops


def _seconds(start: Knot, end: Place, pace: float, ground: Ground) -> float:
    """How long a way takes: far from the camera the same step is shorter on the picture."""
    dx, dy = end[0] - start[1], end[1] - start[2]
    return max(0.25, math.hypot(dx, 0.8 * dy) / pace)


def _outside(rng: random.Random, ground: Ground, figure: Figure, share: float, size: Place, side: str) -> Place:
    """Where its feet are when it is just outside of a side."""
    width, height = size
    if side in ("left", "right"):
        y = rng.uniform(ground.far, ground.near)
        away = figure.half_width * ground.tall(y) * share + 0.03
        return (-away if side == "left" else width + away), y
    x = rng.uniform(0.2, 0.8) * width
    if side == "top":
        return x, -0.04 - 0.13 * ground.tall(0) * share
    y = height
    for _ in range(40):  # the nearer, the taller
        y = height + 0.04 + 1.1 * ground.tall(y) * share
    return x, y


def _clear(walker: Walker, time: float, frame: Box) -> bool:
    """Whether it is clearly seen."""
    _, shows, fraction = seen(walker.parts(time), frame)
    return fraction >= CLEAR[0] or shows >= CLEAR[1] * area(frame)


def _touches(walker: Walker, time: float, frame: Box) -> bool:
    """Whether any of it is inside."""
    return area(cut(walker.rough(time), frame)) > 0 and seen(walker.parts(time), frame)[0] is not None


def _events(
    config: CameraConfig, walker: Walker, sides: tuple[str, str], size: Place, index: int, inside: bool
) -> list[Told] | None:
    """Entering (unless it is inside from the start) and leaving; None if a side would not be unambiguous."""
    frame = (0.0, 0.0, *size)
    told: list[Told] = []
    if _touches(walker, walker.gone, frame) or (not inside and _touches(walker, walker.born, frame)):
        return None  # it would pop up or vanish
    if not inside:
        time = walker.born
        while not _touches(walker, time, frame):
            time += COARSE * STEP
            if time >= walker.gone:
                return None
        while _touches(walker, time - STEP, frame):
            time -= STEP
        first = time
        # A foot that swings in and out again is no entering: it must be seen a little later, and when it is sampled.
        while not all(_clear(walker, t, frame) for t in (time, time + 0.2, config.frame_at(time) / config.fps)):
            time += STEP
            if time >= walker.gone:
                return None
        if not _only(walker, time, sides[0], frame):
            return None
        told.append((time, "enter", sides[0], index, time - first + STEP))
    time = walker.gone
    while not _touches(walker, time - STEP, frame):
        time -= COARSE * STEP
        if time <= walker.born:
            return None
    while _touches(walker, time, frame):
        time += STEP
    first = time
    while not _clear(walker, first, frame):
        first -= STEP
        if first <= walker.born:
            return None
    if not _only(walker, first, sides[1], frame):
        return None
    if told and time - told[0][0] < SPACING + 0.2:
        return None
    return [*told, (time, "leave", sides[1], index, time - first + STEP)]


def _only(walker: Walker, time: float, side: str, frame: Box) -> bool:
    """Whether it is cut off by the named side, and what shows is clearly at that side."""
    box, shown = walker.box(time), seen(walker.parts(time), frame)[0]
    if shown is None:
        return False
    beyond = {"left": box[0] < 0, "right": box[2] > frame[2], "top": box[1] < 0, "bottom": box[3] > frame[3]}
    if side in ("left", "right"):
        return beyond[side] and not beyond["right" if side == "left" else "left"]
    return beyond[side] and shown[0] > BORDER and shown[2] < frame[2] - BORDER


def _fits(new: list[Told], told: list[Told]) -> bool:
    return all(abs(one[0] - other[0]) >= SPACING for one in new for other in told)


def _apart(walker: Walker, new: list[Told], walkers: list[Walker], told: list[Told], size: Place) -> bool:
    """Whether nobody else stands where it enters and leaves, at these moments."""
    frame = (0.0, 0.0, *size)
    for time, _, _, _, vague in new:
        moment = min(time, walker.gone) - min(vague, 0.2) / 2
        mine = seen(walker.parts(moment), frame)[0] or frame
        for other in walkers:
            if _covers(other, moment, mine):
                return False
    for time, _, _, index, _ in told:  # and the other way round
        other = walkers[index]
        moment = min(time, other.gone) - 0.1
        if walker.there(moment) and area(cut(other.rough(moment), cut(walker.rough(moment), frame))) > 0:
            if _covers(walker, moment, seen(other.parts(moment), frame)[0] or frame):
                return False
    return True


def _covers(walker: Walker, time: float, box: Box) -> bool:
    """Whether somebody may hide a good part of a box."""
    return walker.there(time) and area(cut(box, walker.rough(time))) > 0.3 * area(box)
