"""HoliTom: what stands still through a stretch of video becomes one token, then the rest is thinned (arXiv 2505.21334).

As published, over the whole video. holitom_causal.py is a form for streams, holitom_merge.py its half in the decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from videollm_mod.reductions.base import Reduction, Signals, Streamable, Tokens, ascending, top


def gains(still: Tensor) -> Tensor:
    """Tokens saved by making frames s..e one segment: (frames - 1, n) bool, who is alike in t and t + 1 -> (s, e).

    gain(s, e) = (e - s) * number of positions alike in all neighbours from s to e. At e, a position is alike since some
    frame; how many since s or earlier is a running sum over a histogram of these.
    """
    frames, n = len(still) + 1, still.shape[1]
    changed = torch.where(still, 0, torch.arange(1, frames, device=still.device)[:, None]).cummax(0).values
    since = torch.cat([changed.new_zeros(1, n), changed])  # (frames, n): alike from there on
    histogram = since.new_zeros(frames, frames).scatter_add(1, since, torch.ones_like(since))
    place = torch.arange(frames, device=still.device)
    return histogram.cumsum(1).T * (place - place[:, None]).clamp(min=0)


def segments(gain: Tensor, longest: int = 1024) -> list[tuple[int, int]]:
    """The partition of the frames into segments (first, last) with the highest total gain; ties: shorter last ones."""
    table, best, begins = gain.tolist(), [0], []
    for end in range(len(table)):
        total, begin = best[end], end
        for start in range(end - 1, max(end - longest, -1), -1):
            if best[start] + table[start][end] > total:
                total, begin = best[start] + table[start][end], start
        best.append(total)
        begins.append(begin)
    found, end = [], len(table) - 1
    while end >= 0:
        found.append((begins[end], end))
        end = begins[end] - 1
    return found[::-1]


def centres(x: Tensor, k: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """DPC-KNN: (n, d) -> the k cluster centres, ascending, and for each token the number of its centre, (n,).

    density = exp(-mean squared distance to the nearest, itself included); a centre is dense, and far from what is
    denser. Ties go to the lower index: the authors add noise of 1e-6 instead.
    """
    distance = torch.cdist(x.float(), x.float(), compute_mode="donot_use_mm_for_euclid_dist") / x.shape[1] ** 0.5
    nearest = distance.topk(min(neighbours, k), largest=False).values  # (n, neighbours)
    density = (-nearest.square().mean(1)).exp()
    place = torch.arange(len(x), device=x.device)
    tied = (density[None, :] == density[:, None]) & (place[None, :] < place[:, None])
    denser = (density[None, :] > density[:, None]) | tied  # (n, n): column is denser than row
    apart = distance.masked_fill(~denser, float(distance.max())).min(1).values
    centre = top(apart * density, k)
    to = distance[:, centre].argmin(1)
    to[centre] = torch.arange(k, device=x.device)
    return centre, to


def shares(to: Tensor, centre: Tensor, beta: float) -> Tensor:
    """Weight of each token in its cluster's mean: the centre `beta`, its m members (1 - beta) / m; alone, 1."""
    members = torch.bincount(to, minlength=len(centre)) - 1  # (k,)
    weights = (1 - beta) / members.clamp(min=1)[to].double()
    weights[centre] = torch.where(members > 0, beta, 1.0).to(weights)
    return weights


def allot(sizes: list[int], budget: int) -> list[int]:
    """Shares a budget among parts by their sizes, so that it comes out: running totals are rounded, not the parts."""
    total, ends = max(sum(sizes), 1), torch.tensor([0, *sizes]).cumsum(0)
    return [int(k) for k in torch.minimum((2 * ends * budget + total) // (2 * total), ends).diff()]


@dataclass
class HoliTom(Reduction):
    """Over the whole video: segments by dynamic programming, still positions averaged over time, then clusters.

    keep        the authors' 0.10 with alike 0.65, and 0.15 to 0.25 with alike 0.80.
    alike       cosine similarity to the next frame above which a position counts as still.
    beta        weight of a cluster's centre against the mean of its members.
    clustered   share of a frame's moving tokens that are clusters, the rest being those of most attention; theirs 0.
    neighbours  of DPC-KNN.
    longest     frames in a segment.
    layer       of the tower, whose received attention ranks moving tokens: the last one used.
    Theirs rounds up in each frame and to the nearest in each segment; here the total is what `keep` says. Of tokens
    equally dense the lower index leads; theirs adds noise of 1e-6. One case in 200 differs: a tie within rounding.
    """

    keep: float = 0.25
    alike: float = 0.8
    beta: float = 0.6
    clustered: float = 0.0
    neighbours: int = 7
    longest: int = 1024
    layer: int = -1

    title: ClassVar[str] = "HoliTom"
    paper: ClassVar[str] = "https://arxiv.org/abs/2505.21334"
    streamable: ClassVar[Streamable] = "whole"
    why_not: ClassVar[str] = "it cuts the whole video into segments; HoliTomCausal does without"
    merges: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    when: ClassVar[str] = "For recorded video of fixed cameras, where much stands still for long."

    @property
    def needs(self) -> tuple[tuple[str, int], ...]:
        return (("received_attention", self.layer),)

    def causal(self) -> Reduction:
        from videollm_mod.reductions.holitom_causal import HoliTomCausal

        return HoliTomCausal(self.keep, self.alike, self.layer)

    def reduce(self, tokens: Tokens, signals: Signals) -> Tokens:
        self.refuse_gaps(tokens)
        frames = int(tokens.frame.unique().numel())
        n, budget = len(tokens) // frames, self.count(len(tokens))
        if budget == len(tokens):
            return tokens
        x = tokens.x.view(frames, n, -1)
        still = cosine_similarity(x[:-1], x[1:], dim=-1) > self.alike  # (frames - 1, n)
        attention = signals["received_attention", self.layer].view(frames, n)
        parts: list[tuple[bool, slice, Tensor]] = []  # still ones of a segment, then the others of each of its frames
        for first, last in segments(gains(still), self.longest):
            stands = still[first:last].all(0) if last > first else torch.zeros(n, dtype=torch.bool, device=x.device)
            parts.append((True, slice(first, last + 1), stands.nonzero()[:, 0]))
            parts += [(False, slice(t, t + 1), (~stands).nonzero()[:, 0]) for t in range(first, last + 1)]
        group = torch.full((frames, n), -1, device=x.device)
        weights, at = torch.zeros(frames, n, dtype=torch.double, device=x.device), list[int]()
        for (stands_still, when, where), k in zip(parts, allot([len(where) for *_, where in parts], budget)):
            kept = k if stands_still else round(k * self.clustered)
            ranked = attention[when.start, where].sort(descending=True, stable=True).indices[: k - kept].sort().values
            group[when.start, where[ranked]] = torch.arange(len(at), len(at) + len(ranked), device=x.device)
            weights[when.start, where[ranked]] = 1.0
            at += (when.start * n + where[ranked]).tolist()
            if kept:
                where = where[torch.ones_like(where, dtype=torch.bool).index_fill(0, ranked, False)]
                centre, to = centres(x[when, where].mean(0), kept, self.neighbours)
                group[when, where] = len(at) + to
                weights[when, where] = shares(to, centre, self.beta) / (when.stop - when.start)
                at += (when.start * n + where[centre]).tolist()
        return tokens.merge(*ascending(group.flatten(), torch.tensor(at, device=x.device)), weights.flatten())
