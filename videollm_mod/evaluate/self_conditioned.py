"""A whole world stream through a live session: its own words stay in its context, questions come at their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from videollm_mod.evaluate.programs import Program, ask, watch
from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import Decision, StreamSession
from videollm_mod.types import FrameTokens, StreamEvent
from videollm_mod.world import Narrated


@dataclass(frozen=True)
class SelfConditioned:
    """What a session said."""

    narrations: tuple[StreamEvent, ...]  # ascending by time
    answers: tuple[str, ...]  # to the stream's questions, in their order
    silence: np.ndarray  # (F,) float: the probability of silence at every frame


def self_conditioned(
    model: StreamingVideoLM,
    stream: Narrated,
    features: Tensor,
    *,
    scores: Tensor | None = None,
    threshold: float | None = None,
) -> Program[SelfConditioned]:
    """Watch a stream of F frames with `features` (F, 1 + h * w, width); a program (programs.py).

    scores: (F, 1 + h * w), for a plan with the scorer `given`.
    threshold: of the probability of silence, the model's own if None. A question at frame q is put after the frame, and
    after what the model says about it.
    """
    session = StreamSession(model, threshold=threshold)
    film = [
        FrameTokens(tokens, session.grid, time, index, None if scores is None else scores[index])
        for index, (tokens, time) in enumerate(zip(features, stream.times.tolist()))
    ]
    narrations: list[StreamEvent] = []
    answers: list[str] = []
    silence: list[float] = []
    for question in (*stream.questions, None):
        until = len(film) if question is None else question.frame + 1
        for item in (yield from watch(session, film[len(silence) : until])):
            if isinstance(item, Decision):
                silence.append(item.silence)
            else:
                narrations.append(item)
        if question is not None:
            answers.append((yield from ask(session, question.question)).text)
    return SelfConditioned(tuple(narrations), tuple(answers), np.array(silence))
