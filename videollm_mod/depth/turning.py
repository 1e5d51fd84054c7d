"""Keys that move: what stays of an endless stream closes the gap of what is forgotten, and its keys turn with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from videollm_mod.depth.cache import RaggedCache


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
