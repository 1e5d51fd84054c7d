"""Questions about a stream, asked in stable moments, and their answers, computed from what is visible.

The view is told from left to right. A question is only asked where its answer is clear: no action under way, at least
one frame after the last narration, things well apart in x for the view, the centre well inside a grid cell for where.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from videollm_mod.world.actors import VisibleThing
from videollm_mod.world.config import WorldConfig
from videollm_mod.world.script import Script
from videollm_mod.world.stage import WorldEvent
from videollm_mod.world.words import (
    ASK_COUNT,
    ASK_FIRST,
    ASK_LAST,
    ASK_VIEW,
    COUNTS,
    NOTHING_YET,
    QUESTION_KINDS,
    ask_minutes_ago,
    ask_where,
    say_view,
    say_where,
)

CLEAR = 0.04  # how far a centre is from the 3 x 3 grid's lines, and two centres from each other in x, at least
APART = 3  # frames between two questions, at least


@dataclass(frozen=True)
class WorldQuestion:
    """A question put at a sampled frame; the answer is what that frame and the ones before show."""

    time: float  # seconds, = frame / fps
    frame: int
    question: str
    answer: str
    kind: str  # "view", "count", "last" or "where"; of `ask_ago`: "first", or "ago-5" for five minutes
    about: int | None = None  # of `ask_ago`: the frame at which the event shows that is asked about


def is_stable(script: Script, config: WorldConfig, frame: int) -> bool:
    """Whether no action is under way at a frame and the last narration came at least one frame earlier."""
    under_way = any(start <= frame / config.fps <= end for start, end in script.busy)
    return not under_way and all(event.frame != frame for event in script.events)


def answer(kind: str, things: list[VisibleThing], told: list[WorldEvent], rng: random.Random) -> tuple[str, str] | None:
    """Question and answer of a kind for the things in view and the events told so far; None if it would be unclear."""
    things = sorted((thing for thing in things if thing.role == "thing"), key=lambda thing: thing.centre[0])
    if kind == "count":
        return ASK_COUNT, COUNTS[len(things)]
    if kind == "last":
        return ASK_LAST, told[-1].text if told else NOTHING_YET
    if kind == "view":
        gaps = [right.centre[0] - left.centre[0] for left, right in pairwise(things)]
        return (ASK_VIEW, say_view([thing.look for thing in things])) if min(gaps, default=1.0) >= CLEAR else None
    lines = (1 / 3, 2 / 3)
    clear = [thing for thing in things if all(abs(place - line) >= CLEAR for place in thing.centre for line in lines)]
    if not clear:
        return None
    thing = rng.choice(clear)
    return ask_where(thing.look), say_where(*thing.centre)


def ask(
    script: Script, config: WorldConfig, visible: Callable[[float], list[VisibleThing]], rng: random.Random
) -> list[WorldQuestion]:
    """About `config.questions` questions per 30 s (a Poisson number), ascending by time, in random stable frames."""
    frames = [frame for frame in range(1, config.frame_count) if is_stable(script, config, frame)]
    asked: dict[int, WorldQuestion] = {}
    for _ in range(poisson(rng, config.questions * config.seconds / 30)):
        for _ in range(8):  # some moments are unclear or taken
            if not frames:
                break
            frame, kind = rng.choice(frames), rng.choice(QUESTION_KINDS)
            if any(abs(frame - other) < APART for other in asked):
                continue
            time = frame / config.fps
            told = [event for event in script.events if event.frame <= frame]
            said = answer(kind, visible(time), told, rng)
            if said is not None:
                asked[frame] = WorldQuestion(time, frame, *said, kind)
                break
    return [asked[frame] for frame in sorted(asked)]


def ask_ago(script: Script, config: WorldConfig, minutes: Sequence[float], every: float) -> list[WorldQuestion]:
    """What happened so many minutes ago, and what happened first: questions that only a long memory can answer.

    Asked about every `every` seconds, in turn, at the next stable frame, as soon as there is so much to look back to;
    ascending by time. The answer is the last event told up to then; its `about` is that event's frame. No model has
    learned such questions, and their words are not in `vocabulary`: they belong to tests alone.
    """
    asked: list[WorldQuestion] = []
    kinds: list[float | None] = [*minutes, None]
    for number in range(1, int(config.seconds / every) + 1):
        back = kinds[(number - 1) % len(kinds)]
        frame = config.frame_at(number * every)
        while frame < config.frame_count and not is_stable(script, config, frame):
            frame += 1
        time = frame / config.fps
        told = [event for event in script.events if event.time <= (time - 60 * back if back is not None else time)]
        if frame >= config.frame_count or not told or (back is not None and time < 60 * back):
            continue
        event = told[-1] if back is not None else told[0]
        words = ASK_FIRST if back is None else ask_minutes_ago(back)
        kind = "first" if back is None else f"ago-{back:g}"
        asked.append(WorldQuestion(time, frame, words, event.text, kind, about=event.frame))
    return asked


def poisson(rng: random.Random, mean: float) -> int:
    """Number of arrivals in one unit of time at the given mean."""
    count, time = 0, rng.expovariate(1)
    while time < mean:
        count, time = count + 1, time + rng.expovariate(1)
    return count
