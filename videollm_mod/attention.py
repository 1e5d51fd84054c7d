"""Attention of a streaming step: a frame's few queries over many stored keys; what Transformers' `sdpa` gives, sooner.

Where several heads of queries share one of keys (Llama-3: four), `sdpa` with a mask copies all stored keys and values
once for each of them, at every frame. Here those heads' queries stand side by side as rows of one head, and nothing is
copied. And where no more than FEW rows are left on a CPU, as in a routed layer, two products take less time than
the fused kernel, whose products of so few rows are slow (runs/few_rows.py measures it). All else is handed on.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Model = TypeVar("Model", bound=nn.Module)

STREAM_SDPA = "stream_sdpa"  # its name among Transformers' attention functions
FEW, MANY = 8, 256  # rows at most, and keys at least, for two products instead of the fused kernel


def stream_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """query (batch, heads, rows, e), key and value (batch, heads of keys, keys, e) -> (batch, rows, heads, e).

    attention_mask: None, or (1 or batch, 1, rows, keys), bool or additive. Without gradients and with a mask that all
    heads share it works as said above; otherwise it is Transformers' own function.
    """
    more = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "s_aux", "softcap"))
    if attention_mask is None or attention_mask.shape[1] != 1 or dropout or torch.is_grad_enabled() or more:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling=scaling, is_causal=is_causal, **kwargs
        )
    batch, heads, rows, e = query.shape
    shared = heads // key.shape[1]  # heads of queries for each of keys
    if shared > 1:
        query = query.reshape(batch, key.shape[1], shared * rows, e)
        attention_mask = attention_mask.repeat(1, 1, shared, 1)  # (1 or batch, 1, shared * rows, keys)
    scale = e**-0.5 if scaling is None else scaling
    if query.device.type == "cpu" and query.shape[2] <= FEW and key.shape[2] >= MANY:
        scores = (key @ (query * scale).transpose(-1, -2)).transpose(-1, -2).contiguous()  # rows of keys, not columns
        if attention_mask.dtype == torch.bool:
            scores.masked_fill_(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores += attention_mask
        out = scores.softmax(-1) @ value
    else:
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=scale)
    out = out.reshape(batch, heads, rows, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None


def use_stream_attention(model: Model) -> Model:
    """Let a Transformers model that uses `sdpa` use this instead, in place; returns it. `sdpa` set again undoes it."""
    AttentionInterface.register(STREAM_SDPA, stream_attention)
    AttentionMaskInterface.register(STREAM_SDPA, sdpa_mask)
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        if model._can_set_attn_implementation():  # classes of the old style choose theirs when they are built
            model.set_attn_implementation(STREAM_SDPA)
    return model
