"""Who goes through a layer: the LayerExpert's score, its baselines, and the choice of k tokens per frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from videollm_mod.depth.layout import FrameGroup, FrameLayout
from videollm_mod.depth.plan import DepthPlan, keep_count


class LayerExpert(nn.Module):
    """s = w·x + b for every token of a layer's input (VideoLLM-MoD, arXiv 2408.16730, section 3.2).

    Scores are computed in float32 whatever the model's dtype: in bf16 half of the tokens would tie.
    """

    def __init__(self, width: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, width, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small scores around zero: a random but not an arbitrary strong opinion."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., width) -> (...) float32 (float64 for a float64 model)."""
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        return nn.functional.linear(hidden.to(dtype), self.weight.to(dtype), self.bias.to(dtype)).squeeze(-1)


def uniform_places(tokens: int, k: int) -> list[int]:
    """k evenly spaced places out of `tokens`: the middle of each of k equal parts."""
    return [(2 * i + 1) * tokens // (2 * k) for i in range(k)]


def random_scores(number: Tensor, tokens: int, layer: int, seed: int) -> Tensor:
    """A pseudo-random int64 score for each token of each frame: (frames,) numbers -> (frames, tokens).

    A counter-based hash (the finaliser of splitmix64, Steele et al. 2014) instead of a generator, so that a frame gets
    the same set whether it is streamed or part of one pass, alone or in a batch.
    """
    place = torch.arange(tokens, device=number.device)
    salt = (layer * 0x9E3779B97F4A7C15 + seed * 0xD1342543DE82EF95) & 0x7FFFFFFFFFFFFFFF
    x = number[:, None] * 1_000_003 + place + salt
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        # >> copies the sign on int64; masking makes it the logical shift of the original
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x


def choose(group: FrameGroup, k: int, scores: Tensor | None, plan: DepthPlan, layer: int) -> Tensor:
    """The k places kept in each frame of a group: (frames, k) int64, ascending.

    scores: (batch * tokens,), needed by the scorers `learned` and `given` only. The k highest win; ties go to the lower
    index (hence the stable sort: topk leaves ties open).
    """
    frames, tokens = group.tokens.shape
    if plan.scorer in ("learned", "given"):
        assert scores is not None
        rank = scores[group.tokens]  # (frames, tokens)
    elif plan.scorer == "random":
        rank = random_scores(group.number, tokens, layer, plan.seed)
    else:
        rank = torch.zeros(frames, tokens, device=group.tokens.device)
        rank[:, uniform_places(tokens, k)] = 1
    if plan.keep_last:
        rank = rank.clone()
        rank[:, -1] = torch.inf if rank.is_floating_point() else torch.iinfo(rank.dtype).max
    order = rank.detach().sort(dim=-1, descending=True, stable=True).indices
    return order[:, :k].sort(dim=-1).values


def kept_tokens(layout: FrameLayout, ratio: float, scores: Tensor | None, plan: DepthPlan, layer: int) -> Tensor:
    """Flattened positions of all tokens that go through the layer, text included: (kept,) int64, ascending."""
    if not layout.groups:
        return layout.text
    parts = [layout.text]
    for group in layout.groups:
        k = keep_count(ratio, group.tokens.shape[1])
        if k == group.tokens.shape[1]:
            parts.append(group.tokens.flatten())
        elif k > 0:
            parts.append(group.tokens.gather(1, choose(group, k, scores, plan, layer)).flatten())
    return torch.cat(parts).sort().values
