"""The baseline that chooses blindly: random tokens of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from videollm_mod.depth.expert import random_scores
from videollm_mod.reductions.base import Reduction, Signals, Tokens


@dataclass
class Random(Reduction):
    """Keeps k tokens drawn by a hash of seed, frame and place: the same ones when streamed and in one pass."""

    keep: float = 0.25
    seed: int = 0

    title: ClassVar[str] = "random"
    seeded: ClassVar[bool] = True
    when: ClassVar[str] = "As a baseline: a choice that is no better has learned nothing."

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        frames, n = tokens.frame.unique(), len(tokens)
        scores = random_scores(frames[:1], n, 0, self.seed)[0]
        return tokens.top(scores, self.count(n))
