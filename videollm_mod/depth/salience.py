"""How an expert learns which tokens matter to a layer: by how much each moves the loss, whichever way. Ours.

A gate's gradient says whether the loss falls if a token counts for a little more. In a model that has learned, it is as
often one as the other: the model's own weights have made it nothing on average, for the tokens that matter as well. But
tokens that matter move the loss far, and the others do not: of a frame's tokens, those on things are told from the
rest by the sign in 0.45 to 0.52 of pairs, by the size in 0.74 to 0.84 (runs/salience.py, routed layers). To leave a
token out is no small step; what it costs goes with the square of the slope, as in optimal brain damage (LeCun et al.
1989). And a token's own way through a layer is not all: others look at it there, so its factor is on both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def salience(scores: Tensor, frame: Tensor, frames: int, real: Tensor | None) -> Tensor:
    """Zeros, (batch, kept), to multiply what a kept token does by 1 plus them; in the backward pass scores learn.

    Let m be the size of the loss's slope in a token's factor. The softmax of the scores within a frame goes towards the
    tokens' shares of m, each frame weighing as much as its m: the gradient of a score is softmax(scores) sum(m) - m.
    Frames that keep a single token have nothing to compare it with, and are compared with one another, row by row.

    scores: (batch, kept); frame: (batch, kept) int64 in 0..frames - 1, 0 being text, which learns nothing; real:
    (batch, kept) bool, what is no padding, or None if there is none.
    """
    counted = frame > 0 if real is None else (frame > 0) & real
    sizes = frame.new_zeros(frames).index_add(0, frame.flatten(), counted.flatten().to(frame.dtype))
    rows = torch.arange(frames, frames + len(frame), device=frame.device)[:, None]
    group = torch.where(sizes[frame] == 1, rows, frame)
    zeros: Tensor = _Salience.apply(scores, group, frames + len(frame), counted)  # type: ignore[no-untyped-call]
    return zeros.masked_fill(~counted, 0.0)


class _Salience(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, group: Tensor, groups: int, counted: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(scores, group, counted)
        ctx.groups = groups
        return torch.zeros_like(scores)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        scores, group, counted = ctx.saved_tensors
        flat = group.flatten()
        highest = scores.new_full((ctx.groups,), -torch.inf).scatter_reduce(0, flat, scores.flatten(), "amax")
        size = slope.to(scores.dtype).abs() * counted
        rise = (scores - highest[group]).exp() * counted
        sizes, rises = (scores.new_zeros(ctx.groups).index_add(0, flat, part.flatten()) for part in (size, rise))
        return rise / rises[group].clamp(min=1e-30) * sizes[group] - size, None, None, None
