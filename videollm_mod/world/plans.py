"""How each kind of event can be staged: where a thing comes from, which way it goes, whether there is room.

A plan looks at the stage and gives the whole action, or None if it cannot be done now. script.py says the rules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from videollm_mod.world.actors import EDGE, TO_SIDE, Box, Hand, Leg
from videollm_mod.world.config import SIDES
from videollm_mod.world.stage import Action, Stage

SEEN_MOVE = 0.05  # a displacement that cannot be camera shake
SHAKE = 0.01  # a displacement that can be
MIN_DRIFT = 2.0  # seconds of drifting before a thing may stop
EXIT_GAP = 1.5  # seconds from "starts" to "leaves" of the same thing, at least
MAX_DRIFTING = 2
TRIES = 6  # random attempts of a plan before it gives up
SKIN = ((224, 172, 136), (206, 152, 116), (188, 132, 98), (232, 186, 156))


def _outward(place: tuple[float, float], half: float, side: str) -> float:
    """How far a box of half-width `half` at `place` must go towards a side to be wholly outside."""
    x, y = place
    return {"left": x, "right": 1 - x, "top": y, "bottom": 1 - y}[side] + half + EDGE


def _corridor(place: tuple[float, float], half: float, side: str) -> Box:
    """The room that a box needs between `place` and beyond a side."""
    (dx, dy), way = TO_SIDE[side], _outward(place, half, side)
    ahead = (place[0] + dx * way, place[1] + dy * way)
    low_x, high_x, low_y, high_y = *sorted((place[0], ahead[0])), *sorted((place[1], ahead[1]))
    return low_x - half, low_y - half, high_x + half, high_y + half


def _straight(start: float, place: tuple[float, float], side: str, speed: float) -> Leg:
    """A straight way from `place` towards a side (away from it if the speed is negative)."""
    dx, dy = TO_SIDE[side]
    return Leg(start, place[0], place[1], dx * speed, dy * speed)


def _phase(spin: float, direction: tuple[float, float]) -> float:
    """The phase at which a circle's tangent points in a direction: sign(spin) * (-sin, cos) = direction."""
    sign = math.copysign(1, spin)
    return math.atan2(-sign * direction[0], sign * direction[1])


def enters(stage: Stage, start: float) -> Action | None:
    """Straight in from a side, then resting, or going over into a circle where the circle has that direction."""
    if len(stage.in_view) >= stage.config.max_things:
        return None
    thing = stage.new_thing(start)
    half, drifting = thing.extent / 2, sum(stage.things[i].leg(start).drifts for i in stage.in_view)
    for _ in range(TRIES):
        side = stage.rng.choice(SIDES)
        goal = stage.drift(thing, start) if drifting < MAX_DRIFTING and stage.rng.random() < 0.45 else None
        goal = goal or stage.rest(thing, start)
        if goal is None:
            continue
        dx, dy = TO_SIDE[side]
        if goal.drifts:
            goal = replace(goal, phase=_phase(goal.spin, (-dx, -dy)))
        place = goal.at(start)
        if not stage.free(_corridor(place, half, side), start):
            continue
        way = _outward(place, half, side)
        speed = max(stage.rng.uniform(0.28, 0.45) * stage.config.motion, way / 2.5)
        outside = (place[0] + dx * way, place[1] + dy * way)
        arrival, inside = start + way / speed, start + (thing.extent + 2 * EDGE) / speed
        legs = (_straight(start, outside, side, -speed), replace(goal, start=arrival))
        index = len(stage.things)
        event = stage.event("enters", inside, index, thing.look(start), 2 * EDGE / speed, side=side)
        return Action(start, arrival, (event,), index, replace(thing, legs=legs))
    return None


def leaves(stage: Stage, start: float) -> Action | None:
    """Straight out: from a circle along its tangent, or from rest, which is a "starts" first."""
    index = stage.choose(start, drifting=True if stage.rng.random() < 0.5 else None)
    if index is None:
        return None
    thing, leg = stage.things[index], stage.things[index].leg(start)
    look, half = thing.look(start), thing.extent / 2
    for side in stage.rng.sample(SIDES, len(SIDES)):
        begin, events, speed = start, [], stage.rng.uniform(0.28, 0.45) * stage.config.motion
        if leg.drifts:  # wait for the moment when the circle points to the side
            now, sign = leg.phase + leg.spin * (start - leg.start), math.copysign(1, leg.spin)
            begin += ((_phase(leg.spin, TO_SIDE[side]) - now) * sign % math.tau) / abs(leg.spin)
        place = leg.at(begin)
        way = _outward(place, half, side)
        if not leg.drifts:
            speed = min(stage.rng.uniform(0.16, 0.3) * stage.config.motion, (way - SEEN_MOVE) / EXIT_GAP)
            seen = SEEN_MOVE / speed
            events.append(stage.event("starts", begin + seen, index, look, seen - SHAKE / speed))
        if speed < 0.13 or not stage.free(_corridor(place, half, side), start, but=index):
            continue
        gone = begin + way / speed
        events.append(stage.event("leaves", gone, index, look, 2 * EDGE / speed, side=side))
        legs = (*thing.legs, _straight(begin, place, side, speed))
        return Action(begin, gone, tuple(events), index, replace(thing, legs=legs, gone=gone))
    return None


def appears(stage: Stage, start: float) -> Action | None:
    """From nothing, at rest."""
    if len(stage.in_view) >= stage.config.max_things:
        return None
    thing, index = stage.new_thing(start), len(stage.things)
    leg = stage.rest(thing, start)
    if leg is None:
        return None
    return Action(
        start,
        start,
        (stage.event("appears", start, index, thing.look(start)),),
        index,
        replace(thing, legs=(leg,)),
    )


def disappears(stage: Stage, start: float) -> Action | None:
    """Into nothing, resting or drifting."""
    index = stage.choose(start)
    if index is None:
        return None
    thing = stage.things[index]
    event = stage.event("disappears", start, index, thing.look(start))
    return Action(start, start, (event,), index, replace(thing, gone=start))


def _hand(stage: Stage, start: float, place: tuple[float, float], half: float, index: int | None) -> Hand | None:
    """A hand that comes from a side from which place and way are free for hand and thing."""
    width, speed = stage.rng.uniform(0.1, 0.12), stage.rng.uniform(0.7, 1.0) * stage.config.motion
    reach = max(half, width / 2)
    for side in stage.rng.sample(SIDES, len(SIDES)):
        if stage.free(_corridor(place, reach, side), start, but=index):
            travel = _outward(place, reach, side)
            once = max(travel / speed, 0.5)  # slow enough that a sampled frame sees it
            reached = start + once
            released = reached + stage.rng.uniform(0.15, 0.4)
            tone = stage.rng.choice(SKIN)
            return Hand(side, *place, travel, width, tone, start, reached, released, released + once)
    return None


def _fringe(hand: Hand) -> float:
    """Seconds before a hand is gone in which no more than its fringe, twice EDGE, is in the picture."""
    return 2 * EDGE * (hand.gone - hand.released) / hand.travel


def placed(stage: Stage, start: float) -> Action | None:
    """A hand brings a thing, lets go, and withdraws."""
    if len(stage.in_view) >= stage.config.max_things:
        return None
    thing, index = stage.new_thing(start), len(stage.things)
    rest = stage.rest(thing, start)
    if rest is None:
        return None
    hand = _hand(stage, start, (rest.x, rest.y), thing.extent / 2, None)
    if hand is None:
        return None
    outside = hand.tip(start)
    assert outside is not None
    carried = _straight(start, outside, hand.side, -hand.travel / (hand.reached - start))
    legs = (carried, replace(rest, start=hand.reached))
    event = stage.event("placed", hand.gone, index, thing.look(start), _fringe(hand))
    return Action(start, hand.gone, (event,), index, replace(thing, legs=legs), hand)


def taken(stage: Stage, start: float) -> Action | None:
    """A hand comes to a resting thing and withdraws with it."""
    index = stage.choose(start, drifting=False)
    if index is None:
        return None
    thing = stage.things[index]
    place = thing.leg(start).at(start)
    hand = _hand(stage, start, place, thing.extent / 2, index)
    if hand is None:
        return None
    carried = _straight(hand.released, place, hand.side, hand.travel / (hand.gone - hand.released))
    event = stage.event("taken", hand.gone, index, thing.look(start), _fringe(hand))
    legs = (*thing.legs, carried)
    return Action(start, hand.gone, (event,), index, replace(thing, legs=legs, gone=hand.gone), hand)


def turns(stage: Stage, start: float) -> Action | None:
    """To another colour that this split allows for the shape and that makes it unlike all others in view."""
    index = stage.choose(start)
    if index is None:
        return None
    thing, look, shown = stage.things[index], stage.things[index].look(start), stage.shown(start)
    colours = [
        new.colour for new in stage.looks if new not in shown and (new.shape, new.size) == (look.shape, look.size)
    ]
    if not colours:
        return None
    colour = stage.rng.choice(colours)
    event = stage.event("turns", start, index, look, became=colour)
    return Action(start, start, (event,), index, replace(thing, colours=(*thing.colours, (start, colour))))


def starts(stage: Stage, start: float) -> Action | None:
    """From rest into drifting on a circle."""
    index = stage.choose(start, drifting=False)
    if index is None or sum(stage.things[i].leg(start).drifts for i in stage.in_view) >= MAX_DRIFTING:
        return None
    thing = stage.things[index]
    for _ in range(TRIES):
        leg = stage.drift(thing, start, through=thing.leg(start).at(start), but=index)
        if leg is not None:
            seen, shaken = (2 * math.asin(way / (2 * leg.radius)) / abs(leg.spin) for way in (SEEN_MOVE, SHAKE))
            event = stage.event("starts", start + seen, index, thing.look(start), seen - shaken)
            return Action(start, start + seen, (event,), index, replace(thing, legs=(*thing.legs, leg)))
    return None


def stops(stage: Stage, start: float) -> Action | None:
    """From drifting to rest, wherever it is."""
    index = stage.choose(start, drifting=True)
    if index is None or start - stage.things[index].leg(start).start < MIN_DRIFT:
        return None
    thing = stage.things[index]
    leg, seen = thing.leg(start), start + 1 / stage.config.fps
    # Frames come every 1 / fps: none shortly before `seen` means none shortly before `start`, where a thing that
    # still moves would look at rest.
    event = stage.event("stops", seen, index, thing.look(start), SEEN_MOVE / (leg.radius * abs(leg.spin)))
    legs = (*thing.legs, Leg(start, *leg.at(start)))
    return Action(start, seen, (event,), index, replace(thing, legs=legs))


def cut(stage: Stage, start: float) -> Action | None:
    """Another scene, with other things or none."""
    return Action(start, start, (stage.event("cut", start),), cut=True)


PLANS: dict[str, Callable[[Stage, float], Action | None]] = {
    plan.__name__: plan for plan in (enters, leaves, appears, disappears, placed, taken, turns, starts, stops, cut)
}
