"""A causal form of HoliTom (arXiv 2505.21334), ours: what stands still is not sent again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import cosine_similarity

from videollm_mod.reductions.base import Reduction, Signals, Tokens


@dataclass
class HoliTomCausal(Reduction):
    """For streams: a segment is extended frame by frame for as long as that saves more; still positions are not sent.

    What stands still is told by the tokens of the segment's first frame, which cannot be changed any more. Of the
    others, at most a frame's share, those of most received attention stay; at least one. Fields as in `HoliTom`.
    """

    keep: float = 0.25
    alike: float = 0.8
    layer: int = -1

    title: ClassVar[str] = "HoliTom, causal form"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.21334"
    exact: ClassVar[bool] = False
    when: ClassVar[str] = "For live fixed cameras: a scene in which nothing moves costs next to nothing."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("received_attention", self.layer),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        self.refuse_gaps(tokens)
        k, past = self.count(len(tokens)), signals.memory.get("holitom")
        if k == len(tokens):
            return tokens
        still, length = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.x.device), 0
        if past is not None:
            before, stood, seen = past  # the last frame, who has stood still in its segment, frames behind its first
            now = stood & (cosine_similarity(before, tokens.x, dim=-1) > self.alike)
            if int(now.sum()) * (seen + 1) > int(stood.sum()) * seen:
                still, length = now, seen + 1
        everyone = torch.ones_like(still)
        signals.memory["holitom"] = (tokens.x, still if length else everyone, length)
        attention = signals["received_attention", self.layer]
        moving = int((~still).sum())
        return tokens.top(attention.masked_fill(still, -torch.inf), max(min(k, moving), 1))
