"""VFlowOpt: attention from the tokens that everything flows to, one map for tower and decoder (arXiv 2508.05211).

Its cuts in the decoder, and the settings shipped for both, are in vflowopt_cuts.py. The thresholds come from a search
for each model and budget; the defaults are those shipped for LLaVA-OneVision-7B at a quarter of the tokens. The search
(Bayesian, over `threshold`, `cell`, `entropy` and the shares) is not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Tokens, ascending


def global_attention(attention: Tensor, threshold: float) -> Tensor:
    """What each token gets from the global ones: attention (n, n), mean over heads -> (n,).

    Global is who gets more than `threshold` times the mean. Where nobody does, everybody counts (theirs gives NaN).
    """
    received = attention.mean(0)
    chosen = received > threshold * received.mean()
    return attention[chosen].mean(0) if bool(chosen.any()) else received


def squares(positions: Tensor, cell: float) -> Tensor:
    """Rows and columns (n, 2) -> which square of `cell` x `cell` each stands in, (n,) int64 from 0."""
    return (positions / cell).floor().unique(dim=0, return_inverse=True)[1]


def recycled(score: Tensor, positions: Tensor, low: int, cell: float) -> tuple[Tensor, Tensor]:
    """Groups of what is not kept: score (n,), positions (n, 2) rows and columns -> group (n,), place of each (m,).

    The `low` tokens of lowest score that stand in the same square become one, where the highest of them stands; the
    others stay. Places ascend.
    """
    order = score.sort(stable=True).indices
    group = torch.arange(len(score), len(score) * 2, device=score.device)  # each by itself
    group[order[:low]] = squares(positions, cell)[order[:low]]
    names, group = group.unique(return_inverse=True)
    place = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order), device=score.device))
    highest = torch.zeros_like(names).scatter_reduce(0, group, place, "amax", include_self=False)
    return ascending(group, order[highest])


def low_for(score: Tensor, positions: Tensor, cell: float, keep: int) -> int:
    """How many of the lowest to group so that `keep` tokens are left; each further one drops a token or opens a square.

    Theirs estimates it as dropped + n / cell**2, so that the number left varies.
    """
    square = squares(positions, cell)[score.sort(stable=True).indices]
    earlier = (square[None, :] == square[:, None]).tril(-1).any(1)  # whether a lower one stands in the same square
    left = len(score) - earlier.long().cumsum(0)  # behind 1, 2, .. grouped ones
    enough = (left <= keep).nonzero()
    return int(enough[0]) + 1 if len(enough) else len(score)


@dataclass
class VFlowOpt(Reduction):
    """Before the decoder: the cells with most attention from the global ones.

    keep        share left. Of the published settings, 0.1166, 0.2651 and 0.7233.
    threshold   of who is global, in means: 39.26, 34.76, 28.68 for 729 cells. Scaled to the number of cells.
    entropy     weight of softmax(Shannon entropy of the cell's pixels) in the score; as shipped 0. Theirs reads
                normalised pixels cut off to bytes, here the picture's own.
    recycle     whether what is dropped is averaged within squares of `cell` cells' side, as theirs for single pictures.
                Of video theirs keeps the highest of all frames together; here each frame by itself.
    layer       of the tower: the last one used.
    """

    keep: float = 0.2651
    threshold: float = 34.76
    cell: float = 15.58
    entropy: float = 0.0
    recycle: bool = False
    layer: int = -1

    title: ClassVar[str] = "VFlowOpt"
    paper: ClassVar[str] = "https://arxiv.org/abs/2508.05211"
    when: ClassVar[str] = "Together with its cuts, when the decoder's layers should cost less but no question is known."

    def __post_init__(self) -> None:
        super().__post_init__()
        self.merges = self.recycle  # type: ignore[misc]

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        attention = (("tower_attention", self.layer),)
        return (*attention, ("entropy", 0)) if self.entropy else attention

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        k = self.count(len(tokens))
        if k == len(tokens):
            return tokens
        attention = signals["tower_attention", self.layer].mean(1)
        score = global_attention(attention, self.threshold * len(tokens) / 729)
        if self.entropy:
            score = score + self.entropy * signals["entropy", 0].softmax(0)
        if not self.recycle:
            return tokens.top(score, k)
        places, cell = tokens.positions[:, 1:], self.cell
        while int(squares(places, cell).max()) >= k:  # more squares than tokens may be left
            cell *= 2
        group, at = recycled(score, places, low_for(score, places, cell, k), cell)
        return tokens.merge(group, at, score)
