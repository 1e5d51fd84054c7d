"""The nouns that flow from a camera to a sentence: Frame, FrameTokens, StreamEvent.

All are frozen; all times are seconds (float) from the start of the source.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


class InputError(ValueError):
    """Something a person gave us is wrong and a person can mend it.

    The message is one sentence that names the thing, its value and the mend. The command line prints it and
    leaves with exit code 2; library users catch it as the ValueError it is.
    """


@dataclass(frozen=True)
class Frame:
    """One sampled picture of a video."""

    image: np.ndarray  # (height, width, 3) uint8 RGB
    time: float  # presentation time, seconds from the start of the source
    index: int  # 0-based number among the frames sampled


@dataclass(frozen=True)
class FrameTokens:
    """What the decoder gets of one frame: a CLS token, then the pooled grid in raster order."""

    tokens: torch.Tensor  # (1 + h * w, d)
    grid: tuple[int, int]  # (h, w)
    time: float
    index: int
    scores: torch.Tensor | None = None  # (1 + h * w,), for a plan with the scorer `given`


@dataclass(frozen=True)
class StreamEvent:
    """Something the model said."""

    time: float  # video time at which it decided to speak, seconds
    kind: str  # "narration", or "answer" to a question
    text: str
    frame: int  # number of the newest frame it had seen
    question: str | None = None  # the question answered, if kind is "answer"
    asked: float | None = None  # video time at which the question was put, seconds
    probability: float = 1.0  # the model's probability of speaking at this frame (1 for answers)
