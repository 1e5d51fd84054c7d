"""FoPru: the cells, or the rows of cells, that get most attention in the tower (arXiv 2411.14164).

No code is published. Which layer's attention counts, and from whom, is not said beyond doubt: both are fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Tokens
from videollm_mod.types import InputError


def best_rows(scores: Tensor, row: Tensor, k: int) -> Tensor:
    """k places of whole rows, those with the highest sums first: scores (N,), row (N,) int64 -> (k,), ascending.

    Of the row that no longer fits, its best places fill what is left. Ties go to the upper row, to the left.
    """
    sums = scores.new_zeros(int(row.max()) + 1).index_add(0, row, scores)
    order = sums.sort(descending=True, stable=True).indices
    rank = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=order.device))
    by_score = scores.sort(descending=True, stable=True).indices
    by_row = by_score[rank[row[by_score]].sort(stable=True).indices]
    return by_row[:k].sort().values


@dataclass
class FoPru(Reduction):
    """Keeps the k cells of each frame with the highest significance; the raster order stays. No code is published.

    keep       the authors report 0.25 and less.
    rule       "rank": the best cells. "row": whole rows with the highest sums; the last one is cut to the budget.
    attention  "received", the mean over all queries, or "cls". Unverified.
    layer      of the tower: the second-last, whose output LLaVA takes. Unverified.
    """

    keep: float = 0.25
    rule: str = "rank"
    attention: str = "received"
    layer: int = -2

    title: ClassVar[str] = "FoPru"
    paper: ClassVar[str] = "https://arxiv.org/abs/2411.14164"
    when: ClassVar[str] = "With a tower that has no CLS, or for text in pictures (rule row)."

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule not in ("rank", "row"):
            raise InputError(f"rule of FoPru is {self.rule!r}; take rank or row.")
        if self.attention not in ("received", "cls"):
            raise InputError(f"attention of FoPru is {self.attention!r}; take received or cls.")

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return ((f"{self.attention}_attention", self.layer),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        scores, k = signals[self.needs[0]], self.count(len(tokens))
        if self.rule == "rank":
            return tokens.top(scores, k)
        return tokens.take(best_rows(scores, tokens.positions[:, 1], k))
