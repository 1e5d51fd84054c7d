"""TransPrune: tokens that the decoder's layers change much, in length and direction, stay (arXiv 2507.20630)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity

from videollm_mod.reductions.base import HERE, Reduction, Signals, Tokens, top


def transition(before: Tensor, after: Tensor) -> Tensor:
    """How much half a layer changes each token: (n, d) in and out -> (n,).

    |out| / |in| * exp(1 - cos) / sum over the tokens of exp(1 - cos).
    """
    turned = (1 - cosine_similarity(before, after, dim=-1)).exp()
    return after.norm(dim=-1) / before.norm(dim=-1) * turned / turned.sum()


@dataclass
class TransPrune(Reduction):
    """Three cuts early in the decoder, by what the layers before them made of a token, and by what text looks at.

    keep       share left behind the last cut, 0.125; the cuts before then leave 0.875 and 0.625.
    first, last    shares of the layers: transitions of the 7th to the 12th of 32 add up, and the cuts are behind the
               7th, the 9th and the 12th.
    attention  whether the attention of text counts, too, where there is text behind a frame.
    Theirs takes the attention from the layer that follows the cut, sums exp over text as well, and numbers positions
    anew.
    """

    keep: float = 0.125
    first: float = 7 / 32
    last: float = 12 / 32
    attention: bool = True

    title: ClassVar[str] = "TransPrune"
    paper: ClassVar[str] = "https://arxiv.org/abs/2507.20630"
    stage: ClassVar = "layer"
    when: ClassVar[str] = "When most of the decoder should be spared and attention maps are not to be had."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        halves = tuple((name, HERE) for name in ("attention_in", "attention_out", "mlp_in", "mlp_out"))
        return (*halves, ("text_attention", HERE)) if self.attention else halves

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
        frame, cuts = int(tokens.frame[0]), self.cuts(signals.layers)
        before: dict[int, Tensor] = signals.memory.get("transprune", {})  # frame -> (n,) of those that are left
        change = transition(signals["attention_in", HERE], signals["attention_out", HERE])
        change = change + transition(signals["mlp_in", HERE], signals["mlp_out", HERE])
        if frame in before:
            change = change + before[frame]
        score = change / change.sum()
        if self.attention and float(signals["text_attention", HERE].sum()) > 0:
            score = score + signals["text_attention", HERE] / signals["text_attention", HERE].sum()
        stay = top(score, min(max(int(round(cuts[signals.layer] * signals.total, 9)), 1), len(tokens)))
        left = {other: value for other, value in before.items() if other != frame}
        if signals.layer != max(cuts):
            left[frame] = change[stay]
        signals.memory["transprune"] = left
        return tokens.take(stay)
