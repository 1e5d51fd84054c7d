"""ToDRE: tokens that differ from one another, and later none at all if nobody looks at them (arXiv 2505.18757, v2).

No code is published. Read from the paper: the greedy choice, the pivot, the layer, the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Streamable, Tokens


def max_sum(x: Tensor, k: int, pivot: int) -> Tensor:
    """Greedy max-sum diversification: (n, d) -> the k places chosen, (k,) int64, ascending.

    From `pivot` on, each next token is the one whose cosine similarities to those chosen add up to the least. Ties go
    to the lower index. O(k n d).
    """
    unit = torch.nn.functional.normalize(x, dim=-1)
    chosen, total = [pivot], unit @ unit[pivot]  # (n,) similarity to all chosen so far
    total[pivot] = torch.inf
    while len(chosen) < k:
        chosen.append(int(total.argmin()))
        total = total + unit @ unit[chosen[-1]]
        total[chosen[-1]] = torch.inf
    return torch.tensor(sorted(chosen), device=x.device)


@dataclass
class ToDRE(Reduction):
    """Stage 1: of each frame, the cell that CLS attends to most and those most unlike it and each other.

    keep     the authors keep 0.1 and 0.25. They choose among all frames of a video at once; here each frame by itself.
    layer    of the tower, whose CLS attention names the pivot: the last one.
    No code is published; read from the paper's second version.
    """

    keep: float = 0.1
    layer: int = -1

    title: ClassVar[str] = "ToDRE"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.18757"
    when: ClassVar[str] = "When a frame shows many different things and it is not known what will be asked."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("cls_attention", self.layer),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        pivot = int(signals["cls_attention", self.layer].argmax())
        return tokens.take(max_sum(tokens.x, self.count(len(tokens)), pivot))


@dataclass
class ToDREExit(Reduction):
    """Stage 2: late in the decoder, a frame that text hardly attends to any more leaves it.

    keep        what is left of such a frame, those with most attention from text; the authors leave nothing, this at
                least one token. A frame that text still attends to stays whole.
    after       share of the layers behind which that is decided: 7/8.
    threshold   the share of the attention of text that must lie on the frame, 0.10. The authors look at the whole video
                and ask the same of the attention of vision tokens to text, which in a stream stands behind them.
    No code is published; read from the paper's second version.
    """

    keep: float = 0.01
    after: float = 0.875
    threshold: float = 0.10

    title: ClassVar[str] = "ToDRE, stage 2"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.18757"
    stage: ClassVar[Stage] = "layer"
    streamable: ClassVar[Streamable] = "question"
    needs_query: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    when: ClassVar[str] = "Behind any other, for the KV cache of the last layers while long answers are made."

    def count(self, n: int) -> int:
        return n  # at most: whether a frame leaves depends on the question

    def cuts(self, layers: int) -> dict[int, float]:
        return {max(int(self.after * layers) - 1, 0): 1.0} if self.keep < 1 else {}

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("text_attention", HERE),)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        attention = signals["text_attention", HERE]
        if not 0 < float(attention.sum()) < self.threshold:  # 0: no text has come yet
            return tokens
        return tokens.top(attention, super().count(len(tokens)))
