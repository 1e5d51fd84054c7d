"""A routed decoder layer: a mix-in around the unchanged layer of Transformers that it is put in front of.

It gathers the kept tokens, runs the decoder layer, gates the vision tokens among them and scatters the result back
(VideoLLM-MoD, arXiv 2408.16730, section 3.2). What touches Transformers' internals is in this file, in decoder.py,
swap.py, families.py and step.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videollm_mod.depth.cache import RaggedLayer
from videollm_mod.depth.expert import LayerExpert, kept_tokens
from videollm_mod.depth.families import window_of
from videollm_mod.depth.layout import FrameLayout
from videollm_mod.depth.plan import DepthPlan
from videollm_mod.depth.salience import salience
from videollm_mod.depth.step import StepMask
from videollm_mod.types import InputError


def apply_gate(gate: str, x: Tensor, y: Tensor, s: Tensor) -> Tensor:
    """What the score does to a kept vision token, x -> y being the plain layer and s the token's score.

    x, y: (..., d); s: (..., 1). Written so that a gate that starts as the plain layer gives y to the bit.
    """
    if gate == "output":
        return s.sigmoid() * y
    if gate == "update":
        return x + s.sigmoid() * (y - x)
    if gate == "tanh":
        return y + 0.2 * s.tanh() * (y - x)
    if gate == "straight":  # forward y, backward as if y were x + (1 + sigma(s)) (y - x) with the 1 held fixed
        open_ = s.sigmoid()
        return y + (open_ - open_.detach()) * (y - x)
    if gate == "relative":  # the same, without what all scores have in common: that would only grow, and saturate
        return y + (s - s.detach()) * (y - x)
    return y


class DepthLayer(nn.Module):
    """Mix-in in front of a decoder layer's own class. Attributes are set by `apply_depth`."""

    depth_plan: DepthPlan
    depth_ratio: float | None  # None: an ordinary layer
    depth_index: int
    depth_norm: str | None  # the name of the decoder layer's own norm before its attention
    depth_expert: LayerExpert  # where the plan has experts
    self_attn: Any  # of the decoder layer's own

    def forward(self, hidden_states: Tensor, *args: Any, depth: FrameLayout | None = None, **kwargs: Any) -> Tensor:
        """hidden_states (batch, tokens, d) -> the same shape. `depth` comes from `DepthDecoder.forward`."""
        kept_out, scores_out = kwargs.pop("kept_out", None), kwargs.pop("scores_out", None)
        if depth is not None and depth.ordinal is not None:
            self._count_own_tokens(depth, kwargs)
        if depth is None or (self._keeps_all and not self._thin(depth, kwargs.get("past_key_values"))):
            if depth is not None and self.depth_ratio is not None:
                self._tell_all(hidden_states, depth, kept_out, scores_out)
            return super().forward(hidden_states, *args, **kwargs)
        if args:
            raise TypeError("a routed decoder layer takes everything but hidden_states by keyword")
        if self.depth_ratio is None:  # who goes through is told only where somebody asked for this very layer
            asked = kept_out is not None and self.depth_index in kept_out
            return self._routed(hidden_states, depth, 1.0, kept_out if asked else None, **kwargs)
        if scores_out is not None and self.depth_plan.has_experts:
            scores_out[self.depth_index] = self._score(hidden_states)
        return self._routed(hidden_states, depth, self.depth_ratio, kept_out, **kwargs)

    @property
    def _keeps_all(self) -> bool:
        """Whether the layer is the untouched model's: to the bit in a padded batch, too, whose padding it stores."""
        return self.depth_ratio is None or (self.depth_ratio == 1 and not self.depth_plan.gate_acts)

    def _tell_all(
        self,
        hidden: Tensor,
        depth: FrameLayout,
        kept_out: dict[int, Tensor] | None,
        scores_out: dict[int, Tensor] | None,
    ) -> None:
        """What a routed layer that keeps all has to tell: that it kept all, and how much each token scored."""
        if scores_out is not None and self.depth_plan.has_experts:
            scores_out[self.depth_index] = self._score(hidden)
        if kept_out is not None:
            kept = depth.vision.index_fill(0, depth.text, True)
            kept_out[self.depth_index] = kept.view(depth.batch, depth.tokens)

    def _thin(self, depth: FrameLayout, cache: Any) -> bool:
        """Whether fewer tokens are left in this step, or in this layer's cache, than have been seen: something dropped
        them, a reduction or a cache policy."""
        if depth.thinned or cache is None:
            return depth.thinned
        return not cache.layers[self.depth_index].complete

    def _count_own_tokens(self, depth: FrameLayout, kwargs: dict[str, Any]) -> None:
        """Exchange the mask of a sliding window that counts padding between a row's tokens, if the layer has one.

        Only Transformers' own 4-D mask of this step; what flash attention gets tells of padding by itself.
        """
        mask, window = kwargs.get("attention_mask"), window_of(self, self.self_attn.config)
        if window and isinstance(mask, Tensor) and mask.dim() == 4:
            kwargs["attention_mask"] = depth.window_mask(window, mask)

    def _score(self, hidden: Tensor) -> Tensor:
        """(..., d) -> the expert's scores (...)."""
        if self.depth_plan.reads == "norm":
            hidden = getattr(self, str(self.depth_norm))(hidden)
        scores: Tensor = self.depth_expert(hidden)
        return scores

    def _routed(
        self, hidden: Tensor, layout: FrameLayout, ratio: float, kept_out: dict[int, Tensor] | None, **kwargs: Any
    ) -> Tensor:
        """Gather, run, gate, scatter. The four ways in which a kept token is numbered, by example:

        tokens       7 seen before, then 6 in this step: a frame of 4 and 2 of text, frame_index [0 0 0 0 -1 -1]
        scores       .1 .9 .3 .8 of the frame, of which ratio 0.5 keeps the second and the fourth
        flat         [1 3 4 5]      in the flattened step, all rows behind one another (row 1 would begin at 6)
        padded       [[1 3 4 5]]    the same as a rectangle, a row of the batch a line, short rows padded
        place        [[1 3 4 5]]    within its own row
        slots        [[8 10 11 12]] in the whole sequence: place + 7; where the mask has its columns
        """
        batch, tokens, width = hidden.shape
        plan, shape = self.depth_plan, layout.shape(ratio)
        counts = list(shape.counts)
        scores = layout.given
        if plan.scorer == "learned" and 0 < ratio < 1 and layout.groups:
            with torch.no_grad():  # a choice has no gradient; the gate below scores the kept tokens again, with one
                scores = self._score(hidden).flatten()  # (batch * tokens,)
        flat = kept_tokens(layout, ratio, scores, plan, self.depth_index)  # (kept,) ascending
        if kept_out is not None:
            mask = torch.zeros(batch * tokens, dtype=torch.bool, device=hidden.device)
            kept_out[self.depth_index] = mask.index_fill_(0, flat, True).view(batch, tokens)
        padded = flat.view(batch, -1) if shape.source is None else flat[shape.source]  # (batch, widest row)
        starts = torch.arange(batch, device=flat.device)[:, None] * tokens
        place = (padded - starts).clamp(0, tokens - 1)  # within its row; clamped for rows that keep nothing

        cache = kwargs.pop("past_key_values", None)
        # what pads a row repeats its last kept token: as a key it would count twice
        own = place if shape.real is None else place.masked_fill(~shape.real, -1)
        keys = Keys(own, first=0, even=shape.real is None)
        if cache is not None:
            layer_cache: RaggedLayer = cache.layers[self.depth_index]
            first = layer_cache.seen
            slots = layer_cache.expect(tokens, place + first, counts)
            filled = {length + count for length, count in zip(layer_cache.lengths, counts)}
            keys = Keys(slots, first, even=len(filled) == 1)
        layout.ran[self.depth_index] = (place, keys.slots)
        if max(counts) == 0:  # nothing goes through: a chunk of frames only, behind an early exit
            return hidden

        x = hidden
        if not layout.all_text:
            x = hidden.reshape(-1, width)[padded]  # (batch, kept, d)
            # the tokens' own places, for layers that turn their heads by them and for those that look at the numbers
            for name, dim in (("position_embeddings", -2), ("position_ids", -1)):
                if name in kwargs:
                    kwargs[name] = _take(kwargs[name], place, dim)
        if "flash" in str(self.self_attn.config._attn_implementation):  # gaps would look to it like packed sequences
            kwargs.pop("position_ids", None)
        attends = kept_mask(kwargs.pop("attention_mask", None), place, keys)
        kwargs |= {"attention_mask": attends, "past_key_values": cache}
        if plan.gate_acts and layout.groups and self.depth_ratio is not None:
            y = self._gated(x, layout, padded, shape.real, kwargs)
        else:
            y = super().forward(x, **kwargs)
        if layout.all_text:
            return y
        out = y.reshape(-1, width)
        if shape.back is not None:
            out = out[shape.back]
        return hidden.reshape(-1, width).index_copy(0, flat, out).view(batch, tokens, width)

    def _gated(
        self, x: Tensor, layout: FrameLayout, padded: Tensor, real: Tensor | None, kwargs: dict[str, Any]
    ) -> Tensor:
        """The decoder layer on kept tokens, (batch, kept, d), and what the gate does to those that are vision."""
        gate, vision = self.depth_plan.gate, layout.vision[padded][..., None]  # (batch, kept, 1)
        if gate == "salience":  # the expert looks on: what comes before it learns nothing from its scores
            zeros = salience(self._score(x.detach()), *layout.frames_of(padded), real)[..., None].to(x.dtype)
            with _multiplied(self.self_attn, 1 + zeros):
                y: Tensor = super().forward(x, **kwargs)
            return y + zeros * (y - x)
        y = super().forward(x, **kwargs)
        s = self._score(x)[..., None].to(y.dtype)
        if gate == "relative":  # within each row, what pads it apart
            counted = vision if real is None else vision & real[..., None]
            s = s - (s * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
        return torch.where(vision, apply_gate(gate, x, y, s), y)

    def extra_repr(self) -> str:
        return f"depth keep={self.depth_ratio}" if self.depth_ratio is not None else ""


@contextmanager
def _multiplied(attention: nn.Module, factor: Tensor) -> Iterator[None]:
    """Multiply what goes into a layer's attention, (batch, tokens, d), by `factor` (batch, tokens, 1)."""

    def scaled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (args[0] * factor, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * factor}

    hook = attention.register_forward_pre_hook(scaled, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _take(values: Any, place: Tensor, dim: int) -> Any:
    """What belongs to tokens, at `place` (batch, kept): a tensor, or tensors in a tuple, or a dict by layer type.

    Rotary tables are (..., 1 or batch, tokens, e), so that `dim`, where the tokens are, is -2; position ids are
    (..., 1 or batch, tokens): -1. Dimensions in front (positions in time, height and width) stay. None stays None.
    """
    if values is None:
        return None
    if isinstance(values, dict):
        return {kind: _take(each, place, dim) for kind, each in values.items()}
    if isinstance(values, tuple | list):
        return tuple(_take(each, place, dim) for each in values)
    table = values if dim == -2 else values[..., None]
    front, width = table.shape[:-3], table.shape[-1]
    table = table.expand(*front, place.shape[0], -1, -1)
    taken = table.gather(-2, place[..., None].expand(*front, *place.shape, width))
    return taken if dim == -2 else taken[..., 0]


@dataclass(frozen=True)
class Keys:
    """What the queries of a routed layer may look at."""

    slots: Tensor  # (batch, stored): slot of each key, -1 = no entry
    first: int  # slot of this step's first token
    even: bool  # every row has the same number of entries, so that no slot is -1


def kept_mask(mask: Any, place: Tensor, keys: Keys) -> Any:
    """The dense model's attention mask, with the rows of the kept queries and the columns of the stored keys.

    mask: None, or (1 or batch, 1 or heads, tokens, seen) bool or additive float; place: (batch, kept). Returns
    (batch, 1 or heads, kept, stored) or None. A step of many streams has a mask that finds its rows and columns itself.
    """
    if isinstance(mask, StepMask):
        return mask
    if mask is None:
        # To the kernels, no mask and several queries means: query i sees keys 0..i. With no older keys that is right,
        # for what pads the rows stands behind everything that is kept. With older keys, Transformers leaves the mask
        # out only for a single query, which then sees all keys: right unless rows hold different numbers of them.
        if keys.first == 0 or keys.even:
            return None
        seen = (keys.slots[:, None, :] >= 0) & (keys.slots[:, None, :] <= place[:, :, None] + keys.first)
        return seen[:, None]
    if mask.dim() == 2:
        raise InputError("flash attention cannot route a padded batch; use attn_implementation='sdpa', or no padding.")
    heads, columns = mask.shape[1], mask.shape[3]
    rows = mask.expand(place.shape[0], -1, -1, -1).gather(2, place[:, None, :, None].expand(-1, heads, -1, columns))
    slots = keys.slots[:, None, None, :].expand(-1, heads, place.shape[1], -1)
    taken = rows.gather(3, slots.clamp(min=0))
    if keys.even:
        return taken
    # a row without any entry keeps its first column, lest its padding queries attend to nothing and become NaN
    gap = (slots < 0) & (slots >= 0).any(-1, keepdim=True)
    return taken.masked_fill(gap, False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)
