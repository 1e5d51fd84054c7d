"""FasterVLM: the cells that the tower's CLS attends to most (arXiv 2412.01818)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from videollm_mod.reductions.base import Reduction, Signals, Tokens


@dataclass
class FasterVLM(Reduction):
    """Of each frame the k cells with the highest attention from CLS, mean over heads; the raster order stays.

    keep   of 576 tokens the authors keep 0.5, 0.25, 0.1 or 0.05.
    layer  of the tower whose attention counts: the second-last, whose output LLaVA takes.
    """

    keep: float = 0.25
    layer: int = -2

    title: ClassVar[str] = "FasterVLM"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.01818"
    when: ClassVar[str] = "As the first thing to try: one row of one attention map is all that it needs."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("cls_attention", self.layer),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        return tokens.top(signals["cls_attention", self.layer], self.count(len(tokens)))
