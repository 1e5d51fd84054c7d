"""AIM: merge alike cells of a frame before the decoder, then prune by page rank within it (arXiv 2412.03248)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from videollm_mod.depth.plan import keep_count
from videollm_mod.reductions.base import HERE, Reduction, Signals, Stage, Tokens, ascending


def merge_pass(x: Tensor, removed: int) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of token merging (ToMe, arXiv 2210.09461): (n, d) -> n - removed tokens, in the order of AIM.

    Tokens 0, 2, 4, .. are sources, 1, 3, 5, .. destinations. Each source has its most similar destination, and the
    `removed` sources most similar to theirs are averaged in, the destination included. Returns the new x, the group of
    each token, (n,), and each group's place, (n - removed,): first the unmerged sources, the most similar first, then
    all destinations. removed is at most n // 2.
    """
    unit = normalize(x, dim=-1)
    source, destination = (torch.arange(first, len(x), 2, device=x.device) for first in (0, 1))
    similar, best = (unit[::2] @ unit[1::2].T).max(1)
    order = similar.sort(descending=True, stable=True).indices
    gone, stay = order[:removed], order[removed:]
    group = torch.empty(len(x), dtype=torch.long, device=x.device)
    group[source[stay]] = torch.arange(len(stay), device=x.device)
    group[destination] = len(stay) + torch.arange(len(destination), device=x.device)
    group[source[gone]] = len(stay) + best[gone]
    at = torch.cat([source[stay], destination])
    total = x.new_zeros(len(at), x.shape[1]).index_add(0, group, x)
    return total / torch.bincount(group)[:, None], group, at


@dataclass
class AIM(Reduction):
    """Merging: passes that halve a frame's tokens, until `keep` of them are left.

    keep    0.25: 196 to 98 to 49. With other shares the last pass removes less than half.
    As in theirs, sizes are not counted between passes: a token merged twice is a mean of means. Theirs puts unmerged
    tokens in front of the merged ones; here the raster order comes back after the last pass.
    """

    keep: float = 0.25

    title: ClassVar[str] = "AIM, merging"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.03248"
    merges: ClassVar[bool] = True
    when: ClassVar[str] = "When what is lost should at least be averaged in, and the tower's attention is out of reach."

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        n, k = len(tokens), self.count(len(tokens))
        if n == k:
            return tokens
        x, group, at = tokens.x, torch.arange(n, device=tokens.x.device), torch.arange(n, device=tokens.x.device)
        weights = torch.ones(n, dtype=torch.double, device=x.device)
        while len(x) > k:
            x, joined, place = merge_pass(x, min(len(x) // 2, len(x) - k))
            weights = weights / torch.bincount(joined)[joined[group]]
            group, at = joined[group], at[place]
        group, at = ascending(group, at)
        return tokens.merge(group, at, weights)


def importance(logits: Tensor, temperature: float = 0.1, rounds: int = 5) -> Tensor:
    """Page rank of tokens: attention logits (heads, n, n), masked ones -inf -> (n,).

    `rounds` steps of a walk along softmax(logits / temperature) from the uniform distribution, undamped; then the root
    of the mean of squares over heads.
    """
    walk = (logits.float() / temperature).softmax(-1)
    at = walk.new_full((len(walk), 1, walk.shape[-1]), 1 / walk.shape[-1])
    for _ in range(rounds):
        at = at @ walk
    return at[:, 0].square().mean(0).sqrt()


@dataclass
class AIMPrune(Reduction):
    """Pruning: from the middle of the decoder on, layer by layer fewer tokens, those of highest page rank.

    keep          share left in the end. The authors' schedule goes to 0: at least one is left here.
    first, last   shares of the layers between which it falls from 1, in even steps: 14 and 22 of 28.
    temperature, rounds    of the page rank: 0.1 and 5.
    Theirs ranks by the attention of the whole sequence, the question included, and lets dropped tokens walk on; here
    each frame by itself, among those that are left: no question and no later frame is needed. Theirs rounds down.
    """

    keep: float = 0.125
    first: float = 0.5
    last: float = 22 / 28
    temperature: float = 0.1
    rounds: int = 5

    title: ClassVar[str] = "AIM, pruning"
    paper: ClassVar[str] = "https://arxiv.org/abs/2412.03248"
    stage: ClassVar[Stage] = "layer"
    when: ClassVar[str] = "Behind its merging, for the KV cache of the upper layers."

    def cuts(self, layers: int) -> dict[int, float]:
        return schedule(layers, self.first, self.last, self.keep)

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("queries", HERE), ("keys", HERE))

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        queries, keys = signals["queries", HERE].transpose(0, 1), signals["keys", HERE].transpose(0, 1)  # (heads, n, e)
        logits = queries @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5
        later = torch.ones(len(tokens), len(tokens), dtype=torch.bool, device=keys.device).triu(1)
        rank = importance(logits.masked_fill(later, -torch.inf), self.temperature, self.rounds)
        share = self.cuts(signals.layers)[signals.layer]
        return tokens.top(rank, keep_count(share, signals.total))


def schedule(layers: int, first: float, last: float, end: float) -> dict[int, float]:
    """Behind which layers to cut: even steps from 1 to `end` between two shares of the layers.

    28 layers, 14 / 28 to 22 / 28, to 0: 0.875 behind layer 14, .., 0 behind layer 21, as AIM's code has it.
    """
    start = min(round(first * layers), max(layers - 2, 0))  # behind the last layer it would be of no use
    stop = max(round(last * layers), start + 1)
    return {layer: 1 - (1 - end) * (layer - start + 1) / (stop - start) for layer in range(start, stop) if end < 1}
