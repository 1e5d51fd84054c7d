"""HoliTom's second half, in the decoder: dropped tokens are folded into kept ones (arXiv 2505.21334)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Streamable, Tokens, top


def fold(x: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Who is folded into whom, and how much each weighs: (n, d), kept (k,) ascending -> group (n,), weights (n,).

    Of a kept token with m others folded in one after the other, it weighs 2**-m, the first 2**-m, .., the last 1/2.
    """
    unit = normalize(x, dim=-1)
    group = (unit @ unit[at].T).argmax(1)  # (n,)
    group[at] = torch.arange(len(at), device=x.device)
    dropped = torch.ones(len(x), dtype=torch.bool, device=x.device).index_fill_(0, at, False)
    folded = one_hot(group, len(at)) * dropped[:, None]  # (n, k)
    later = folded.sum(0) - folded.cumsum(0)  # (n, k): how many are folded into the same one behind it
    halvings = torch.where(dropped, later.gather(1, group[:, None])[:, 0] + 1, folded.sum(0)[group])
    return group, 0.5 ** halvings.double()


@dataclass
class HoliTomMerge(Reduction):
    """Inside the decoder: tokens that the question attends to least are folded into the most similar of the others.

    keep    0.5. Theirs ranks all frames together, here each by itself.
    after   share of the layers behind which it is done, 18 of 28.
    A kept token becomes the mean of itself and a dropped one, one after the other in their order: the last weighs half.
    """

    keep: float = 0.5
    after: float = 18 / 28

    title: ClassVar[str] = "HoliTom, merging in the decoder"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.21334"
    stage: ClassVar[Stage] = "layer"
    streamable: ClassVar[Streamable] = "question"
    needs_query: ClassVar[bool] = True
    merges: ClassVar[bool] = True
    when: ClassVar[str] = "Behind HoliTom, when the question is known before the video is watched."

    def cuts(self, layers: int) -> dict[int, float]:
        return {max(round(self.after * layers) - 1, 0): self.keep}

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("last_attention", HERE),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        at = top(signals["last_attention", HERE], self.count(signals.total))
        group, weights = fold(tokens.x, at)
        return tokens.merge(group, at, weights)
