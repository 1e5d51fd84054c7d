"""What stands around routed layers: the model that holds them reads the frames of a step, the causal LM hands them on.

Both are mix-ins in front of Transformers' own classes; swap.py puts them there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from videollm_mod.attention import STREAM_SDPA
from videollm_mod.depth.cache import RaggedCache
from videollm_mod.depth.families import has_window
from videollm_mod.depth.layout import FrameLayout
from videollm_mod.depth.plan import DepthPlan
from videollm_mod.depth.step import IMPLEMENTATION, StepCache, attention_for
from videollm_mod.types import InputError


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
            if isinstance(cache, StepCache):
                cache.thin(alive)
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
