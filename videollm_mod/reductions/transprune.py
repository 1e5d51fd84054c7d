"""TransPrune: tokens that the decoder's layers change much, in length and direction, stay (arXiv 2507.20630)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from videollm_mod.depth.plan import keep_count
from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Streamable, Tokens, top

HALVES = tuple((name, HERE) for name in ("attention_in", "attention_out", "mlp_in", "mlp_out"))


def transition(before: Tensor, after: Tensor) -> Tensor:
    """How much half a layer changes each token: (n, d) in and out -> (n,).

    |out| / |in| * exp(1 - cos) / sum over the tokens of exp(1 - cos). Behind a depth plan, a token that skipped the
    layer has zeros: nothing has changed it, 0, and it counts in no sum.
    """
    length, tiny = before.norm(dim=-1), torch.finfo(before.dtype).tiny
    turned = (1 - cosine_similarity(before, after, dim=-1)).exp() * (length > 0)
    return after.norm(dim=-1) / length.clamp(min=tiny) * turned / turned.sum().clamp(min=tiny)


@dataclass
class TransPrune(Reduction):
    """Three cuts early in the decoder, by what the layers before them made of a token, and by what text looks at.

    keep       share left behind the last cut, 0.125; the cuts before then leave 0.875 and 0.625.
    first, last    shares of the layers: transitions of the 7th to the 12th of 32 add up, and the cuts are behind the
               7th, the 9th and the 12th.
    In shallow decoders two of the cuts fall together. Behind a depth plan, tokens that no layer has changed yet are all
    alike, and the first of them stay.
    Theirs takes the attention from the layer that follows the cut, sums exp over text as well, rounds down, and numbers
    positions anew.
    """

    keep: float = 0.125
    first: float = 7 / 32
    last: float = 12 / 32

    title: ClassVar[str] = "TransPrune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2507.20630"
    stage: ClassVar[Stage] = "layer"
    streamable: ClassVar[Streamable] = "question"
    needs_query: ClassVar[bool] = True
    when: ClassVar[str] = "In deep decoders, whose first layers are few, when the tower's attention is out of reach."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (*HALVES, ("text_attention", HERE))

    def cuts(self, layers: int) -> dict[int, float]:
        """Every layer that is looked at; those behind which nothing is cut keep what is left."""
        if self.keep == 1:
            return {}
        first, last = (max(round(share * layers) - 1, 0) for share in (self.first, self.last))
        middle = round(first + 0.4 * (last - first))  # the 9th of the 7th to the 12th
        steps = {first: 1 / 7, middle: 3 / 7, last: 1.0}
        passed, shares = 0.0, {}
        for layer in range(first, last + 1):
            passed = steps.get(layer, passed)
            shares[layer] = 1 - (1 - self.keep) * passed
        return shares

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        change = transition(signals["attention_in", HERE], signals["attention_out", HERE])
        change = change + transition(signals["mlp_in", HERE], signals["mlp_out", HERE])
        place = (tokens.positions[:, 1] << 32) + tokens.positions[:, 2]
        if "transprune" in signals.memory:  # of the layers before, of those that are left (others may cut in between)
            before, where = signals.memory["transprune"]
            change = change + before[torch.searchsorted(where, place)]
        score = change / change.sum().clamp(min=torch.finfo(change.dtype).tiny)  # nobody went through: all alike
        asked = signals.values.get(("text_attention", HERE), torch.zeros_like(score))
        if float(asked.detach().sum()) > 0:  # some text has come
            score = score + asked / asked.sum()
        share = self.cuts(signals.layers)[signals.layer]
        stay = top(score, keep_count(share, signals.total))
        signals.memory["transprune"] = (change[stay], place[stay])
        return tokens.take(stay)


@dataclass
class TransPruneCausal(TransPrune):
    """By the layers' changes alone, which needs no text: the half of TransPrune that a stream can have unasked."""

    title: ClassVar[str] = "TransPrune, changes alone"
    streamable: ClassVar[Streamable] = "causal"
    needs_query: ClassVar[bool] = False
    when: ClassVar[str] = "For streams, as TransPrune."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return HALVES
