"""Attention of a streaming step gives what Transformers' own gives, and is used only where it is meant for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from videollm_mod.attention import MANY, STREAM_SDPA, stream_attention, use_stream_attention
from videollm_mod.depth import DepthPlan, RaggedCache, apply_depth

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "initializer_range": 0.3,
}


def inputs(batch: int, kv: int, shared: int, rows: int, past: int, additive: bool) -> tuple[Any, ...]:
    """A module, queries, keys, values and a causal mask, as an attention layer of Transformers hands them on."""
    torch.manual_seed(0)
    query = torch.randn(batch, kv * shared, rows, 8, dtype=torch.float64)
    key, value = torch.randn(2, batch, kv, past + rows, 8, dtype=torch.float64)
    mask = torch.ones(batch, 1, rows, past + rows, dtype=torch.bool).tril(past)
    mask[..., : past // 3] &= torch.rand(batch, 1, 1, past // 3) < 0.7  # gaps, as padding leaves them
    if additive:
        mask = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)
    return SimpleNamespace(num_key_value_groups=shared, is_causal=True), query, key, value, mask


@given(
    batch=st.integers(1, 2),
    kv=st.integers(1, 2),
    shared=st.integers(1, 4),
    rows=st.integers(1, 12),
    past=st.sampled_from([0, 5, MANY - 1, MANY + 40]),
    additive=st.booleans(),
)
def test_it_gives_what_transformers_own_gives(**shape: Any) -> None:
    module, *tensors = inputs(**shape)
    with torch.no_grad():
        mine, _ = stream_attention(module, *tensors, scaling=0.3)
        theirs, _ = sdpa_attention_forward(module, *tensors, scaling=0.3)
    assert mine.shape == theirs.shape and mine.is_contiguous()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("past", [5, MANY])
def test_a_query_that_sees_nothing_becomes_no_nan(past: int) -> None:
    module, query, key, value, mask = inputs(1, 1, 1, 3, past, False)
    mask[:, :, 1] = False
    with torch.no_grad():
        out, _ = stream_attention(module, query, key, value, mask)
    assert out.isfinite().all()


def test_without_a_mask_and_with_gradients_it_is_transformers_own() -> None:
    module, query, key, value, mask = inputs(1, 2, 2, 3, MANY, False)
    for asked, grad in ((None, False), (mask, True)):
        with torch.set_grad_enabled(grad):
            mine, _ = stream_attention(module, query, key, value, asked)
            theirs, _ = sdpa_attention_forward(module, query, key, value, asked)
        assert torch.equal(mine, theirs)


def streamed(model: LlamaForCausalLM, frames: int, embeds: Tensor) -> Tensor:
    """Logits of a stream of frames of 7 tokens and an interval token; embeds (1, frames * 8, d)."""
    cache, logits = RaggedCache(model.config.num_hidden_layers), []
    with torch.no_grad():
        for number in range(frames):
            index = torch.tensor([[number] * 7 + [-1]])
            step = embeds[:, 8 * number : 8 * number + 8]
            logits.append(model(inputs_embeds=step, frame_index=index, past_key_values=cache).logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("kv", [4, 2, 1])
def test_a_routed_stream_is_the_same_with_it_and_in_one_pass_without(kv: int) -> None:
    """Long enough for both ways: a routed layer's few rows, and every key of a layer that is not routed."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**TINY, num_key_value_heads=kv)).double().eval()
    apply_depth(model, DepthPlan(layers=(1, 3), keep=(0.2, 0.9)))
    frames = MANY // 7 + 4
    embeds = torch.randn(1, frames * 8, 32, dtype=torch.float64)
    index = torch.tensor([[n for number in range(frames) for n in (*[number] * 7, -1)]])
    with torch.no_grad():
        whole = model(inputs_embeds=embeds, frame_index=index).logits
    plain = streamed(model, frames, embeds)
    use_stream_attention(model)
    assert model.config._attn_implementation == model.model.config._attn_implementation == STREAM_SDPA
    mine = streamed(model, frames, embeds)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(mine, whole, rtol=0, atol=1e-10)
    assert STREAM_SDPA not in model.config.to_json_string()  # nobody who loads the model needs to know of it
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(streamed(model, frames, embeds), plain, rtol=0, atol=0)


def test_a_model_with_another_attention_keeps_it() -> None:
    model = LlamaForCausalLM(LlamaConfig(**TINY, attn_implementation="eager"))
    assert use_stream_attention(model).config._attn_implementation == "eager"
