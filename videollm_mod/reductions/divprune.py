"""DivPrune: the cells that differ most from one another, by the max-min distance (arXiv 2503.02175)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Tokens


def farthest_points(x: Tensor, k: int) -> Tensor:
    """k places in the order of choice, (k,) int64: x (N, d), distance 1 - cosine; O(N^2 d), then O(N) each.

    First the one whose nearest other is farthest; then, again and again, the one that is farthest from its nearest
    chosen one. Ties go to the lower index. What is chosen is never chosen again, even if others are the same (the
    authors' code may take one twice, and so keep fewer).
    """
    unit = torch.nn.functional.normalize(x, dim=-1)
    distance = 1 - unit @ unit.T
    nearest = distance.topk(min(2, len(x)), dim=0, largest=False).values[-1]  # to another: itself is the smallest
    chosen = [nearest.argmax()]  # tensors: on a GPU nothing waits
    least = distance.new_full((len(x),), torch.inf)  # to those chosen
    while True:
        newest = chosen[-1].view(1)
        least = torch.minimum(least, distance.index_select(0, newest)[0]).index_fill(0, newest, -torch.inf)
        if len(chosen) == k:
            return torch.stack(chosen)
        chosen.append(least.argmax())


@dataclass
class DivPrune(Reduction):
    """Of each frame, in the decoder's space, k cells chosen greedily so that the least distance is as large as can be.

    keep   0.098 for pictures, 0.10 for video.
    Theirs rounds to the nearest, and of cells that are all the same may choose one twice, and so keep fewer.
    """

    keep: float = 0.098

    title: ClassVar[str] = "DivPrune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.02175"
    when: ClassVar[str] = "When little may stay: it needs no attention and leaves no two tokens alike."

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        k = self.count(len(tokens))
        if k == len(tokens):
            return tokens
        return tokens.take(farthest_points(tokens.x, k).sort().values)
