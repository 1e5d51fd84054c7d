"""QuickVideo's group-wise prefill: of each layer's new keys only those of small norm stay (arXiv 2505.16175).

Norms do not change under the rotary embedding, so this needs nothing but the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Stage, Tokens, top
from videollm_mod.types import InputError


def smallest_keys(keys: Tensor, k: int) -> Tensor:
    """Which k keys have the smallest norm over all heads: (n, heads * head_dim) -> (k,) int64, ascending."""
    return top(-keys.float().norm(dim=-1), k)


@dataclass
class QuickVideo(Reduction):
    """In every layer, keeps the cache entries of a frame whose keys are short.

    keep      0.5.
    group     frames that are pruned together: theirs 16; 1 so that the cache never holds more than it must.
    decay     how the share changes from layer to layer: "none", "linear" (to nothing) or "exponential".
    factor    of "exponential": layer l keeps keep * factor ** l.
    """

    keep: float = 0.5
    group: int = 1
    decay: str = "none"
    factor: float = 0.9

    title: ClassVar[str] = "QuickVideo"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.16175"
    stage: ClassVar[Stage] = "cache"
    when: ClassVar[str] = (
        "To halve the cache of a long video: a step costs as ever, and the choice besides; what follows less."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in ("none", "linear", "exponential"):
            raise InputError(f"decay of QuickVideo is {self.decay!r}; take none, linear or exponential.")
        if self.group < 1:
            raise InputError(f"group of QuickVideo is {self.group}; give 1 frame or more.")

    def frames_at_once(self) -> int:
        return self.group

    def count_at(self, n: int, layer: int, layers: int) -> int:
        """How many of a frame's n entries layer `layer` of `layers` keeps; as the authors', but at least one."""
        k = self.count(n)
        if self.decay == "linear":
            k -= int(k * layer / max(layers, 1))
        elif self.decay == "exponential":
            k = int(k * self.factor**layer)
        return max(k, 1) if self.keep < 1 else n

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        return tokens.take(smallest_keys(tokens.x, self.count_at(len(tokens), signals.layer, signals.layers)))
