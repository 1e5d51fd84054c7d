"""A whole world stream through a live session: its own words stay in its context, questions come at their times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from videollm_mod.model import StreamingVideoLM
from videollm_mod.stream.session import StreamSession
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
) -> SelfConditioned:
    """Watch a stream of F frames with `features` (F, 1 + h * w, width).

    scores: (F, 1 + h * w), for a plan with the scorer `given`.
    threshold: of the probability of silence, the model's own if None. A question at frame q is put after the frame, and
    after what the model says about it.
    """
    session = StreamSession(model, threshold=threshold)
    questions = list(stream.questions)
    narrations: list[StreamEvent] = []
    answers: list[str] = []
    silence = np.empty(len(stream.times))
    for index, time in enumerate(stream.times.tolist()):
        own_scores = None if scores is None else scores[index]
        narrations += session.push_tokens(FrameTokens(features[index], session.grid, time, index, own_scores))
        silence[index] = session.silence
        while len(answers) < len(questions) and questions[len(answers)].frame == index:
            answers.append(session.ask(questions[len(answers)].question).text)
    return SelfConditioned(tuple(narrations), tuple(answers), silence)
