"""Average pooling to a coarser grid, as in Matryoshka Multimodal Models (M3, arXiv 2405.17430)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Tokens


def coarse_grid(rows: int, columns: int, keep: float) -> tuple[int, int]:
    """The largest grid with no more than `keep` of the cells, both sides shrunk alike: 24 x 24, 0.25 -> 12 x 12."""
    side = math.sqrt(keep) + 1e-9
    return max(int(rows * side), 1), max(int(columns * side), 1)


@dataclass
class Matryoshka(Reduction):
    """Every block of cells becomes its mean.

    keep    1/4, 1/16, 1/64 and 1/576 give the nested scales of M3 on its 24 x 24 cells: 144, 36, 9 and 1 tokens. Where
            a side does not divide, blocks differ by one row or column, and none overlap: 7 x 7 at 0.25 is 3 x 3.
    The authors train a model on all scales at once; on any other this is the plain baseline of pooling.
    """

    keep: float = 0.25

    title: ClassVar[str] = "average pooling (M3)"
    paper: ClassVar[str] = "https://arxiv.org/abs/2405.17430"
    trained: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    exact: ClassVar[bool] = False  # a grid has not any number of cells
    when: ClassVar[str] = "When everything should be seen a little; the scale may change from frame to frame."

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        rows, columns = tokens.grid
        high, wide = coarse_grid(rows, columns, self.keep)
        while True:
            block = (tokens.positions[:, 1] * high // rows) * wide + tokens.positions[:, 2] * wide // columns
            names, group = block.unique(return_inverse=True)  # blocks of which nothing is left have no group
            if len(names) <= self.count(len(tokens)):
                return tokens.merge(group, _middles(group))
            high, wide = max(high - 1, 1), max(wide - 1, 1)  # few rows, or tokens with gaps


def _middles(group: Tensor) -> Tensor:
    """The middle member of each group (N,), in the order of the groups: the places of the merged tokens."""
    order = group.sort(stable=True).indices
    sizes = torch.bincount(group)
    first = sizes.cumsum(0) - sizes
    return order[first + (sizes - 1) // 2]
