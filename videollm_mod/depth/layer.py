"""Depth routing around unchanged Transformers decoder layers, by swapping the classes of existing modules.

A routed layer gathers the kept tokens, runs the decoder layer it is, gates the vision tokens among them and scatters
the result back (VideoLLM-MoD, arXiv 2408.16730, section 3.2). All that touches Transformers' internals is in this file,
in families.py and in step.py: the swap keeps every weight and its name, only `depth_expert.*` keys are new, and
`remove_depth` undoes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from videollm_mod.attention import STREAM_SDPA
from videollm_mod.depth.cache import RaggedCache, RaggedLayer
from videollm_mod.depth.expert import LayerExpert, kept_tokens
from videollm_mod.depth.families import (
    INSTEAD,
    first_norm,
    has_window,
    is_own,
    refuse_layers,
    refuse_recurrent,
    window_of,
)
from videollm_mod.depth.layout import FrameLayout
from videollm_mod.depth.plan import DepthPlan
from videollm_mod.depth.step import IMPLEMENTATION, StepCache, StepMask, attention_for
from videollm_mod.depth.vision_language import vision_mixins
from videollm_mod.types import InputError

Model = TypeVar("Model", bound=nn.Module)
LEARNING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
        if self.depth_ratio is None:
            return self._routed(hidden_states, depth, 1.0, None, **kwargs)
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

        x = hidden.reshape(-1, width)[padded]  # (batch, kept, d)
        # the tokens' own places, for the layers that turn their heads by them and for those that look at the numbers
        for name, dim in (("position_embeddings", -2), ("position_ids", -1)):
            if name in kwargs:
                kwargs[name] = _take(kwargs[name], place, dim)
        if "flash" in str(self.self_attn.config._attn_implementation):  # gaps would look to it like packed sequences
            kwargs.pop("position_ids", None)
        attends = kept_mask(kwargs.pop("attention_mask", None), place, keys)
        y = super().forward(x, attention_mask=attends, past_key_values=cache, **kwargs)
        if plan.gate_acts and layout.groups and self.depth_ratio is not None:
            s = self._score(x)[..., None].to(y.dtype)
            vision = layout.vision[padded][..., None]  # (batch, kept, 1)
            if plan.gate == "relative":  # within each row, what pads it apart
                counted = vision if shape.real is None else vision & shape.real[..., None]
                s = s - (s * counted).sum(1, keepdim=True) / counted.sum(1, keepdim=True).clamp(min=1)
            y = torch.where(vision, apply_gate(plan.gate, x, y, s), y)
        out = y.reshape(-1, width)
        if shape.back is not None:
            out = out[shape.back]
        return hidden.reshape(-1, width).index_copy(0, flat, out).view(batch, tokens, width)

    def extra_repr(self) -> str:
        return f"depth keep={self.depth_ratio}" if self.depth_ratio is not None else ""


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


class DepthDecoder(nn.Module):
    """Mix-in in front of the model that holds the decoder layers: reads the frames off `frame_index`, once a step."""

    depth_plan: DepthPlan
    config: Any
    layers: Any

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        frame_index: Tensor | None = None,
        token_scores: Tensor | None = None,
        alive: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`frame_index` (batch, tokens) int64: -1 = text, else the number of the token's frame; None = all text.
        `token_scores` (batch, tokens): who is kept, the highest of each frame, where the plan's scorer is `given`.
        `alive` (batch, tokens) bool: vision tokens that are not go through no layer, and no cache ever holds them.

        With a cache the numbers of later steps must be higher: a frame's kept set depends on all of its tokens, so no
        step may split a frame. A step that fails leaves the cache as it was.
        """
        inputs = inputs_embeds if input_ids is None else input_ids
        if inputs is None:
            raise InputError("a decoder needs input_ids or inputs_embeds; both are None.")
        if frame_index is None:
            frame_index = torch.full(inputs.shape[:2], -1, dtype=torch.long)
        if frame_index.shape != inputs.shape[:2]:
            raise InputError(
                f"frame_index has shape {tuple(frame_index.shape)}, the tokens {tuple(inputs.shape[:2])}; "
                "it needs one number per token (-1 = text)."
            )
        self._refuse_what_cannot_work()
        if kwargs.get("output_router_logits") and attention_mask is not None and self._routes():
            raise InputError(
                "the load-balancing loss of a mixture of experts knows only tokens that go through a routed layer, and "
                "cannot set them against an attention_mask; leave attention_mask out (padding on the right needs none)."
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = self._cache(past_key_values, use_cache)
        seen = cache.seen if cache is not None else 0
        # masks made beforehand, 4-D or a dict of them by layer type, tell nothing of padding; their layers take them
        padding = attention_mask if isinstance(attention_mask, Tensor) and attention_mask.dim() == 2 else None
        if padding is not None and padding.shape[1] != seen + inputs.shape[1]:
            raise InputError(
                f"attention_mask covers {padding.shape[1]} tokens; it must cover the {seen} seen before and the "
                f"{inputs.shape[1]} of this step."
            )
        layout = FrameLayout.of(frame_index, padding, inputs.device)
        if alive is not None:
            layout.thin(alive.flatten())
        layout.given = self._given(token_scores, layout)
        if isinstance(cache, StepCache):
            layout.groups = cache.own_numbers(layout.groups)
        if cache is not None:
            cache.refuse_split_frames(layout)
        try:
            with attention_for(self, cache):
                output = super().forward(
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    past_key_values=cache,
                    inputs_embeds=inputs_embeds,
                    use_cache=use_cache,
                    depth=layout,
                    **kwargs,
                )
        except BaseException:  # an interrupt, too: some layers have stored this step and others have not
            if cache is not None:
                cache.crop_to(seen)
            raise
        if cache is not None:
            cache.remember_frames(layout, seen)
        return output

    def _cache(self, given: Any, use_cache: bool | None) -> RaggedCache | None:
        """The cache of this step: a fresh one where an empty foreign one, or none, was given."""
        if getattr(given, "is_compileable", False):  # Transformers has made masks as wide as it already
            raise InputError(
                f"a routed model cannot use a {type(given).__name__}, for its layers hold unequal numbers of entries; "
                "leave cache_implementation out."
            )
        seen = given.get_seq_length() if given is not None else 0
        if seen and not isinstance(given, RaggedCache):
            raise InputError(
                f"a routed model cannot go on from a filled {type(given).__name__}; start with past_key_values=None."
            )
        if self.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            if seen:  # Transformers would drop it with no more than a warning
                raise InputError("gradient checkpointing cannot go on from a cache; call eval(), or switch it off.")
            return None
        if isinstance(given, RaggedCache):
            return given
        return RaggedCache(len(self.layers)) if use_cache else None

    def _given(self, token_scores: Tensor | None, layout: FrameLayout) -> Tensor | None:
        """The scores from outside, flat; None where nothing asks for them."""
        asked = any(layer.depth_ratio is not None and 0 < layer.depth_ratio < 1 for layer in self.layers)
        if self.depth_plan.scorer != "given" or not layout.groups or not asked:
            return None
        shape = (layout.batch, layout.tokens)
        if token_scores is None or token_scores.shape != shape:
            have = "missing" if token_scores is None else f"of shape {tuple(token_scores.shape)}"
            raise InputError(f"token_scores is {have}; the plan's scorer 'given' needs one number per token, {shape}.")
        return token_scores.to(layout.device).flatten()

    def _routes(self) -> bool:
        return any(layer.depth_ratio is not None for layer in self.layers)

    def _refuse_what_cannot_work(self) -> None:
        implementation = self.config._attn_implementation
        if implementation in ("eager", "sdpa", STREAM_SDPA, IMPLEMENTATION):
            return
        if "flash" not in str(implementation):
            raise InputError(f"attn_implementation='{implementation}' cannot be routed; use sdpa, eager or flash.")
        if any(has_window(layer, self.config) for layer in self.layers if layer.depth_ratio is not None):
            raise InputError("flash attention counts a sliding window in kept tokens; use attn_implementation='sdpa'.")


class DepthCausalLM(nn.Module):
    """Mix-in in front of the causal LM: `generate(input_ids, frame_index=...)` works as for any model."""

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        frame_index: Tensor | None = None,
        token_scores: Tensor | None = None,
        inputs_embeds: Tensor | None = None,  # named, because `generate` refuses embeddings where the name is missing
        **kwargs: Any,
    ) -> Any:
        """`frame_index` and `token_scores` (batch, prompt) belong to the whole sequence from its start; what is
        generated is text."""
        inputs = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[misc]
        for name, values, of_text in (("frame_index", frame_index, -1), ("token_scores", token_scores, 0)):
            if values is None:
                continue
            cache = inputs.get("past_key_values")
            start = cache.get_seq_length() if cache is not None else 0
            now = inputs.get("inputs_embeds") if inputs.get("inputs_embeds") is not None else inputs["input_ids"]
            end = start + now.shape[1]
            longer = nn.functional.pad(values, (0, max(end - values.shape[1], 0)), value=of_text)
            inputs[name] = longer[:, start:end]
        return inputs


def find_decoder(model: nn.Module) -> Any:
    """The module that holds the decoder layers of a Transformers causal LM."""
    if hasattr(model, "get_base_model"):  # peft's, which stands around a model and hides it
        raise InputError(f"{type(model).__name__} stands around the model; give its get_base_model().")
    decoder: Any = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not all(hasattr(layer, "self_attn") for layer in layers):
        raise InputError(f"{type(model).__name__} has no list 'layers', each with a 'self_attn'; {INSTEAD}.")
    return decoder


def _swap(module: nn.Module, mixin: type) -> None:
    """Put `mixin` in front of the module's class. The name stays: saving and sharding go by it."""
    now = type(module)
    own = getattr(now, "depth_own_class", now)  # a module may get two
    _drop_bound_forward(module)
    module.__class__ = type(own.__name__, (mixin, now), {"__module__": own.__module__, "depth_own_class": own})


def _drop_bound_forward(module: nn.Module) -> None:
    """Forget a forward that hooks have left on the module: it is that of its class, and of no other class."""
    if is_own(vars(module).get("forward"), module):
        del module.forward


def apply_depth(model: Model, plan: DepthPlan) -> Model:
    """Route the model's decoder layers by `plan`, in place; returns the model.

    On a model that is routed already the plan changes and the experts of layers that stay routed remain.
    """
    refuse_recurrent(model)
    decoder = find_decoder(model)
    refuse_layers(model, decoder)
    ratios = plan.ratios(len(decoder.layers))
    if plan.reads == "norm" and not all(first_norm(layer, decoder.config) for layer in decoder.layers):
        kind = type(decoder.layers[0]).__name__
        raise InputError(f"{kind} has no norm before its attention; take a plan with reads='input'.")
    experts = {i: layer.depth_expert for i, layer in enumerate(decoder.layers) if hasattr(layer, "depth_expert")}
    remove_depth(model)
    width = decoder.config.hidden_size
    for index, (layer, ratio) in enumerate(zip(decoder.layers, ratios)):
        norm = first_norm(layer, decoder.config)
        _swap(layer, DepthLayer)
        layer.depth_plan, layer.depth_ratio, layer.depth_index, layer.depth_norm = plan, ratio, index, norm
        if ratio is not None and plan.has_experts:
            # a quantised layer has weights of types that no expert can learn in; its norms have not
            like = next(weight for weight in layer.parameters() if weight.dtype in LEARNING)
            layer.depth_expert = experts.get(index) or LayerExpert(width, device=like.device, dtype=like.dtype)
    _swap(decoder, DepthDecoder)
    decoder.depth_plan = plan
    if model is not decoder:
        _swap(model, DepthCausalLM)
    for module, mixin in vision_mixins(model, decoder):
        _swap(module, mixin)
    decoder.config.depth_plan = plan.to_dict()
    return model


def remove_depth(model: Model) -> Model:
    """Give the original model back: classes, weights and keys as they were. Nothing happens to an unrouted one."""
    decoder = find_decoder(model)
    for module in (*decoder.layers, decoder, model, *(module for module, _ in vision_mixins(model, decoder))):
        own = getattr(type(module), "depth_own_class", None)
        if own is None:
            continue
        _drop_bound_forward(module)
        module.__class__ = own
        for name in ("depth_plan", "depth_ratio", "depth_index", "depth_norm"):
            module.__dict__.pop(name, None)
        module._modules.pop("depth_expert", None)
    if hasattr(decoder.config, "depth_plan"):
        del decoder.config.depth_plan
    return model


def turned(decoder: Any, keys: Tensor, by: int | Tensor) -> Tensor:
    """Keys (..., entries, head_dim) as if their tokens stood `by` positions further on: all of them by one number, or
    each by its own, (entries,); for `RaggedCache.compact`.

    Rotary embeddings add up: R(p + by) k = R(by) R(p) k. Right only where `turns` says so.
    """
    rotary = decoder.rotary_emb
    positions = torch.as_tensor(by, device=keys.device).reshape(1, -1)
    cos, sin = rotary(keys.float(), positions)  # (1, 1 or entries, e), e <= head_dim
    cos, sin = (table[0] / rotary.attention_scaling for table in (cos, sin))  # keys were scaled when they were made
    turning, rest = keys[..., : cos.shape[-1]].float(), keys[..., cos.shape[-1] :]
    one, two = turning.chunk(2, -1)
    return torch.cat([(turning * cos + torch.cat([-two, one], -1) * sin).to(keys.dtype), rest], -1)


@torch.no_grad()
def turns(decoder: Any, by: int = 7) -> bool:
    """Whether `turned` is right for a decoder, found out by trying: one token alone, at two positions.

    What layers make of it is the same at both but for the keys. It is not right for layers without rotary embeddings,
    for tables by layer type, for pairs that stand side by side, or where angles depend on the length.
    """
    token = torch.randn(1, 1, decoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    like = next(decoder.parameters())
    caches = [RaggedCache(len(decoder.layers)) for _ in range(2)]
    try:
        for cache, place in zip(caches, (0, by)):
            where = torch.full((1, 1), place, device=like.device)
            decoder(inputs_embeds=token.to(like), position_ids=where, past_key_values=cache, use_cache=True)
        pairs = [(turned(decoder, a.keys[:, :, :1], by), b.keys[:, :, :1]) for a, b in zip(*(c.layers for c in caches))]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False
    near = 1e-3 if like.dtype in (torch.float32, torch.float64) else 0.05
    fixed = getattr(decoder.rotary_emb, "rope_type", None) not in ("dynamic", "longrope")
    return fixed and all(bool((a - b).abs().max() <= near * b.abs().max()) for a, b in pairs)


def get_plan(model: nn.Module) -> DepthPlan | None:
    """The plan a model is routed by, or None."""
    return getattr(find_decoder(model), "depth_plan", None)
