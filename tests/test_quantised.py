"""Weights and caches in fewer bits: near the exact model, counted honestly, and without effect where they are off."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_cases import frames, tiny_model
from test_window import conversation, llama, step
from torch import Tensor, nn

import videollm_mod as vm
from videollm_mod.depth import DepthPlan, RaggedCache
from videollm_mod.depth.quantised import KINDS, dequantise, quantise
from videollm_mod.depth.swap import find_decoder
from videollm_mod.depth.turning import turned
from videollm_mod.flags import DTYPES, KV_DTYPES, stored_as
from videollm_mod.packed import pack_linears
from videollm_mod.stream.session import StreamSession
from videollm_mod.types import InputError
from videollm_mod.weights import WEIGHTS, quantise_weights

ROUTED = DepthPlan("interleaved", 0.4)
# the largest difference of a number from its code: half a step of int8, and of fp8 2^-4 of the number or a subnormal's
WORST = {"int8": 0.5 / 127 + 1e-6, "fp8": 2.0**-4 + 1e-6}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e4]), seed=st.integers(0, 5))
def test_a_code_is_never_further_off_than_half_a_step(kind: str, scale: float, seed: int) -> None:
    states = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed)) * scale
    states[0, 0] = 0
    codes, scales = quantise(states, kind)
    assert codes.dtype == torch.int8 and codes.shape == states.shape and scales.shape == (2, 3, 1)
    back = dequantise(codes, scales, kind, states.dtype)
    most = states.abs().amax(-1, keepdim=True)
    assert ((back - states).abs() <= WORST[kind] * most).all() and (back[0, 0] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_entry_takes_a_byte_per_channel_and_four_per_head_and_that_is_what_is_counted(kind: str) -> None:
    model, cache = llama(3, ROUTED), RaggedCache(3, kind)
    ids, index = conversation([2, 0, 0, 1])
    step(model, ids, index, cache)
    assert [layer.entry_bytes for layer in cache.layers] == [2 * 2 * (8 + 4)] * 3  # key and value, 2 heads of 8
    assert cache.kv_bytes == sum(map(sum, cache.stored)) * 48
    held = [tensor for layer in cache.layers for tensor in layer._buffers()]
    assert len(held) == 12 and cache.allocated_bytes == sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.05), ("fp8", 0.4)])
def test_logits_are_near_the_exact_ones_and_streaming_equals_one_pass_but_for_a_rounding(
    kind: str, near: float
) -> None:
    """Stated tolerance: streaming against one pass within 1e-5 of the logits' range, where no code flips."""
    model = llama(3, ROUTED)
    ids, index = conversation([2, 0, 1, 0, 0, 3])
    exact = step(model, ids, index, RaggedCache(3))
    whole = step(model, ids, index, RaggedCache(3, kind))
    cache = RaggedCache(3, kind)
    cuts = [0, 2, 7, 8, 13, 18, ids.shape[1]]
    parts = [step(model, ids[:, a:b], index[:, a:b], cache) for a, b in zip(cuts, cuts[1:])]
    range_ = exact.abs().max()
    assert 0 < (whole - exact).abs().max() < near * range_
    assert (torch.cat(parts, 1) - whole).abs().max() < 1e-5 * range_


@pytest.mark.parametrize(("kind", "near"), [("int8", 0.1), ("fp8", 0.5)])
def test_a_rounded_cache_crops_moves_rows_forgets_and_resets_as_the_exact_one(kind: str, near: float) -> None:
    model = llama(3, ROUTED)
    ids, index = conversation([2, 0, 0, 3, 0])
    caches = [RaggedCache(3), RaggedCache(3, kind)]
    for cache in caches:
        step(model, ids.repeat(2, 1), index.repeat(2, 1), cache)
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([3, 0, 1, 2]))
        cache.batch_select_indices(torch.tensor([0]))
        cache.crop_to(ids.shape[1] - 5)
        cache.forget(2, 7, lambda keys, by: turned(find_decoder(model), keys, by))
    exact, rounded = caches
    assert exact.stored == rounded.stored and exact.frames == rounded.frames
    for plain, layer in zip(exact.layers, rounded.layers):
        assert plain.slots is not None and layer.slots is not None
        used = layer.lengths[0]
        assert torch.equal(plain.slots[0, :used], layer.slots[0, :used])
        wanted = plain.keys[0, :, :used]
        assert (layer.stored_keys(0) - wanted).abs().max() < near * wanted.abs().max()
        assert torch.allclose(layer.key_norms(0), plain.key_norms(0), rtol=near)
    rounded.reset()
    assert rounded.kv_bytes == 0 and rounded.empty().kv == kind
    step(model, ids, index, rounded)
    assert rounded.seen == ids.shape[1]


def test_a_session_with_a_rounded_cache_holds_its_budget_and_remembers_more_in_it() -> None:
    model, remembered = tiny_model(ROUTED), {}
    for kv in (None, "int8"):
        session = StreamSession(model, threshold=0.0, policy="window", budget=100_000, kv=kv)
        for frame in frames(60):
            session.push(frame)
            assert session.state().kv_bytes <= 100_000
        remembered[kv] = len(session.memory.frames)
        assert session._cache.kv == kv
    assert remembered["int8"] > 2 * remembered[None]  # type: ignore[index]


def test_without_a_word_nothing_is_rounded() -> None:
    model = tiny_model(ROUTED)
    session = StreamSession(model, threshold=0.0)
    session.push(frames(1)[0])
    assert model.weights is model.kv is session._cache.kv is None
    assert {layer.keys.dtype for layer in session._cache.layers} == {torch.float64}
    assert stored_as("float32", None) == {"dtype": torch.float32, "weights": None, "kv": None}
    assert stored_as("bfloat16", "fp8") == {"dtype": torch.bfloat16, "weights": None, "kv": "fp8"}
    assert stored_as("int4", None)["weights"] == "int4" and set(WEIGHTS) < set(DTYPES) and set(KINDS) == set(KV_DTYPES)


def logits(model: vm.StreamingVideoLM) -> Tensor:
    """Of forty words and no picture."""
    ids = torch.randint(4, 70, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found: Tensor = model(ids, torch.full((1, 40), -1), logits_to_keep=0).logits
    return found.float()


@pytest.mark.slow
def test_the_bundled_model_in_bf16_int8_and_int4_is_near_itself() -> None:
    pytest.importorskip("torchao", reason="the extra [quant] is not installed")
    exact = logits(vm.load("tiny"))
    for options, near, same in (
        (dict(dtype=torch.bfloat16), 0.03, 0.95),
        (dict(weights="int8"), 0.03, 0.95),
        (dict(weights="int4"), 0.3, 0.7),
    ):
        model = vm.load("tiny", **options)
        ours = logits(model)
        assert 0 < (ours - exact).abs().max() < near * exact.abs().max(), options
        assert (ours.argmax(-1) == exact.argmax(-1)).float().mean() >= same, options


@pytest.mark.slow
@pytest.mark.parametrize("kind", WEIGHTS)
def test_rounded_weights_stream_and_only_the_decoders_linear_layers_are_rounded(kind: str) -> None:
    pytest.importorskip("torchao", reason="the extra [quant] is not installed")
    model = vm.load("tiny", weights=kind, kv="int8")
    session = StreamSession(model, policy="norm", budget=2 * 10**6)
    for frame in frames(6):
        session.push(frame)
    assert session.ask("How many things are there?").text and session._cache.kv == "int8"
    rounded = {name for name, module in model.named_modules() if type(getattr(module, "weight", None)) not in PLAIN}
    linears = {n for n, m in find_decoder(model.lm).layers.named_modules() if isinstance(m, nn.Linear)}
    assert len(rounded) == len(linears) == 5 * 7
    assert not any(part in name for name in rounded for part in ("depth_expert", "lm_head", "encoder", "connector"))
    assert not any(type(m).__name__ == "PackedLinear" for n, m in model.named_modules() if n in rounded)


PLAIN = (nn.Parameter, Tensor, type(None))


def test_what_cannot_be_rounded_is_refused_in_a_sentence() -> None:
    model = tiny_model(ROUTED)
    with pytest.raises(InputError, match="weights in 'int3' are unknown; take one of int8, int4"):
        quantise_weights(model, "int3")
    with pytest.raises(InputError, match="a KV cache in 'int4' is unknown; take one of int8, fp8"):
        vm.load("tiny", kv="int4")
    with pytest.raises(InputError, match="--kv 'int4' is unknown; take one of int8, fp8"):
        stored_as("float32", "int4")


@pytest.mark.slow
def test_rounded_weights_that_cannot_be_or_be_saved_are_refused_in_a_sentence(tmp_path: object) -> None:
    pytest.importorskip("torchao", reason="the extra [quant] is not installed")
    model = tiny_model(ROUTED)
    with pytest.raises(InputError, match="a width of 48 does not split into groups of 32"):
        quantise_weights(model, "int4")
    pack_linears(model)
    quantise_weights(model.float(), "int8")
    with pytest.raises(InputError, match="weights are in int8 already"):
        quantise_weights(model, "int8")
    with pytest.raises(InputError, match="weights in int8 are for inference"):
        model.save_pretrained(str(tmp_path))
    assert math.isfinite(logits(vm.load("tiny")).sum())
