"""The baseline that looks at nothing: evenly spaced tokens of each frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from videollm_mod.depth.expert import uniform_places
from videollm_mod.reductions.base import Reduction, Signals, Tokens


@dataclass
class Uniform(Reduction):
    """Keeps the middle of each of k equal stretches of the raster order."""

    keep: float = 0.25

    title: ClassVar[str] = "uniform"
    when: ClassVar[str] = "As the baseline that costs nothing: what does not beat it is not worth its price."

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        places = uniform_places(len(tokens), self.count(len(tokens)))
        return tokens.take(torch.tensor(places, device=tokens.x.device))
