"""FlowCut: the tower prunes itself as information flows to CLS, at every second block (arXiv 2505.19536).

The half in the encoder, which needs no question. Its second half, for pictures cut into crops, ranks by the last token
of the instruction in the language model and is not here: a stream's instruction comes later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import HERE, Reduction, Signals, Tokens
from videollm_mod.types import InputError


def flow_scores(attention: Tensor, values: Tensor, cls_value: Tensor) -> Tensor:
    """How much a block carries from each cell to CLS, (N,).

    attention: (N,) of CLS to each, mean over heads. values: (N, heads, e); cls_value: (heads, e). The sum of two
    shares, attention and likeness of values (softmax of v_cls . v over all tokens, CLS too, mean over heads), each
    normalised over the cells; times the L1 norm of the value's mean over heads.
    """
    logits = torch.einsum("he,nhe->hn", cls_value, values)
    own = cls_value.square().sum(-1, keepdim=True)  # (heads, 1)
    likeness = torch.cat([own, logits], 1).softmax(1)[:, 1:].mean(0)
    return (attention / attention.sum() + likeness / likeness.sum()) * values.mean(1).abs().sum(-1)


def to_prune(attention: Tensor, now: int, target: int, left: int) -> int:
    """How many of `now` tokens go when `left` blocks are left to prune behind: the less focused CLS is, the fewer."""
    share = attention / attention.sum()
    spread = float(-torch.special.xlogy(share, share).sum()) / math.log(len(share)) if len(share) > 1 else 0.0
    return round((now - target) / math.sqrt(left) * (1 - spread**2))


@dataclass
class FlowCut(Reduction):
    """Prunes between the tower's blocks, down to k cells behind the third-last.

    keep      1/3, 2/9 or 1/9 of 576 in the paper.
    momentum  of the running score from block to block: half of it is the past.
    A tower without CLS (SigLIP) has the mean over all queries and values in its place, as the authors do in Qwen2-VL
    (there without the likeness of values).
    """

    keep: float = 1 / 9
    momentum: float = 0.5

    title: ClassVar[str] = "FlowCut"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.19536"
    stage: ClassVar = "tower"
    when: ClassVar[str] = "When a large tower is what costs: cells that go early are not computed further."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("cls_attention", HERE), ("tower_values", HERE), ("tower_cls_values", HERE))

    def cuts(self, layers: int) -> dict[int, float]:
        """All blocks up to the third-last: every one scores, every second one prunes, no one knows how much before."""
        if layers < 3:
            raise InputError(f"FlowCut prunes behind a tower's third-last block; this one has {layers}, give it 3.")
        return {layer: self.keep if layer == layers - 3 else 1.0 for layer in range(layers - 2)}

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        k, now = self.count(signals.total), tokens.count
        if now <= k:
            return tokens
        attention = signals["cls_attention", HERE]
        score = flow_scores(attention, signals["tower_values", HERE], signals["tower_cls_values", HERE])
        if "score" in signals.memory:
            score = self.momentum * signals.memory["score"] + (1 - self.momentum) * score
        left = signals.layers - 3 - signals.layer
        if left % 2 == 0:
            stay = tokens.highest(score, max(now - to_prune(attention, now, k, left), k) if left else k)
            score, tokens = score[stay], tokens.take(stay)
        signals.memory["score"] = score
        return tokens
