"""Zero-TPrune: page rank on the tower's attention, then drop what is like something important (arXiv 2305.17328).

No code is published (the repository is a web page). Where each cut stands and how much of it is for likeness is read
from the paper's prose and unverified, so these are fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from videollm_mod.depth.plan import keep_count
from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Tokens


def page_rank(attention: Tensor, rounds: int, low: float = 0.01, high: float = 0.7) -> Tensor:
    """Weighted page rank: (heads, n, n), row i what token i attends to -> (n,).

    Per head, s <- A' s from ones, so that its mean stays 1. Of the heads whose s has a variance within [low, high], all
    of them if none has, the root of the mean of squares.
    """
    walk = attention / attention.sum(-1, keepdim=True)
    s = walk.new_ones(len(walk), 1, walk.shape[-1])
    for _ in range(rounds):
        s = s @ walk
    s = s[:, 0]  # (heads, n)
    spread = s.var(1, correction=0)
    fits = (spread >= low) & (spread <= high)
    return s[fits if bool(fits.any()) else torch.ones_like(fits)].square().mean(0).sqrt()


def unlike(keys: Tensor, rank: Tensor, dropped: int) -> Tensor:
    """Drops the less important that are most like something more important: (n, d), (n,) -> who stays, ascending.

    The lower half by rank is compared with the upper half; of the lower, the `dropped` with the highest cosine
    similarity to any of the upper go.
    """
    order = rank.sort(stable=True).indices
    lower, upper = order[: len(order) // 2].sort().values, order[len(order) // 2 :]
    unit = normalize(keys, dim=-1)
    alike = (unit[lower] @ unit[upper].T).max(1).values
    gone = lower[alike.sort(descending=True, stable=True).indices[:dropped]]
    return torch.ones_like(rank, dtype=torch.bool).index_fill_(0, gone, False).nonzero()[:, 0]


@dataclass
class ZeroTPrune(Reduction):
    """Within the tower, cuts between its blocks.

    keep      share left behind the last cut; it falls by the same factor at each.
    places    shares of the tower's blocks behind which it cuts.
    likeness  share of what a cut drops that is dropped for being like something else; the rest has the lowest rank.
    rounds    of the page rank in the first quarter of the blocks, in the middle, and in the last quarter: theirs 30 to
              50, 5 to 10, and 1.
    low, high    heads whose ranks vary less or more than this are left out.
    CLS neither walks nor is cut here; theirs starts it higher than the others. No code is published: `places` and
    `likeness` are read from the paper's prose and unverified.
    """

    keep: float = 0.5
    places: tuple[float, ...] = (1 / 12, 3 / 12, 6 / 12, 9 / 12, 11 / 12)
    likeness: float = 0.5
    rounds: tuple[int, int, int] = (30, 5, 1)
    low: float = 0.01
    high: float = 0.7

    title: ClassVar[str] = "Zero-TPrune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2305.17328"
    stage: ClassVar[Stage] = "tower"
    when: ClassVar[str] = "When a large tower is what costs; of all others FlowCut alone prunes there."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("tower_attention", HERE), ("tower_keys", HERE))

    def cuts(self, layers: int) -> dict[int, float]:
        behind = sorted({max(round(place * layers) - 1, 0) for place in self.places})
        return {layer: self.keep ** ((i + 1) / len(behind)) for i, layer in enumerate(behind)} if self.keep < 1 else {}

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        share = self.cuts(signals.layers)[signals.layer]
        k = min(keep_count(share, signals.total), tokens.count)
        drop = len(tokens) * (1 - k / tokens.count)
        attention = signals["tower_attention", HERE].transpose(0, 1)  # (heads, n, n)
        keys = signals["tower_keys", HERE].flatten(1)
        alike = min(round(drop * self.likeness), len(tokens) // 2)
        stay = unlike(keys, page_rank(attention, 1, self.low, self.high), alike)
        quarter = max(signals.layers // 4, 1)
        phase = 0 if signals.layer < quarter else 2 if signals.layer >= signals.layers - quarter else 1
        rank = page_rank(attention[:, stay][:, :, stay], self.rounds[phase], self.low, self.high)
        return tokens.top(torch.zeros_like(attention[0, 0]).index_copy(0, stay, rank), k)
