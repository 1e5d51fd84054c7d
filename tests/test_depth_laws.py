"""The laws of the core that are one comparison each (1 to 4, and 6's bytes), over plans x scorers x gates x backbones.

The same laws over random conversations are in test_depth_layouts.py; gradients, cache and generation have files too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from depth_cases import (
    BACKBONES,
    DTYPES,
    LAYERS,
    PLANS,
    SHORT,
    STEPS,
    TALK,
    TOLERANCE,
    Conversation,
    clear,
    far,
    given_scores,
    left_padded,
    right_padded,
    routed,
    run,
    same_kept,
    shake_experts,
    stream,
    talk,
    variants,
)
from reference import reference
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from videollm_mod.depth import SCORERS, DepthPlan, apply_depth, get_plan, remove_depth
from videollm_mod.depth.plan import GRADIENT_GATES
from videollm_mod.types import InputError

Models = Callable[..., PreTrainedModel]

backbones = pytest.mark.parametrize("backbone", BACKBONES)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["fp32", "fp64"])
plan_names = pytest.mark.parametrize("name", PLANS)


@backbones
@plan_names
def test_the_brute_force_reference_agrees(models: Models, backbone: str, name: str) -> None:
    model, talked = models(backbone, torch.float64), talk("1t 5 1t 1 5 1t")
    ids = talked.ids()
    embeds = model.get_input_embeddings()(ids)[0].detach()
    for plan in variants(PLANS[name])[::3]:  # each scorer and each gate; all pairs are in test_depth_layouts.py
        with routed(model, plan), torch.no_grad():
            fast = run(model, ids, talked.index)
            slow = reference(model, embeds, talked.frame_index, plan, given=given_scores(ids)[0].tolist())
        assert {i: set(kept[0].nonzero()[:, 0].tolist()) for i, kept in fast.kept.items()} == slow.kept, plan
        assert far(fast.hidden[0], slow.hidden) < 1e-10, plan
        assert [rows[0] for rows in fast.cache.stored] == slow.entries, plan


@backbones
@dtypes
def test_law_1_keeping_all_with_a_gate_that_starts_open_is_the_untouched_model_to_the_bit(
    models: Models, backbone: str, dtype: torch.dtype
) -> None:
    model, ids = models(backbone, dtype), TALK.ids()
    dense = model(ids).logits
    for name, plan in PLANS.items():
        if name in ("early-exit", "layer-skip"):
            continue  # they keep no vision token at any ratio
        for scorer in SCORERS:
            for gate in ("identity", *GRADIENT_GATES):
                with routed(model, replace(plan, keep=1.0, scorer=scorer, gate=gate)):
                    assert torch.equal(model(ids, frame_index=TALK.index).logits, dense), (name, scorer, gate)
                    assert torch.equal(model(ids, frame_index=TALK.index, use_cache=False).logits, dense)


@backbones
@dtypes
@pytest.mark.parametrize("pad", [left_padded, right_padded])
def test_law_1_keeping_all_of_a_padded_batch_is_the_untouched_model_to_the_bit(
    models: Models, backbone: str, dtype: torch.dtype, pad: Callable[..., Tensor]
) -> None:
    model, talks = models(backbone, dtype), (TALK, SHORT)
    ids, index = pad([talked.ids() for talked in talks]), pad([talked.index for talked in talks], -1)
    real = pad([torch.ones(1, len(talked), dtype=torch.long) for talked in talks])
    step = torch.full((2, 1), 3), torch.cat([real, torch.ones_like(real[:, :1])], 1)
    with torch.no_grad():
        # whose cache forgets nothing, as ours: fewer keys are other sums
        dense = model(ids, attention_mask=real, past_key_values=DynamicCache())
        after = model(step[0], attention_mask=step[1], past_key_values=dense.past_key_values).logits
        for scorer in SCORERS:
            for gate in ("identity", *GRADIENT_GATES):
                with routed(model, DepthPlan("all", keep=1.0, scorer=scorer, gate=gate)):
                    kept: dict[int, Tensor] = {}
                    out = model(ids, frame_index=index, attention_mask=real, kept_out=kept)
                    assert torch.equal(out.logits, dense.logits), (scorer, gate)
                    assert len(kept) == LAYERS and all(torch.equal(one, real.bool()) for one in kept.values())
                    if pad is right_padded:  # a window of ours counts a row's own tokens
                        continue
                    again = model(step[0], attention_mask=step[1], past_key_values=out.past_key_values).logits
                    assert torch.equal(again, after), (scorer, gate)


@backbones
@dtypes
@plan_names
def test_law_1_without_frames_a_routed_model_is_the_untouched_model_to_the_bit(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model, ids = models(backbone, dtype), TALK.ids()
    dense = model(ids).logits
    with routed(model, replace(PLANS[name], gate="output")):
        assert torch.equal(model(ids).logits, dense)
        assert torch.equal(model(ids, frame_index=torch.full_like(ids, -1)).logits, dense)


@backbones
@dtypes
@plan_names
def test_law_1_remove_depth_restores_classes_weights_config_and_outputs(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model, ids = models(backbone, dtype), TALK.ids()
    dense = model(ids).logits
    classes = [type(module) for module in model.modules()]
    weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attributes = [set(module.__dict__) for module in model.modules()]
    config = model.config.to_dict()
    for plan in variants(PLANS[name]):
        assert apply_depth(model, plan) is model
        shake_experts(model)
        assert get_plan(model) == plan
        new = set(model.state_dict()) - set(weights)
        assert all(".depth_expert." in key for key in new) and bool(new) == (plan.has_experts and name != "full")
        assert remove_depth(model) is model
        assert get_plan(model) is None
    assert [type(module) for module in model.modules()] == classes
    assert [set(module.__dict__) for module in model.modules()] == attributes
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == list(weights)
    assert all(torch.equal(model.state_dict()[key], weights[key]) for key in weights)
    assert torch.equal(model(ids).logits, dense)


@backbones
def test_no_choice_in_the_conversations_of_this_file_hangs_on_rounding(models: Models, backbone: str) -> None:
    """So that in single precision, too, the very same tokens must be kept, on any machine."""
    model = models(backbone, torch.float32)
    for plan in PLANS.values():
        for gate in ("identity", "output", "update", "tanh"):
            with routed(model, replace(plan, gate=gate)):
                for seed, talked in enumerate((TALK, SHORT)):
                    assert clear(model, talked.ids(seed), talked), (plan, gate, seed)


@backbones
@dtypes
@plan_names
def test_law_2_a_stream_equals_one_pass(models: Models, backbone: str, dtype: torch.dtype, name: str) -> None:
    model, ids, tolerance = models(backbone, dtype), TALK.ids(), TOLERANCE[dtype]
    for plan in variants(PLANS[name]):
        with routed(model, plan):
            once = run(model, ids, TALK.index, use_cache=False)
            streamed = stream(model, ids, TALK, STEPS)
        assert same_kept(streamed.kept, once.kept), plan
        assert far(streamed.hidden, once.hidden) < tolerance, plan
        assert streamed.cache.seen == len(TALK)


@backbones
@dtypes
@plan_names
def test_law_3_nothing_later_changes_anything_earlier(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model, ids, tolerance = models(backbone, dtype), TALK.ids(), {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    border = TALK.frame_index.index(3)  # frame 3 and all behind it get other tokens, and even another layout
    other = TALK.ids(seed=1)
    other[:, :border] = ids[:, :border]
    elsewhere = Conversation((*TALK.frame_index[:border], *[-1] * 4, *[7] * 10, *[-1] * (len(TALK) - border - 14)))
    for plan in variants(PLANS[name]):
        with routed(model, plan):
            first, second = run(model, ids, TALK.index), run(model, other, elsewhere.index)
        assert far(first.hidden[:, :border], second.hidden[:, :border]) < tolerance, plan
        assert far(first.hidden[:, border:], second.hidden[:, border:]) > 1e-2, "the change did nothing at all"
        for layer, kept in first.kept.items():
            assert torch.equal(kept[:, :border], second.kept[layer][:, :border]), plan


@backbones
@dtypes
@plan_names
def test_law_4_a_batch_of_two_layouts_equals_two_batches_of_one(
    models: Models, backbone: str, dtype: torch.dtype, name: str
) -> None:
    model, talks, tolerance = models(backbone, dtype), (TALK, SHORT), TOLERANCE[dtype]
    ids = [talked.ids(seed) for seed, talked in enumerate(talks)]
    n = len(SHORT)
    batch_ids = right_padded(ids)
    batch_index = right_padded([talked.index for talked in talks], -1)
    real = right_padded([torch.ones_like(row) for row in ids])
    for plan in variants(PLANS[name]):
        with routed(model, plan):
            alone = [run(model, row, talked.index) for row, talked in zip(ids, talks)]
            for use_cache in (True, False):
                both = run(model, batch_ids, batch_index, attention_mask=real, use_cache=use_cache)
                assert far(both.hidden[:1], alone[0].hidden) < tolerance, (plan, use_cache)
                assert far(both.hidden[1:, :n], alone[1].hidden) < tolerance, (plan, use_cache)
                for layer, kept in both.kept.items():
                    assert torch.equal(kept[:1], alone[0].kept[layer])
                    assert torch.equal(kept[1:, :n], alone[1].kept[layer]) and not kept[1, n:].any()


@backbones
@dtypes
@plan_names
def test_law_6_kv_bytes_in_use_equal_the_formula(models: Models, backbone: str, dtype: torch.dtype, name: str) -> None:
    model = models(backbone, dtype)
    head_dim = {"llama": 8, "qwen3": 16, "mistral": 8}[backbone]
    text, frames = 6, (10, 5, 1, 10, 10)  # of TALK
    # by hand, per layer: how many of the tokens of frames of 10, 5 and 1 stay
    kept = {
        "full": {},
        "all": dict.fromkeys(range(5), {10: 4, 5: 2, 1: 1}),
        "all-deep": dict.fromkeys((2, 3, 4), {10: 3, 5: 2, 1: 1}),
        "interleaved": dict.fromkeys((1, 3), {10: 2, 5: 1, 1: 1}),
        "interleaved-deep": {3: {10: 5, 5: 3, 1: 1}},
        "early-exit": dict.fromkeys((2, 3, 4), {10: 0, 5: 0, 1: 0}),
        "layer-skip": dict.fromkeys((1, 3), {10: 0, 5: 0, 1: 0}),
        "list": {0: {10: 7, 5: 4, 1: 1}, 2: {10: 1, 5: 1, 1: 1}, 3: {10: 3, 5: 2, 1: 1}},
    }[name]
    entries = [text + sum(kept[i][n] if i in kept else n for n in frames) for i in range(LAYERS)]
    for scorer in SCORERS:
        with routed(model, replace(PLANS[name], scorer=scorer)):
            cache = stream(model, TALK.ids(), TALK, STEPS).cache
        assert cache.stored == [[count] for count in entries]
        assert cache.kv_bytes == 2 * 2 * head_dim * dtype.itemsize * sum(entries)  # key and value, heads
        assert cache.kv_bytes <= cache.allocated_bytes


# --- the other way to attend -----------------------------------------------------------------------------------------


@backbones
def test_eager_attention_streams_what_sdpa_makes_in_one_pass(models: Models, backbone: str) -> None:
    """In single precision: Transformers' eager softmax is float32 whatever the model is in."""
    sdpa, eager = models(backbone, torch.float32), models(backbone, torch.float32, "eager")
    assert eager.config._attn_implementation == "eager" != sdpa.config._attn_implementation
    for plan in (PLANS["interleaved"], replace(PLANS["list"], gate="output")):
        with routed(sdpa, plan), routed(eager, plan):
            once, streamed = run(sdpa, TALK.ids(), TALK.index), stream(eager, TALK.ids(), TALK, STEPS)
        assert same_kept(once.kept, streamed.kept), plan
        assert far(once.hidden, streamed.hidden) < TOLERANCE[torch.float32], plan


# --- controls: what the laws must notice -----------------------------------------------------------------------------


@backbones
def test_control_compressed_positions_break_law_2(models: Models, backbone: str) -> None:
    """Giving kept tokens the positions they have in the layer's cache, instead of their own, is noticed."""
    model, ids = models(backbone, torch.float64), TALK.ids()
    with routed(model, PLANS["interleaved"]):
        once = run(model, ids, TALK.index)
        parts, cache = [], None
        for step in TALK.steps(STEPS):
            start = cache.stored[1][0] if cache is not None else 0
            positions = torch.arange(start, start + step.stop - step.start)[None]
            part = run(model, ids[:, step], TALK.index[:, step], position_ids=positions, past_key_values=cache)
            parts.append(part.hidden)
            cache = part.cache
    assert far(torch.cat(parts, dim=1), once.hidden) > 1e-2


@backbones
def test_control_sdpa_without_a_mask_breaks_law_2(
    models: Models, backbone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several queries, more keys than queries and no mask: the kernel then lets query i see the OLDEST i keys only."""
    model, ids = models(backbone, torch.float64), TALK.ids()
    with routed(model, PLANS["interleaved"]):
        once = run(model, ids, TALK.index)
        monkeypatch.setattr("videollm_mod.depth.layer.kept_mask", lambda mask, place, keys: None)
        assert far(stream(model, ids, TALK, STEPS).hidden, once.hidden) > 1e-2


@backbones
def test_control_a_cache_with_shifted_slots_breaks_law_2(models: Models, backbone: str) -> None:
    """Entries that forgot which token they are of are noticed: here each takes the number of its place in the cache."""
    model, ids = models(backbone, torch.float64), TALK.ids()
    half = TALK.frame_index.index(4)
    with routed(model, PLANS["interleaved"]):
        once = run(model, ids, TALK.index)
        cache = run(model, ids[:, :half], TALK.index[:, :half]).cache
        for layer in cache.layers:
            layer.slots = torch.where(layer.slots >= 0, half + torch.arange(layer.slots.shape[1]), layer.slots)
        rest = run(model, ids[:, half:], TALK.index[:, half:], past_key_values=cache)
    assert far(rest.hidden, once.hidden[:, half:]) > 1e-2


def test_control_different_weights_in_the_expert_choose_differently(llama: PreTrainedModel) -> None:
    """The weights of these tests are such that the choice shows."""
    results = []
    for seed in (0, 1):
        with routed(llama, replace(PLANS["interleaved"], gate="identity"), seed):
            results.append(run(llama, TALK.ids(), TALK.index))
    assert not same_kept(results[0].kept, results[1].kept)
    assert far(results[0].hidden, results[1].hidden) > 1e-2


@plan_names
def test_a_frame_split_over_two_steps_is_refused(llama: PreTrainedModel, name: str) -> None:
    with routed(llama, PLANS[name]):
        for border in range(3, 12):  # inside the first frame
            with pytest.raises(InputError, match="frame 0"):
                stream(llama, TALK.ids(), TALK, [border])


def test_frames_in_falling_order_are_refused(llama: PreTrainedModel) -> None:
    with routed(llama, PLANS["interleaved"]):
        cache = run(llama, TALK.ids()[:, :10], torch.tensor([[5] * 10])).cache
        with pytest.raises(InputError, match="frame 4 comes after frame 5"):
            run(llama, TALK.ids()[:, :10], torch.tensor([[4] * 10]), past_key_values=cache)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_in_bfloat16_few_kept_tokens_flip(models: Models, backbone: str, record_property: Callable) -> None:
    """Near-ties may fall the other way in bf16. This counts them: the share of the kept vision tokens that differ."""
    model = models(backbone, torch.bfloat16)
    talked = talk("3t 10 1t 50 1t 10 10 2t 50 1t 10 5 3t")
    vision = talked.index >= 0
    flipped = chosen = 0
    with routed(model, DepthPlan("interleaved", 0.2, gate="straight")):
        for seed in range(8):
            ids = talked.ids(seed)
            once, streamed = run(model, ids, talked.index), stream(model, ids, talked, talked.turns)
            for layer, kept in once.kept.items():
                flipped += int((kept & ~streamed.kept[layer] & vision).sum())
                chosen += int((kept & vision).sum())
    share = flipped / chosen
    record_property("flipped", share)
    print(f"{backbone}: {flipped} of {chosen} kept tokens flipped ({share:.2%})")
    assert share < 0.02
