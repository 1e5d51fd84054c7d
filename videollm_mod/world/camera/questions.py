"""Questions about a camera stream, asked where the answer is clear, and their answers.

"What happened last?" is always clear. What is in view, and how many things there are, is asked only if everything is
wholly inside, nobody holds anything, and nothing in the background looks like somebody or something.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from videollm_mod.world.camera.actors import VisibleActor
from videollm_mod.world.camera.config import CameraConfig
from videollm_mod.world.camera.story import Script
from videollm_mod.world.camera.words import (
    ASK_COUNT,
    ASK_LAST,
    ASK_VIEW,
    COUNTS,
    MOST_IN_VIEW,
    NOTHING_YET,
    QUESTION_KINDS,
    say_view,
)
from videollm_mod.world.questions import poisson

APART = 3  # frames between two questions, at least
CLEAR = 0.05  # sides between the middles of two things that are told from left to right, at least


@dataclass(frozen=True)
class CameraQuestion:
    """A question put at a sampled frame; the answer is what that frame and the ones before show."""

    time: float  # seconds, = frame / fps
    frame: int
    question: str
    answer: str
    kind: str  # "view", "count" or "last"


def answer(kind: str, seen: list[VisibleActor], told: list[str]) -> tuple[str, str] | None:
    """Question and answer of a kind for what is in view and the narrations so far; None if it would be unclear."""
    if kind == "last":
        return ASK_LAST, told[-1] if told else NOTHING_YET
    actors = sorted((one for one in seen if one.role in ("walker", "object")), key=lambda one: one.centre[0])
    if any(one.role == "hand" for one in seen) or any(one.visible < 0.5 or one.state == "held" for one in actors):
        return None
    if len(actors) > MOST_IN_VIEW:
        return None
    if any(right.centre[0] - left.centre[0] < CLEAR for left, right in pairwise(actors)):
        return None
    return (ASK_COUNT, COUNTS[len(actors)]) if kind == "count" else (ASK_VIEW, say_view([one.name for one in actors]))


def ask(
    script: Script, config: CameraConfig, visible: Callable[[float], list[VisibleActor]], rng: random.Random
) -> list[CameraQuestion]:
    """About `config.questions` questions per 30 s (a Poisson number), ascending, not where something is told."""
    told_at = {event.frame for event in script.events}
    plain = len(script.scene.fixtures) <= 2 and not script.scene.plants
    asked: dict[int, CameraQuestion] = {}
    for _ in range(poisson(rng, config.questions * config.seconds / 30)):
        for _ in range(6):
            frame, kind = rng.randrange(1, max(config.frame_count, 2)), rng.choice(QUESTION_KINDS)
            if frame >= config.frame_count or frame in told_at or any(abs(frame - other) < APART for other in asked):
                continue
            if kind != "last" and not plain:
                continue
            time = frame / config.fps
            told = [event.text for event in script.events if event.frame <= frame]
            said = answer(kind, [] if kind == "last" else visible(time), told)
            if said is not None:
                asked[frame] = CameraQuestion(time, frame, *said, kind)
                break
    return [asked[frame] for frame in sorted(asked)]
