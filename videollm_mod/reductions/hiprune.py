"""HiPrune: what middle layers look at, with its neighbours, and what deep layers look at (arXiv 2508.00553)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Tokens, top


def anchors_and_registers(middle: Tensor, deep: Tensor, k: int, alpha: float, columns: int) -> Tensor:
    """The k places kept, (k,) int64 ascending, by the attention that each place gets in two layers, (N,) each.

    Anchors are the round(k * alpha / 5) highest of the middle layer, one at least. With them stay the places before,
    behind, above and below each, as numbers of the raster, held within it: at a row's end that is the next row's
    beginning, as in the authors' code. The rest has the highest of the deep layer. Where anchors and neighbours alone
    are too many (theirs would fail), the highest of them in the middle layer stay. Places that are gone already are
    -inf in both.
    """
    n = len(middle)
    anchors = middle.sort(descending=True, stable=True).indices[: max(round(k * alpha / 5), 1)]
    around = torch.cat([anchors + step for step in (0, -1, 1, -columns, columns)]).clamp(0, n - 1).unique()
    around = around[middle[around] > -torch.inf]
    if len(around) > k:
        return around[top(middle[around], k)]
    others = deep.index_fill(0, around, -torch.inf)
    return torch.cat([around, top(others, k - len(around))]).sort().values


@dataclass
class HiPrune(Reduction):
    """Of each frame: anchors, their neighbours, and registers.

    keep   1/3, 2/9 or 1/9 of 576 in the paper.
    alpha  the share of the budget for anchors and their neighbours. With 25 tokens to keep or fewer, 0.1 is no anchor;
           here it is one at least, else nothing would be left of the method.
    layer  the middle layer, counted from 1: 9 of CLIP's 24, 16 in Qwen2.5-VL.
    deep   the deep layer, counted from the end: the second-last in CLIP, the last (-1) in Qwen2.5-VL.
    """

    keep: float = 1 / 3
    alpha: float = 0.1
    layer: int = 9
    deep: int = -2

    title: ClassVar[str] = "HiPrune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.00553"
    when: ClassVar[str] = "With a deep tower, when whole objects should stay and not their most telling cell alone."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("received_attention", self.layer - 1), ("received_attention", self.deep))

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        (rows, columns), k = tokens.grid, self.count(len(tokens))
        place = tokens.positions[:, 1] * columns + tokens.positions[:, 2]
        middle, deep = (
            signals[need].new_full((rows * columns,), -torch.inf).index_copy(0, place, signals[need])
            for need in self.needs
        )
        stay = anchors_and_registers(middle, deep, k, self.alpha, columns)
        return tokens.take(torch.isin(place, stay))
