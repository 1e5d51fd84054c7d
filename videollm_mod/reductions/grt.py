"""Gated Residual Tokenization: of a frame, the cells whose pixels have changed (Dense Video Understanding,
arXiv 2509.14199).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import Reduction, Signals, Stage, Tokens
from videollm_mod.types import InputError


def dissimilarity(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM of each cell: pixels (n, p) and (n, p) -> (n,), within [0, 2].

    Over the whole cell at once; c1 = (0.01 R)**2, c2 = (0.03 R)**2, R the larger of the two's ranges, at least 1.
    """
    mean_a, mean_b = a.mean(-1), b.mean(-1)
    off_a, off_b = a - mean_a[:, None], b - mean_b[:, None]
    span = torch.maximum(a.amax(-1) - a.amin(-1), b.amax(-1) - b.amin(-1)).clamp(min=1)
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    light = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    form = (2 * (off_a * off_b).mean(-1) + c2) / ((off_a**2).mean(-1) + (off_b**2).mean(-1) + c2)
    return (1 - light * form).clamp(0, 2)


@dataclass
class GRT(Reduction):
    """Keeps the cells that differ most from what was last seen there.

    keep       0.5, at least `at_least` tokens: theirs 16, here 1, so that methods are compared at equal counts.
    metric     "ssim" (1 - SSIM) or "l2" (norm of the difference), of pixels scaled to -1..1.
    threshold  above it a cell has changed, and what it shows now is what later frames are compared with, so that slow
               drift shows in the end: 0.01 for ssim, 0.3 for l2, of cells of 14 x 14 pixels.
    refresh    every so many frames all cells count as changed; 0: never.
    key        a frame of which a larger share has changed is a key frame, like the first: its cells are ranked by their
               contrast (theirs by the norm of their features, which only the tower knows).
    Theirs saves the patch embedding of unchanged cells, too, and merges key frames that the language model's head can
    hardly tell apart: a stream cannot take back what it has seen, so that is left out.
    """

    keep: float = 0.5
    metric: str = "ssim"
    threshold: float = 0.01
    refresh: int = 0
    key: float = 0.8
    at_least: int = 1

    title: ClassVar[str] = "Gated Residual Tokenization"
    paper: ClassVar[str] = "https://arxiv.org/abs/2509.14199"
    stage: ClassVar[Stage] = "frames"
    when: ClassVar[str] = (
        "For dense frames of a fixed camera: it looks at pixels alone; the tower still sees all of them."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.metric not in ("ssim", "l2"):
            raise InputError(f"metric of GRT is {self.metric!r}; take ssim or l2.")

    def count(self, n: int) -> int:
        return min(max(super().count(n), self.at_least), n)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        self.refuse_gaps(tokens)
        pixels = 2 * tokens.x - 1
        reference, frames = signals.memory.get("grt", (None, 0))
        fresh = reference is None or (self.refresh > 0 and frames % self.refresh == 0)
        if reference is None or fresh:
            reference, change = pixels, torch.ones_like(pixels[:, 0])
            changed = change > 0
        else:
            change = dissimilarity(pixels, reference) if self.metric == "ssim" else (pixels - reference).norm(dim=-1)
            changed = change > self.threshold
        signals.memory["grt"] = (torch.where(changed[:, None], pixels, reference), frames + 1)
        if float(changed.float().mean()) > self.key:
            change = pixels.std(-1, correction=0)
        return tokens.top(change, self.count(len(tokens)))
