"""VFlowOpt's cuts inside the decoder, and the settings that its authors ship for both halves (arXiv 2508.05211)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from videollm_mod.depth.plan import keep_count
from videollm_mod.reductions.base import Compose, Reduction, Signals, Stage, Tokens
from videollm_mod.reductions.vflowopt import VFlowOpt
from videollm_mod.types import InputError


@dataclass
class VFlowOptCuts(Reduction):
    """Inside the decoder: two more cuts by a map of the tower, so that no question is needed.

    keep            share left behind the second, 0.8627 = 0.9833 * 0.8773 of those that enter.
    first, second   shares of the layers before the cuts, 9 and 18 of 28.
    step            how much of what goes is gone behind the first: so much that 0.9833 is left.
    The map is what a cell gets from all others; theirs is what it gets from the global ones, as before the decoder.
    """

    keep: float = 0.8627
    first: float = 9 / 28
    second: float = 18 / 28
    step: float = (1 - 0.9833) / (1 - 0.8627)
    layer: int = -1

    title: ClassVar[str] = "VFlowOpt, cuts in the decoder"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.05211"
    stage: ClassVar[Stage] = "layer"
    when: ClassVar[str] = "Behind VFlowOpt."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("received_attention", self.layer),)

    def cuts(self, layers: int) -> dict[int, float]:
        first, second = (max(round(share * layers) - 1, 0) for share in (self.first, self.second))
        return {first: 1 - (1 - self.keep) * self.step, second: self.keep} if self.keep < 1 else {}

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        share = self.cuts(signals.layers)[signals.layer]
        return tokens.top(signals["received_attention", self.layer], keep_count(share, signals.total))


# shipped for LLaVA-OneVision-7B by mean share over its layers: threshold, cell, what enters, what each cut leaves of it
SHIPPED = {
    0.10: (39.26, 17.39, 0.1166, (1.0, 0.6011)),
    0.25: (34.76, 15.58, 0.2651, (0.9833, 0.8773)),
    0.50: (28.68, 11.76, 0.7233, (0.7487, 0.4870)),
}


def shipped(budget: float) -> Compose:
    """VFlowOpt with its cuts, at one of the budgets it was searched for."""
    if budget not in SHIPPED:
        raise InputError(f"VFlowOpt has no setting for a budget of {budget}; take {', '.join(map(str, SHIPPED))}.")
    threshold, cell, enters, (first, second) = SHIPPED[budget]
    cuts = VFlowOptCuts(first * second, step=(1 - first) / (1 - first * second))
    return Compose([VFlowOpt(enters, threshold, cell), cuts])
