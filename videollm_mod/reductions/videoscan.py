"""VideoScan: a frame leaves one carrier in the cache, the mean of its tokens, put last (arXiv 2503.09387).

Trained for it by its authors. The bound on carriers in memory is a policy of the stream (stream/policies/).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Tokens


def attended(queries: Tensor, keys: Tensor) -> Tensor:
    """Head-mean attention of the last of a frame's tokens to all of them: (n, heads, e) each -> (n,)."""
    logits = torch.einsum("he,nhe->nh", queries[-1], keys) / keys.shape[-1] ** 0.5
    return logits.float().softmax(0).mean(1)


def nearest_pair(carriers: Tensor) -> int:
    """Which carrier to forget when memory is full: of the two neighbours most alike the earlier. (m, d) -> 0..m-2."""
    return int(cosine_similarity(carriers[:-1], carriers[1:], dim=-1).argmax())


@dataclass
class VideoScan(Reduction):
    """A frame goes through the decoder whole; in every layer's cache its carrier stays, and what that attends to most.

    keep   share of the frame's entries left in each layer, the carrier among them: theirs is the carrier alone (0.004
           of up to 250 cells), and in the extended form 16 more of 210.
    Where a frame's last token decides whether to speak, that is the carrier, and the cell before it says what stays.
    Each head shares out its attention among the frame's tokens; theirs among all, so that a head which looks at earlier
    carriers counts for less.
    The carrier stands in the place of the frame's last cell (theirs behind it), so that a frame is as long as ever.
    Of more than 64 carriers theirs forgets the earlier of the two neighbours most alike (`nearest_pair`); here that is
    for the stream's policy, and `carrier` forgets the oldest.
    """

    keep: float = 0.004

    title: ClassVar[str] = "VideoScan"
    paper: ClassVar[str] = "https://arxiv.org/abs/2503.09387"
    stage: ClassVar[Stage] = "cache"
    trained: ClassVar[bool] = True
    when: ClassVar[str] = "For endless streams, with a model trained for it: the cache grows by a token or two a frame."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("queries", HERE), ("keys", HERE))

    def prepare(self, tokens: Tokens) -> Tokens:
        return tokens if self.keep == 1 else tokens.mixed(len(tokens) - 1, torch.ones_like(tokens.sizes))

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        attention = attended(signals["queries", HERE], signals["keys", HERE])
        attention[-1] = torch.inf
        return tokens.top(attention, self.count(len(tokens)))
